"""A run directory with a checkpoint of a small, untrained encoder, and images to embed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines import checkpoint
from pipelines import config as configuration
from reid_core.models import clip
from reid_core.models.encoders import TwoStemEncoder


def save_run(run_dir: Path, *, stage: str = "align", pretrained: str = "bundled") -> Path:
    """A run directory as training leaves it, with a checkpoint of the bundled weights."""
    config = configuration.validate(
        {
            "data": {"root": str(run_dir / "data")},
            "model": {"name": clip.SMALL, "pretrained": pretrained, "height": 64, "width": 32},
        },
        source="test",
    )
    encoder = TwoStemEncoder(clip.load(clip.SMALL, pretrained), height=64, width=32)
    state = {
        "module": encoder.state_dict(),
        "config": config.model_dump(mode="json"),
        "progress": {"stage": stage, "epoch": 0},
    }
    checkpoint.save(run_dir / "checkpoint_0", state, {})
    return run_dir


def draw_folder(root: Path, *, visible: int, infrared: int, first: int = 0) -> Path:
    """`visible/N.png` and `infrared/N.png`, every one different, numbered from `first`."""
    for name, last in (("visible", visible), ("infrared", infrared)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, last):
            rng = np.random.default_rng((number, len(name)))
            coarse = rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((32, 64), Image.Resampling.BILINEAR)
            image.save(root / name / f"{number}.png")
    return root


def random_rows(count: int, dim: int, *, seed: int) -> np.ndarray:
    """(count, dim) float32 unit rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator)).numpy()
