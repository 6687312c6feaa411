"""Batches ahead of their use: the same ones, in their order, on the CPU untouched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.distributed.prefetch import Prefetch, mapped

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Part:
    rows: Tensor
    mine: slice
    more: dict[str, tuple[Tensor, None]]


def test_on_the_cpu_batches_pass_through_one_at_a_time() -> None:
    taken: list[int] = []

    def stream():
        for number in range(3):
            taken.append(number)
            yield {"x": torch.tensor([number])}

    given = stream()
    batches = Prefetch(given, CPU)
    first = next(batches)
    assert taken == [0]
    assert [int(first["x"]), *(int(batch["x"]) for batch in batches)] == [0, 1, 2]
    assert next(batches, None) is None


def test_every_tensor_of_a_nest_is_replaced_and_nothing_else() -> None:
    part = Part(torch.tensor([1]), slice(0, 2), {"a": (torch.tensor([2]), None)})
    doubled = mapped({"p": part}, lambda x: 2 * x)["p"]
    assert (int(doubled.rows), doubled.mine) == (2, slice(0, 2))
    assert int(doubled.more["a"][0]) == 4
    assert doubled.more["a"][1] is None
    assert int(part.rows) == 1
