"""Memories of clusters: unit prototypes, their momentum updates, and swaps of two banks.

Shapes: B batch rows, C clusters (C_a and C_b of two banks), D feature width, M matched pairs.

Everything here is deterministic and free of gradients. `pairs` are matched one to one, as
`reid_core.matching` returns them: int64 (M, 2), NumPy or tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.types import OUTLIER

Pairs = np.ndarray | Tensor


class ClusterMemory:
    """A bank of cluster prototypes.

    Attributes:
        bank: (C, D) unit rows, float32.
        momentum: share of the old prototype that an update keeps, in [0, 1].
        temperature: divides the cosines in `scores`, above 0.

    Reference: CCLNet, stages 0 and 2, update (momentum 0.1, temperature 0.05).
    """

    def __init__(self, bank: Tensor, *, momentum: float, temperature: float) -> None:
        """Takes a copy of `bank`; its rows must have unit length and are not normalized here."""
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1]")
        if temperature <= 0.0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.bank = torch.as_tensor(bank).detach().float().clone()
        self.momentum = momentum
        self.temperature = temperature

    def scores(self, x: Tensor) -> Tensor:
        """Cosines of unit rows `x` (B, D) to all prototypes over the temperature, (B, C)."""
        return x @ self.bank.T / self.temperature

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor, *, most: int | None = None) -> None:
        """Moves each row's prototype towards the row, in batch order.

        bank[y] <- normalize(momentum * bank[y] + (1 - momentum) * x). Rows of one label act one
        after the other, so their order counts; the k-th rows of all labels are taken together.

        Args:
            x: (B, D) unit rows.
            labels: (B,) int64 prototype of each row; -1 is skipped.
            most: rows that one label has at most; known from the plan, it spares a GPU the wait
                for the answer.

        Raises:
            ValueError: not one label per row; on the CPU, where a look costs nothing, also a label
                that is no row of the bank or has more rows than `most`. A device stops at one.
        """
        if labels.shape != (len(x),):
            raise ValueError(f"labels have shape {tuple(labels.shape)} for {len(x)} rows")
        if labels.device.type == "cpu":
            names, counts = np.unique(labels.numpy(), return_counts=True)
            _require_rows(names, len(self.bank))
            counted, num_slots = int(counts[names != OUTLIER].max(initial=0)), len(names)
            if most is not None and counted > most:
                raise ValueError(f"a label has {counted} rows in one batch, not {most} at most")
            most = counted
        else:
            num_slots = len(labels)  # as many labels as may occur
        if num_slots and len(self.bank) and most != 0:
            self._take_turns(x.detach().to(self.bank.dtype), labels, most, num_slots)

    def _take_turns(self, x: Tensor, labels: Tensor, most: int | None, num_slots: int) -> None:
        """The k-th row of every label in turn k, in tables whose shapes depend on no label.

        A slot holds one label. A slot that is left over is a copy of the first one, so that it
        writes what that one writes.
        """
        size, num = len(x), len(self.bank)
        _assert_rows(labels, num)
        ordered, rows = torch.sort(torch.where(labels == OUTLIER, num, labels), stable=True)
        position = torch.arange(size, device=labels.device)
        turn = position - torch.searchsorted(ordered, ordered)
        slot = (turn == 0).cumsum(0) - 1
        known = ordered < num
        if most is None:
            most = int(torch.where(known, turn, OUTLIER).max()) + 1
        elif labels.device.type != "cpu":
            message = f"a label has more than {most} rows in one batch"
            torch._assert_async((~known | (turn < most)).all(), message)
        slots = torch.full((num_slots,), num, device=labels.device).scatter_(0, slot, ordered)
        places = slot * (most + 1) + torch.where(known, turn, most).clamp(max=most)
        table = torch.full((num_slots * (most + 1),), size, device=labels.device)
        table = table.scatter(0, places, rows).view(num_slots, most + 1)
        unused = slots == num
        table = torch.where(unused[:, None], table[0], table)
        slots = torch.where(unused, slots[0], slots).clamp(max=num - 1)
        state, share = self.bank[slots], 1 - self.momentum
        for k in range(most):
            row = table[:, k]
            mixed = self.momentum * state + share * x[row.clamp(max=size - 1)]
            state = torch.where((row < size)[:, None], F.normalize(mixed, dim=1), state)
        self.bank[slots] = state

    def to(self, device: torch.device | str) -> ClusterMemory:
        """Moves the bank to `device`; returns self."""
        self.bank = self.bank.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs, with a copy of the bank."""
        return {
            "bank": self.bank.clone(),
            "momentum": self.momentum,
            "temperature": self.temperature,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state; the bank stays on this memory's device, its size may change."""
        self.bank = state["bank"].to(self.bank.device).clone()
        self.momentum = state["momentum"]
        self.temperature = state["temperature"]


class HybridMemory:
    """Two banks of one set of classes: their mean rows, and the rows that are hardest for them.

    Attributes:
        mean, hard: (C, D) unit rows, float32.
        momentum: share of the old prototype that an update keeps, in [0, 1].

    Reference: BMIL, both stages, the bank update (momentum 0.1).
    """

    def __init__(self, bank: Tensor, *, momentum: float) -> None:
        """Starts both banks as copies of `bank`; its rows must have unit length."""
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1]")
        self.mean = torch.as_tensor(bank).detach().float().clone()
        self.hard = self.mean.clone()
        self.momentum = momentum

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> None:
        """Moves the prototypes of the classes that occur, once each, whatever the rows' order.

        With R the rows of class c: mean_c goes towards the mean of R, hard_c towards the row of R
        with the least product with the old mean_c (the first such row).

        Args:
            x: (B, D) unit rows.
            labels: (B,) int64 class of each row; -1 is skipped.

        Raises:
            ValueError: not one label per row; on the CPU also a label that is no class. A device
                stops at one.
        """
        if labels.shape != (len(x),):
            raise ValueError(f"labels have shape {tuple(labels.shape)} for {len(x)} rows")
        if labels.device.type == "cpu":
            _require_rows(labels.numpy(), len(self.mean))
        _assert_rows(labels, len(self.mean))
        x = x.detach().to(self.mean.dtype)
        # (C, B) products and no loop: no class is asked for, so no device has to answer
        members = torch.arange(len(self.mean), device=labels.device)[:, None] == labels[None, :]
        counts = members.sum(dim=1, keepdim=True)
        means = members.to(x.dtype) @ x / counts.clamp(min=1)
        hardest = (self.mean @ x.T).masked_fill(~members, torch.inf).argmin(dim=1)
        for name, towards in (("mean", means), ("hard", x[hardest])):
            bank = getattr(self, name)
            moved = F.normalize(self.momentum * bank + (1 - self.momentum) * towards, dim=1)
            setattr(self, name, torch.where(counts > 0, moved, bank))

    def to(self, device: torch.device | str) -> HybridMemory:
        """Moves both banks to `device`; returns self."""
        self.mean, self.hard = self.mean.to(device), self.hard.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of both banks."""
        return {"mean": self.mean.clone(), "hard": self.hard.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse; both banks stay on this memory's device."""
        self.mean, self.hard = (state[n].to(self.mean.device).clone() for n in ("mean", "hard"))


