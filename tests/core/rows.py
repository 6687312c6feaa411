"""Rows of features for tests of what compares them."""

from __future__ import annotations

import numpy as np


def unit(num: int, width: int = 16, *, seed: int = 0) -> np.ndarray:
    """(num, width) float32 unit rows in random directions."""
    x = np.random.default_rng(seed).normal(size=(num, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
