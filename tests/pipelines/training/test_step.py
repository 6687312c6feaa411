"""A step in parts: the mean gradient, every row once, the memory after each part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.config.trainer import TrainerConfig
from pipelines.errors import UserError
from pipelines.training import step
from pipelines.training.global_loss import Means
from reid_core.types import Batch, Modality, Term

VISIBLE = Modality.VISIBLE


class Sums:
    """A stage whose loss is the mean of a linear map of the pixels."""

    def __init__(self) -> None:
        self.module = nn.Linear(3, 1, bias=False)
        self.seen: list[list[int]] = []
        self.updates = 0

    def terms(self, model: nn.Module, batch: dict[Modality, Batch], gather: Any) -> Any:
        rows = batch[VISIBLE].rows
        views = batch[VISIBLE].images.flatten(1).float().view(len(rows), -1, 3)
        self.seen.append(rows.tolist())
        return {"sum": Term(model(views).mean(), len(rows))}

    def update(self, gather: Any) -> None:
        self.updates += 1


def batch() -> dict[Modality, Batch]:
    images = torch.arange(8 * 2 * 3, dtype=torch.uint8).view(16, 3, 1, 1)
    return {VISIBLE: Batch(images, torch.arange(8), torch.zeros(8, dtype=torch.int64))}


def gradient(parts: int) -> tuple[Tensor, Sums, dict[str, float]]:
    torch.manual_seed(0)
    stage, means = Sums(), Means()
    optimizer = torch.optim.SGD(stage.module.parameters(), lr=0.0)
    settings = TrainerConfig(gradient_accumulation=parts)
    step.take(stage, stage.module, optimizer, batch(), means, settings=settings)  # type: ignore[arg-type]
    assert stage.module.weight.grad is not None
    return stage.module.weight.grad, stage, means.read()


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_give_the_gradient_and_the_means_of_the_whole(parts: int) -> None:
    whole, _, whole_means = gradient(1)
    cut, stage, cut_means = gradient(parts)
    torch.testing.assert_close(cut, whole)
    assert cut_means["sum"] == pytest.approx(whole_means["sum"])
    assert [row for rows in stage.seen for row in rows] == list(range(8))
    assert stage.updates == parts


def test_a_broken_loss_is_neither_read_nor_kept() -> None:
    means = Means()
    means.add(("sum",), torch.tensor([torch.nan]), torch.tensor([8.0]))
    for ask in (means.read, means.state_dict):
        with pytest.raises(UserError, match=r"not finite \(sum\): lower the learning rate"):
            ask()
