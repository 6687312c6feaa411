"""What fp32 means is set, not inherited."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError

from pipelines.config.trainer import TrainerConfig
from pipelines.distributed.precision import set_tf32


@pytest.fixture(autouse=True)
def back_to_exact() -> Iterator[None]:
    yield
    set_tf32(False)


@pytest.mark.parametrize("allowed", [True, False])
def test_products_and_convolutions_are_set_alike(allowed: bool) -> None:
    set_tf32(allowed)
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert torch.backends.cuda.matmul.allow_tf32 == allowed


def test_tf32_is_off_and_strict_training_refuses_what_rounds() -> None:
    assert not TrainerConfig().allow_tf32
    for rounding in ({"allow_tf32": True}, {"gradient_compression": "bf16"}):
        with pytest.raises(ValidationError, match="to the bit"):
            TrainerConfig.model_validate({"strict": True, **rounding})
