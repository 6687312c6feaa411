"""Embedding the rows of a split in row order, one contiguous share per worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipelines.data import ImageFiles
from reid_core.transforms import normalise
from reid_core.types import Modality

Head = Callable[[Tensor, Modality], Tensor]


@torch.inference_mode()
def embed(
    head: Head,
    files: ImageFiles,
    modality: Modality,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Features of some rows, test transform only.

    Args:
        head: (normalised images, modality) -> (B, D); `TwoStemEncoder.embed` or `.project` of a
            model in eval mode.
        files: where the images are.
        modality: of the rows.
        rows: (n,) row ids of the modality, features come in this order.
        batch_size: images per forward pass.
        device: of the model.

    Returns:
        (n, D) float32 on the device.
    """
    features = [
        head(normalise(torch.from_numpy(images).to(device)), modality).float()
        for images in _decoded(files, modality, rows, batch_size)
    ]
    if not features:
        empty = torch.zeros(1, 3, files.height, files.width, device=device)
        return head(empty, modality).float()[:0]
    return torch.cat(features)


def _decoded(
    files: ImageFiles, modality: Modality, rows: np.ndarray, batch_size: int
) -> Iterator[np.ndarray]:
    """Batches of decoded images; the next one is decoded while the current one is used."""
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(files.read, modality, batch) for batch in batches[:2]]
        for i in range(len(batches)):
            yield ahead[i].result()
            ahead[i] = None  # type: ignore[call-overload]  # frees the images
            if i + 2 < len(batches):
                ahead.append(pool.submit(files.read, modality, batches[i + 2]))
