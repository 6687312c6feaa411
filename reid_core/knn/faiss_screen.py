"""Candidates for the nearest rows by faiss on a GPU, where a build for GPUs is installed and works.

Behind the interface of `reid_core.knn.screen.HalfScreen`, and proven like its candidates: what is
taken for the nearest is the nearest, whichever of the two proposes. Torch's tensors are read where
they are. Never run on a GPU: its speed is not measured.

Shapes: U rows, B query rows, D feature width, c candidates.
"""

from __future__ import annotations

import importlib
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reid_core.knn.certified import single_error
from reid_core.knn.fixed_point import products_on_device
from reid_core.knn.screen import HalfScreen, Screen, Screened

_MOST_CANDIDATES = 2048  # of faiss's kernels
_QUERIES = 1 << 14  # faiss cuts them itself; this bounds what they return
# faiss's resources serve one thread at a time; on the device all use the default stream, in turn.
_ALONE = threading.Lock()
_SCRATCH_BYTES = 1 << 28  # faiss takes 1.5 GiB unless told otherwise, beside a training worker


class FaissScreen:
    """The largest float32 products with rows, by faiss's brute force on their GPU."""

    def __init__(self, features: Tensor, faiss: Any) -> None:
        """Takes (U, D) float32 unit rows on a GPU, and the module."""
        self._rows, self._faiss = features, faiss
        self._resources = _resources(faiss)

    def queries_at_a_time(self) -> int:
        """B for `largest`."""
        return _QUERIES

    def largest(self, queries: Tensor, count: int) -> Screened:
        """Candidates for the `count` largest products of float32 queries (B, D)."""
        with _ALONE:
            value, row = self._faiss.knn_gpu(
                self._resources,
                queries.contiguous(),
                self._rows,
                count,
                metric=self._faiss.METRIC_INNER_PRODUCT,
                device=self._rows.device.index or 0,
            )
        error = torch.full_like(value[:, 0], single_error(self._rows.shape[1]))
        is_whole = count == len(self._rows)
        least = torch.full_like(error, -torch.inf) if is_whole else value.amin(dim=1)
        return Screened(row, least, error)


def open_screen(features: Tensor, count: int) -> Screen:
    """What proposes candidates on the device of the features: faiss where it works, else torch.

    Args:
        features: (U, D) float32 unit rows on an accelerator.
        count: most candidates of a row that will be asked for.
    """
    if features.device.type != "cuda" or count > _MOST_CANDIDATES:
        return HalfScreen(features)
    faiss, _ = faiss_for_gpus()
    return HalfScreen(features) if faiss is None else FaissScreen(features, faiss)


@cache
def faiss_for_gpus() -> tuple[Any, str]:
    """The module, if its search on the first GPU gives what is right; else None and the reason.

    Products that are off by more than float32 may be, as those of TF32, are a reason.
    """
    try:
        faiss = importlib.import_module("faiss")
        if not hasattr(faiss, "StandardGpuResources"):
            return None, "this build of faiss is for CPUs"
        if not faiss.get_num_gpus():
            return None, "faiss sees no GPU"
        importlib.import_module("faiss.contrib.torch_utils")  # it takes torch's tensors from now on
        return _tried(faiss, torch.device("cuda", 0))
    except Exception as error:  # a library that cannot be loaded, kernels for another GPU, ...
        return None, f"{type(error).__name__}: {error}"


def _tried(faiss: Any, device: torch.device) -> tuple[Any, str]:
    random = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(512, 256, generator=random)).to(device)
    candidates = FaissScreen(x, faiss).largest(x, 32)
    exact = products_on_device(x, x, candidates.rows).sort(dim=1).values
    every = torch.arange(512, device=device).expand(512, -1)
    best = products_on_device(x, x, every).topk(32, dim=1).values
    off = (exact[:, 0] - candidates.least).abs().max()
    if off > single_error(256):
        return None, f"its products are off by {float(off):.1e}"
    if (exact.flip(1) < best - 2 * single_error(256)).any():
        return None, "it misses neighbors"
    return faiss, ""


@cache
def _resources(faiss: Any) -> Any:
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_SCRATCH_BYTES)
    return resources