def _require_rows(labels: np.ndarray, num_rows: int) -> None:
    if not len(labels):
        return
    for label in (labels.min(), labels.max()):
        if not OUTLIER <= label < num_rows:
            raise ValueError(
                f"label {label}: the bank has {num_rows} rows, so labels are 0 to {num_rows - 1}, "
                "or -1 for none"
            )


def _assert_rows(labels: Tensor, num_rows: int) -> None:
    """`_require_rows` on a device, which nothing waits for."""
    if labels.device.type != "cpu":
        inside = ((labels >= OUTLIER) & (labels < num_rows)).all()
        torch._assert_async(inside, f"labels are -1 to {num_rows - 1}")


def swap(
    bank_a: Tensor, bank_b: Tensor, pairs: Pairs, *, keep: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Exchanges the prototypes of matched clusters, both from copies.

    a <- normalize(keep * a + (1 - keep) * b) and b <- normalize(keep * b + (1 - keep) * a), each
    reading the old values.

    Args:
        bank_a, bank_b: (C_a, D) and (C_b, D) unit rows; not changed.
        pairs: (M, 2) matched rows, one to one.
        keep: share of the own prototype, in [0, 1].

    Returns:
        New (C_a, D) and (C_b, D), unit rows.

    Reference: CCLNet, stages 0 and 2, swap, `cclnet.swap.order=simultaneous`.
    """
    rows_a, rows_b = _columns(pairs, bank_a.device)
    new_a = _blend(bank_a, rows_a, bank_b[rows_b], keep)
    new_b = _blend(bank_b, rows_b, bank_a[rows_a], keep)
    return new_a, new_b


def swap_sequential(
    bank_a: Tensor, bank_b: Tensor, pairs: Pairs, *, keep: float = 0.1
) -> tuple[Tensor, Tensor]:
    """`swap` in the public code's order: bank_b reads what bank_a has already become.

    Reference: CCLNet, stages 0 and 2, swap, `cclnet.swap.order=sequential`.
    """
    rows_a, rows_b = _columns(pairs, bank_a.device)
    new_a = _blend(bank_a, rows_a, bank_b[rows_b], keep)
    return new_a, _blend(bank_b, rows_b, new_a[rows_a], keep)


def swap_rows(
    bank_a: Tensor,
    bank_b: Tensor,
    pairs: Pairs,
    labels_a: Tensor,
    labels_b: Tensor,
    *,
    keep: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """`swap` for the prototypes of one batch: a pair changes bank_a only where its a is among
    `labels_a`, and bank_b only where its b is among `labels_b`.

    Args:
        bank_a, bank_b, pairs, keep: as in `swap`.
        labels_a, labels_b: int64 labels of the global batch; -1 names nothing.

    Returns:
        New (C_a, D) and (C_b, D), unit rows.

    Reference: CCLNet, stages 0 and 2, swap within a step.
    """
    rows_a, rows_b = _columns(pairs, bank_a.device)
    in_a, in_b = _among(rows_a, labels_a, bank_a), _among(rows_b, labels_b, bank_b)
    new_a = _blend(bank_a, rows_a, bank_b[rows_b], keep, where=in_a)
    new_b = _blend(bank_b, rows_b, bank_a[rows_a], keep, where=in_b)
    return new_a, new_b


def swap_rows_sequential(
    bank_a: Tensor,
    bank_b: Tensor,
    pairs: Pairs,
    labels_a: Tensor,
    labels_b: Tensor,
    *,
    keep: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """`swap_rows` in the public code's order: bank_b reads what bank_a has already become."""
    rows_a, rows_b = _columns(pairs, bank_a.device)
    in_a, in_b = _among(rows_a, labels_a, bank_a), _among(rows_b, labels_b, bank_b)
    new_a = _blend(bank_a, rows_a, bank_b[rows_b], keep, where=in_a)
    return new_a, _blend(bank_b, rows_b, new_a[rows_a], keep, where=in_b)


def share(bank_a: Tensor, bank_b: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Gives both clusters of a pair one prototype, the normalized mean of the two.

    Args:
        bank_a, bank_b, pairs: as in `swap`.

    Returns:
        New (C_a, D) and (C_b, D), unit rows; the unmatched rows are unchanged.

    Reconstruction: ours, the strongest coupling of two banks; no paper's rule.
    """
    return swap(bank_a, bank_b, pairs, keep=0.5)


def _blend(
    bank: Tensor, rows: Tensor, other: Tensor, keep: float, *, where: Tensor | None = None
) -> Tensor:
    """A copy of `bank` whose given rows are mixed with `other` and normalized, all or some."""
    new, own = bank.clone(), bank[rows]
    mixed = F.normalize(keep * own + (1 - keep) * other, dim=1)
    new[rows] = mixed if where is None else torch.where(where[:, None], mixed, own)
    return new


def _columns(pairs: Pairs, device: torch.device) -> tuple[Tensor, Tensor]:
    both = torch.as_tensor(pairs, device=device)
    return both[:, 0], both[:, 1]


def _among(rows: Tensor, labels: Tensor, bank: Tensor) -> Tensor:
    """(M,) bool: whether each row of the bank is one of the labels."""
    labeled = torch.zeros(len(bank) + 1, dtype=torch.bool, device=bank.device)
    return labeled.index_fill_(0, torch.where(labels == OUTLIER, len(bank), labels), True)[rows]
