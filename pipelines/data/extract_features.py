"""Embedding the rows of a split in row order, one contiguous share per worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.distributed.collectives import shares
from pipelines.distributed.precision import Precision, autocast
from pipelines.distributed.prefetch import Prefetch
from reid_core.text import trimmed
from reid_core.types import Modality

_TYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.int64): torch.int64}  # images, token ids
Head = Callable[[Tensor, Modality], Tensor]


class Rows(Protocol):
    """What can be embedded: `Inputs`, or the same with images replaced."""

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
    readers: int = 1,
    precision: Precision = "fp32",
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
        readers: threads that read and decode.
        precision: of the forward pass.

    Returns:
        (n, D) float32 on the device.
    """
    reads = _read_ahead(inputs, modality, rows, batch_size, readers)
    batches: Iterator[np.ndarray]
    batches = (_joined(parts, pinned=device.type == "cuda") for parts in reads)
    if modality == Modality.TEXT:  # here and not by the model, which would ask the device
        batches = map(trimmed, batches)
    host = map(torch.from_numpy, map(np.ascontiguousarray, batches))
    features, filled = torch.empty(0), 0
    with autocast(device, precision):
        for batch in Prefetch(host, device):
            part = head(batch, modality).float()
            if not filled:  # one block, so that rows are not held twice at the end
                features = part.new_empty(len(rows), part.shape[1])
            features[filled : filled + len(part)] = part
            filled += len(part)
        if not filled:
            some = torch.from_numpy(inputs.read(modality, np.arange(1))).to(device)
            return head(some, modality).float()[:0]
    return features


def _read_ahead(
    inputs: Rows, modality: Modality, rows: np.ndarray, batch_size: int, readers: int
) -> Iterator[list[np.ndarray]]:
    """Batches of inputs in parts; two more are read and decoded while the current one is used."""
    with ThreadPoolExecutor(readers) as pool:

        def read(batch: np.ndarray) -> list[Future[np.ndarray]]:
            parts = [batch[part] for part in shares(len(batch), readers)]
            return [pool.submit(inputs.read, modality, part) for part in parts if len(part)]

        ahead: deque[list[Future[np.ndarray]]] = deque()
        for start in range(0, len(rows), batch_size):
            ahead.append(read(rows[start : start + batch_size]))
            if len(ahead) > 2:
                yield [part.result() for part in ahead.popleft()]
        while ahead:
            yield [part.result() for part in ahead.popleft()]


def _joined(parts: list[np.ndarray], *, pinned: bool) -> np.ndarray:
    """Parts as one; copied once, to where a GPU fetches it from."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    whole: np.ndarray = torch.empty(shape, dtype=_TYPES[parts[0].dtype], pin_memory=pinned).numpy()
    return np.concatenate(parts, out=whole)
