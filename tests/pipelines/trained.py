"""A run directory with a checkpoint of a small, untrained encoder, and images to embed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.config import run as configuration
from pipelines.evaluation.encoder import Space, describe, open_encoder
from pipelines.retrieval import vectors
from pipelines.retrieval.embedder import Embedder, Work
from pipelines.retrieval.sources import Source, parts
from pipelines.retrieval.vectors import VectorInfo
from pipelines.runs import checkpoint
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder


def save_run(
    run_dir: Path,
    *,
    stage: str = "align",
    module: dict[str, torch.Tensor] | None = None,
    kind: str = "sysu",
    trial: int = 1,
    model: str = backbones.SMALL,
    fit: str = "train",
) -> Path:
    """A run directory as training leaves it, with a checkpoint of the bundled weights.

    Args:
        run_dir: made if need be.
        stage: that the checkpoint was written in.
        module: what it holds instead of an encoder.
        kind, trial: of what it claims to be trained on.
        model: whose bundled weights they are.
        fit: the splits that it claims to be trained on.
    """
    config = configuration.validate(
        {
            "data": {"kind": kind, "root": str(run_dir / "data"), "trial": trial, "fit": fit},
            "model": {"name": model, "pretrained": "bundled", "height": 64, "width": 32},
        },
        source="test",
    )
    encoder = ImageEncoder(backbones.load(model, "bundled"), height=64, width=32)
    with torch.no_grad():  # modalities that differ, as after training
        encoder.infrared_stem.conv1.weight.mul_(1.2)  # type: ignore[union-attr, operator]
    state = {
        "module": encoder.state_dict() if module is None else module,
        "config": config.model_dump(mode="json"),
        "progress": {"stage": stage, "epoch": 0},
    }
    checkpoint.save(run_dir / "checkpoint_0", state, {})
    return run_dir


def with_data(run: Path, out: Path, **settings: object) -> Path:
    """The same run at another place, as if it had been trained with other settings of its data."""
    state = checkpoint.load(run / "checkpoint_0")
    state["config"]["data"] |= settings
    checkpoint.save(out / "checkpoint_0", state, {})
    return out


def embed_alone(run: Path, source: Source, out: Path, *, space: Space = "descriptor") -> Path:
    """What `crossreid embed --dtype float32` leaves, in this process."""
    loaded, root = open_encoder(run, space=space), source.root
    dim = loaded.encoder.feature_dim
    info = VectorInfo(loaded.fingerprint, space, "float32", dim, str(root), str(source.path))
    vectors.claim(out, info, run)
    embedder = Embedder(work_of(run, root, out, space=space), threads=1)
    planned = [part.key for part in parts(source.samples()) if embedder.embed(part)]
    vectors.finish(out, planned, [])
    return out


def work_of(run: Path, root: Path, out: Path, *, space: Space = "descriptor") -> Work:
    """What an actor of `crossreid embed --dtype float32` is given."""
    folder = checkpoint.find(run)
    return Work(folder, describe(folder).fingerprints[space], space, root, out, "float32", 32)


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
