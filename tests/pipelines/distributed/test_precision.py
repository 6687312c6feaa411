"""What fp32 means is set, not inherited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipelines.config.trainer import TrainerConfig
from pipelines.distributed.precision import set_tf32
from pipelines.evaluation.encoder import open_encoder
from pipelines.runs import checkpoint
from pipelines.training.opening import Opener
from tests.pipelines import small_runs
from tests.pipelines.trained import save_run


@pytest.fixture(autouse=True)
def back_to_exact() -> Iterator[None]:
    yield
    set_tf32(False)


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("allowed", [True, False])
def test_products_and_convolutions_are_set_alike(allowed: bool, before: str) -> None:
    torch.set_float32_matmul_precision(before)  # as a notebook may have done
    set_tf32(allowed)
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert torch.backends.cuda.matmul.allow_tf32 == allowed
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    of_cpus: Any = torch.backends.mkldnn
    assert of_cpus.matmul.fp32_precision not in ("tf32", "bf16")


def test_what_opens_a_job_or_an_encoder_sets_it(trees: Path, tmp_path: Path) -> None:
    """Training and every use of what was trained, whatever the process did before."""
    run = save_run(tmp_path / "run")
    state = checkpoint.load(run / "checkpoint_0")
    for allowed, precision in ((True, "high"), (False, "highest")):
        set_tf32(not allowed)
        config = small_runs.make_config("cclnet", trees, f"trainer.allow_tf32={allowed}".lower())
        Opener(small_runs.open_run(config, tmp_path / precision).job, small_runs.CPU)
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == allowed
        set_tf32(not allowed)
        state["config"]["trainer"]["allow_tf32"] = allowed
        checkpoint.save(tmp_path / f"with-{precision}" / "checkpoint_0", state, {})
        open_encoder(tmp_path / f"with-{precision}")
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == allowed


def test_tf32_is_off_and_strict_training_refuses_what_rounds() -> None:
    assert not TrainerConfig().allow_tf32
    for rounding in ({"allow_tf32": True}, {"gradient_compression": "bf16"}):
        with pytest.raises(ValidationError, match="to the bit"):
            TrainerConfig.model_validate({"strict": True, **rounding})
