"""What an epoch's line says about speed, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipelines.config.trainer import TrainerConfig
from pipelines.training import speed as measured
from pipelines.training.speed import Speed, peak_flops
from reid_core.types import Term

CPU = torch.device("cpu")


class Sums:
    """A stage whose loss is the sum of a linear map of its batch."""

    def __init__(self) -> None:
        self.module = nn.Linear(30, 20, bias=False)

    def terms(self, model: nn.Module, batch: Tensor, gather: object) -> dict[str, Term]:
        return {"sum": Term(model(batch).sum(), len(batch))}

    def update(self, gather: object) -> None:
        """No memory."""


@pytest.mark.parametrize("compiled", [False, True])
def test_operations_of_the_first_step_are_those_of_its_products(compiled: bool) -> None:
    settings, stage, batch, steps = TrainerConfig(compile=compiled), Sums(), torch.ones(4, 30), []
    speed = Speed(stage, settings, CPU)

    def take() -> None:
        steps.append(stage.module(batch).sum().backward())

    for _ in range(3):
        speed.step(take, batch)
    line = speed.of_epoch(120, {"embed": 5.0, "input": 1.0, "step": 3.0, "checkpoint": 1.0})
    # forward and the gradient of the weights; the input needs none
    assert line["flops_per_step"] == 2 * (2 * 4 * 30 * 20)
    assert line["images_per_s"] == 30
    assert line["share"] == {"embed": 0.5, "input": 0.1, "step": 0.3, "checkpoint": 0.1}
    assert (line["mfu"], line["device_memory_bytes"]) == (None, None)
    assert len(steps) == 3


def test_the_share_of_the_peak_and_the_memory_are_of_this_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of 2 (2 x 4 x 30 x 20) = 9,600 operations on a card of 14,400 a second."""
    device, stage, batch = torch.device("cuda"), Sums(), torch.ones(4, 30)
    memory = [7 << 30, 5 << 30]
    monkeypatch.setattr(measured, "peak_flops", lambda of, _: 14_400.0 if of == device else None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda of: memory[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda of: memory.pop(0))
    speed = Speed(stage, TrainerConfig(), device)
    for num_steps, seconds, expected in (
        (3, {"input": 1.0, "step": 3.0}, 0.5),
        (1, {"step": 2.0}, 1 / 3),
    ):
        for _ in range(num_steps):
            speed.step(lambda: stage.module(batch).sum().backward(), batch)
        expected_memory = memory[0]
        line = speed.of_epoch(0, {"embed": 5.0, **seconds})
        assert line["mfu"] == pytest.approx(expected)
        assert line["device_memory_bytes"] == expected_memory
        assert line["images_per_s"] is None  # of cached features
    assert not memory  # the peak was set back after each


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"precision": "bf16"}, 989e12), ({"allow_tf32": True}, 494e12), ({}, 67e12)],
)
def test_the_peak_is_that_of_the_card_and_the_precision(
    settings: dict, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda"), TrainerConfig(**settings)) == expected
    for name in ("Unheard Of", "NVIDIA L40", "NVIDIA RTX A1000 Laptop GPU"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(torch.device("cuda"), TrainerConfig(**settings)) is None
