"""Vectors of ever more images: memory and rate of `crossreid embed`, against a plain loop.

The source is a folder of small images, each of them linked many times, so that only the number of
files grows. The rival is what scripts do: a torch DataLoader with two processes, one forward pass
per batch on all cores, and every vector kept in memory until the end. Both decode and embed by the
same code, each in a process tree of its own; the rate is that of the whole command, start included.

    python -m benchmarks.embedding runs/demo [--images 4000 16000 64000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.watched import run_module

DIFFERENT = 200
BATCH = 64


def draw(root: Path, num_images: int) -> Path:
    """A folder `visible` of `num_images` files, DIFFERENT of them different."""
    from reid_core.datasets import synthetic, sysu
    from reid_core.types import Modality

    identities = root / "identities"
    if not identities.is_dir():
        synthetic.write(identities, num_identities=40, seed=0)
    train = sysu.read(identities).train
    seen = [train.samples[i].image for i in train.rows(Modality.VISIBLE)][:DIFFERENT]
    folder = root / str(num_images) / "visible"
    folder.mkdir(parents=True)
    for number in range(num_images):
        image = identities / seen[number % len(seen)]
        os.link(image, folder / f"{number:06d}{image.suffix}")
    return folder.parent


def plain(checkpoint: Path, source: Path, out: Path) -> None:
    """The rival, in this process."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    from pipelines.data.decode import read_image
    from pipelines.evaluation.encoder import open_encoder
    from reid_core.types import Modality

    torch.set_num_threads(os.cpu_count() or 1)
    loaded = open_encoder(checkpoint)
    size = loaded.config.model

    def read(path: Path) -> torch.Tensor:
        return torch.from_numpy(read_image(path, height=size.height, width=size.width))

    result = []
    images = _Read(sorted(source.rglob("*.*")), read)
    with torch.inference_mode():
        for batch in DataLoader(images, batch_size=BATCH, num_workers=2):
            on_device = batch.to(loaded.device)
            features = loaded.encoder.embed(on_device, Modality.VISIBLE)
            result.append(features.cpu().numpy().astype("float16"))
    np.save(out, np.concatenate(result))


class _Read:
    """Paths as a map-style data set."""

    def __init__(self, paths: list[Path], read: Callable) -> None:
        self._paths, self._read = paths, read

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> object:
        return self._read(self._paths[index])


def main() -> None:
    """Both at every size; a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a run directory, such as runs/demo")
    parser.add_argument("--images", type=int, nargs="*", default=[4000, 16000, 64000])
    parser.add_argument("--plain", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        plain(given.checkpoint, *given.plain)
        return
    print(
        "| images | plain loop s | `crossreid embed` s | plain loop MiB | `crossreid embed` MiB |"
    )
    print("|---|---|---|---|---|")
    checkpoint = str(given.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in given.images:
            source, out = draw(root, number), root / f"{number}-out"
            seconds, peaks = [], []
            for module, arguments in (
                ("benchmarks.embedding", [checkpoint, "--plain", str(source), f"{out}.npy"]),
                ("pipelines.cli", ["embed", checkpoint, str(source), str(out)]),
            ):
                began = time.perf_counter()
                peaks.append(run_module(module, arguments))
                seconds.append(time.perf_counter() - began)
            cells = [f"{number:,}", *(f"{s:.0f}" for s in seconds)]
            cells += [f"{peak / 2**20:.0f}" for peak in peaks]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
