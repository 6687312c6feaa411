"""More of what identities outside have reported; each test names where."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.cluster import session
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.runs import runlog
from pipelines.training import deterministic
from reid_core import images
from reid_core.models import backbones
from tests.pipelines import small_runs

Make = Callable[..., RunConfig]


def test_a_temporary_folder_that_is_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """ray#7945, verl#1120."""
    monkeypatch.setenv("TMPDIR", "/tmp/slurm_jobdir_" + "x" * 70)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with pytest.raises(UserError, match=r"TMPDIR=/tmp/slurm.* too long .* RAY_TMPDIR=/tmp"):
        session._check_temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    session._check_temporary_folder()


class Evil:
    """Ends the process where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


FOREIGN: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "prefix": lambda good: {f"module.{k}": v for k, v in good.items()},
    "below model": lambda good: {"model": good, "epoch": 3},
    "below state_dict": lambda good: {"state_dict": {f"module.{k}": v for k, v in good.items()}},
    "half": lambda good: {k: v.half() for k, v in good.items()},
    "head": lambda good: {**good, "classifier.weight": torch.zeros(751, 8)},
    "compiled": lambda good: {f"_orig_mod.{k}": v for k, v in good.items()},
    "code": lambda good: {**good, "a": Evil()},
    "a list": lambda good: list(good.values()),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_weights_are_loaded_or_refused_by_name(tmp_path: Path, name: str) -> None:
    """CLIP-ReID#8, #20; Person_reID_baseline_pytorch#103."""
    small = "crossreid-small"
    good = backbones.load(small, "bundled").model.state_dict()
    torch.save(FOREIGN[name](good), tmp_path / "w.pt")
    try:
        backbones.load(small, str(tmp_path / "w.pt"))
    except ValueError as error:
        said = str(error)
    else:
        said = "loaded"
    refused = {"head", "code", "a list", "compiled"}
    assert said == "loaded" if name not in refused else "w.pt" in said, said


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "MPO", "progressive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "CMYK"])
def test_odd_images_have_the_same_pixels_everywhere(format: str, mode: str) -> None:
    """ultralytics#21645, ms-swift#10095, ray#38030."""
    rng = np.random.default_rng(1)
    whole = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)).resize((48, 96))
    file, options = io.BytesIO(), {"progressive": True} if format == "progressive" else {}
    try:
        whole.convert(mode).save(file, "JPEG" if options else format, **options)
    except (OSError, ValueError):
        pytest.skip(f"{format} holds no {mode}")
    data = file.getvalue()
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    pixels = images.decode(data, height=96, width=48)
    assert np.abs(pixels.astype(int) - shown).max() <= 2
    for broken in (data[: len(data) // 2], b"", b"<html>404</html>"):
        with pytest.raises(ValueError, match=r"\w"):
            images.decode(broken, height=64, width=32)


@pytest.mark.slow
@pytest.mark.night
def test_batches_of_one_image_train_with_finite_losses(tmp_path: Path) -> None:
    """Fuss-Free-structure#1, video_reid#4: BatchNorm has nothing to average."""
    small_runs.write_trees(tmp_path)
    stages = [f"cclnet.{stage}" for stage in ("prepare", "align")]
    one = [f"{s}.{key}=1" for s in stages for key in ("clusters_per_batch", "instances", "epochs")]
    run = small_runs.open_run(small_runs.make_config("cclnet", tmp_path, *one), tmp_path / "run")
    remaining = small_runs.Kept(tmp_path / "kept")
    deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
    losses = [line["losses"]["total"] for line in runlog.read_metrics(tmp_path / "run")]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


def test_more_workers_than_images_of_a_batch_are_refused(make_config: Make, tmp_path: Path) -> None:
    """ray#19644, #36256."""
    with pytest.raises(UserError, match=r"trainer\.num_workers=64"):
        gate.check(make_config("trainer.num_workers=64"), tmp_path)
