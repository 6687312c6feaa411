"""Embedding reads ahead: the same rows in the same order, whoever reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.data import extract_features
from reid_core.types import Modality


class Numbers:
    """Row i is an image full of i."""

    def num_rows(self, modality: Modality) -> int:
        return 23

    def read(self, modality: Modality, rows: np.ndarray) -> np.ndarray:
        return np.tile(rows.astype(np.uint8)[:, None, None, None], (1, 3, 2, 2))


def embed(rows: np.ndarray, readers: int) -> torch.Tensor:
    return extract_features.embed(
        lambda images, modality: images[:, :, 0, 0],
        Numbers(),
        Modality.VISIBLE,
        rows,
        batch_size=5,
        device=torch.device("cpu"),
        readers=readers,
    )


@pytest.mark.parametrize("readers", [1, 2, 7])
def test_rows_come_in_their_order(readers: int) -> None:
    rows = np.random.default_rng(0).permutation(23)
    assert embed(rows, readers)[:, 0].tolist() == rows.tolist()


def test_no_rows_have_the_width_of_some() -> None:
    assert embed(np.arange(0), 2).shape == (0, 3)
