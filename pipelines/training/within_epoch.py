"""What a run goes on from when it ends within an epoch: a batch number, and what steps changed.

The plan of an epoch follows from features that nobody has any more, so it is kept too: going on
costs neither embedding nor clustering. Nothing random is kept: every step draws from its own seed.
The file stands beside the checkpoints, which are of finished epochs, and belongs to the epoch after
the checkpoint that it names; after any other one it is passed over.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.plan import Plan
from pipelines.distributed import collectives
from pipelines.errors import UserError
from pipelines.runs import checkpoint
from pipelines.runs.records import EpochLine, State, Within
from pipelines.storage.files import replace_file
from pipelines.training.epoch import EpochStart
from pipelines.training.global_loss import Means
from reid_core.stage import Epoch
from reid_core.types import Modality

log = logging.getLogger(__name__)
_ASK_S = 2.0  # between two questions to the cluster, each of which all workers wait for


class Order(IntEnum):
    """What workers are to do after a step."""

    NOTHING = 0
    KEEP = 1
    STOP = 2


class StoppedError(Exception):
    """A notice has said to stop; what was kept is what the run goes on from."""


def stop_if(order: Order) -> None:
    """Stop where the order says so.

    Raises:
        StoppedError: it does.
    """
    if order == Order.STOP:
        raise StoppedError


Notice = Callable[[], Order]
"""What the outside asks for: KEEP where a machine will be taken away, STOP where the run is ended.

All processes of a group ask together, the same number of times; the answer of rank 0 counts.
"""


def nothing() -> Order:
    """A notice that never comes."""
    return Order.NOTHING


class Pauses:
    """After which steps all workers together keep what they have, or stop.

    Args:
        notice: see `Notice`.
        every_s: seconds of an epoch between two states that are kept; 0 for none but at a notice.
    """

    def __init__(self, notice: Notice, every_s: float) -> None:
        self._notice, self._every_s = notice, every_s
        self._ask_s = min(_ASK_S, every_s) if every_s else _ASK_S
        self.begin()

    def begin(self) -> None:
        """An epoch begins; what was finished before it is kept."""
        self._asked = self._kept = time.monotonic()
        self._steps, self._until = 0, 1

    def ask(self) -> Order:
        """The order of this moment; every worker must ask."""
        asked, now = self._notice(), time.monotonic()
        if asked == Order.NOTHING and self._every_s and now - self._kept >= self._every_s:
            asked = Order.KEEP
        pace = max(self._steps, 1) / max(now - self._asked, 1e-3)
        until = min(max(1, int(pace * self._ask_s)), 1000)
        order, until = divmod(collectives.broadcast_int(1024 * asked + until), 1024)
        if order != Order.NOTHING:
            self._kept = now
        self._asked, self._steps, self._until = now, 0, until
        return Order(order)

    def after_step(self) -> Order:
        """The order after one more step; asked for every two seconds or so."""
        self._steps += 1
        return Order.NOTHING if self._steps < self._until else self.ask()


@dataclass
class Underway:
    """An epoch while it is trained.

    Attributes:
        start: what was decided before it, with the batch to go on with.
        metrics: of the epoch's log line, known so far.
        means: of its losses.
    """

    start: EpochStart
    metrics: EpochLine
    means: Means = field(default_factory=Means)

    def state_dict(self, stage: str, epoch: int, batch: int) -> Within:
        """Tensors and plain values; every worker must ask, since losses are put together."""
        plan, decided = self.start.plan, self.start.epoch
        return {
            "stage": stage,
            "epoch": epoch,
            "batch": batch,
            "means": self.means.state_dict(),
            "metrics": json.dumps(self.metrics),
            "plan": {
                "rows": _tensors(plan.rows),
                "labels": _tensors(plan.labels),
                "seeds": _tensors({m: x.view(np.int64) for m, x in plan.seeds.items()}),
                "captions": None if plan.captions is None else torch.from_numpy(plan.captions),
                "kinds": list(plan.kinds),
            },
            "decided": {
                "labels": _tensors(decided.labels),
                "prototypes": _tensors(decided.prototypes),
                "pairs": torch.from_numpy(decided.pairs),
                "arrays": _tensors(decided.arrays),
                "repeats": {str(m): int(n) for m, n in decided.repeats.items()},
            },
        }

    @classmethod
    def from_state(cls, state: Within, device: torch.device) -> Underway:
        """The inverse; the losses so far are rank 0's."""
        plan, epoch = state["plan"], state["decided"]
        seeds = {m: x.view(np.uint64) for m, x in _by_modality(plan["seeds"]).items()}
        start = EpochStart(
            epoch=Epoch(
                labels=_by_modality(epoch["labels"]),
                prototypes=_by_modality(epoch["prototypes"]),
                pairs=epoch["pairs"].numpy(),
                arrays={name: x.numpy() for name, x in epoch["arrays"].items()},
                repeats={Modality(m): n for m, n in epoch["repeats"].items()},
            ),
            plan=Plan(
                rows=_by_modality(plan["rows"]),
                labels=_by_modality(plan["labels"]),
                seeds=seeds,
                captions=None if plan["captions"] is None else plan["captions"].numpy(),
                kinds=tuple(plan["kinds"]),
                first=int(state["batch"]),
            ),
            metrics={},
            seconds={},
        )
        means = Means()
        share = 1 if collectives.rank() == 0 else 0
        means.load_state_dict({terms: share * x for terms, x in state["means"].items()}, device)
        return cls(start, json.loads(state["metrics"]), means)


def save(run_dir: Path, state: State) -> None:
    """Keep a run's state within an epoch; the one before stays until it is whole."""
    content = {"format": checkpoint.FORMAT, **state}
    replace_file(run_dir / checkpoint.WITHIN, lambda file: torch.save(content, file))


def load(run_dir: Path, state: State | None) -> State | None:
    """What to go on from: the state within an epoch, where it follows the checkpoint's.

    Args:
        run_dir: of the run.
        state: of the newest checkpoint, None without.
    """
    if not (run_dir / checkpoint.WITHIN).exists():
        return state
    try:
        within = checkpoint.load_to_go_on_from(run_dir / checkpoint.WITHIN)
    except UserError as error:  # cut off by a machine that went down
        if collectives.rank() == 0:
            log.warning("what was kept within an epoch is lost, the epoch is repeated: %s", error)
        return state
    after = within["progress"]["stage"], within["progress"]["epoch"]
    known = ("", -1)
    if state is not None:
        known = state["progress"]["stage"], state["progress"]["epoch"]
    return within if after == known else state


def forget(run_dir: Path) -> None:
    """The run is over: nothing within an epoch is gone on from."""
    (run_dir / checkpoint.WITHIN).unlink(missing_ok=True)


def mark(run_dir: Path) -> int:
    """A number that changes when something within an epoch is kept."""
    try:
        return (run_dir / checkpoint.WITHIN).stat().st_mtime_ns
    except OSError:
        return 0


def _tensors(arrays: Mapping[Modality, np.ndarray] | Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {str(name): torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}


def _by_modality(tensors: Mapping[str, Tensor]) -> dict[Modality, np.ndarray]:
    return {Modality(name): x.numpy() for name, x in tensors.items()}
