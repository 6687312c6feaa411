"""Embedding the rows of a split in row order, one contiguous share per worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from reid_core.types import Modality

Head = Callable[[Tensor, Modality], Tensor]


class Rows(Protocol):
    """What can be embedded: `pipelines.data.Inputs`, or the same with images replaced."""

    def num_rows(self, modality: Modality) -> int: ...

    def read(self, modality: Modality, rows: np.ndarray) -> np.ndarray: ...


@torch.inference_mode()
def embed(
    head: Head,
    inputs: Rows,
    modality: Modality,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Features of some rows, test transform only.

    Args:
        head: (uint8 images or token ids, modality) -> (B, D); `Encoder.embed`, or a projection, of
            a model in eval mode.
        inputs: where the rows are.
        modality: of the rows.
        rows: (n,) row ids of the modality, features come in this order.
        batch_size: images per forward pass.
        device: of the model.

    Returns:
        (n, D) float32 on the device.
    """
    features = [
        head(torch.from_numpy(batch).to(device), modality).float()
        for batch in _read_ahead(inputs, modality, rows, batch_size)
    ]
    if not features:
        some = torch.from_numpy(inputs.read(modality, np.arange(1))).to(device)
        return head(some, modality).float()[:0]
    return torch.cat(features)


def _read_ahead(
    inputs: Rows, modality: Modality, rows: np.ndarray, batch_size: int
) -> Iterator[np.ndarray]:
    """Batches of inputs; the next ones are read and decoded while the current one is used."""
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(inputs.read, modality, batch) for batch in batches[:2]]
        for i in range(len(batches)):
            yield ahead[i].result()
            ahead[i] = None  # type: ignore[call-overload]  # frees it
            if i + 2 < len(batches):
                ahead.append(pool.submit(inputs.read, modality, batches[i + 2]))
