"""Directions in which the images of one cluster scatter do not decide who matches whom."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid_core import matching, whitening
from reid_core.methods.cclnet.association import whitened
from reid_core.methods.cclnet.settings import Config
from reid_core.types import Modality

IDENTITIES, IMAGES, WIDTH = 60, 8, 16


def world(nuisance: float, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same identities in two modalities; light moves all images along two directions."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(IDENTITIES, WIDTH))
    directions = rng.normal(size=(2, WIDTH))
    features, labels = [], []
    for _ in range(2):
        truth = np.repeat(np.arange(IDENTITIES), IMAGES)
        light = rng.normal(size=(len(truth), 2)) + 2 * rng.normal(size=(IDENTITIES, 2))[truth]
        x = centers[truth] + 0.1 * rng.normal(size=(len(truth), WIDTH))
        x = x + nuisance * (light @ directions + rng.normal(size=WIDTH))
        features.append((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
        labels.append(truth)
    return features, labels


def right_pairs(sides: list[torch.Tensor]) -> float:
    pairs = matching.hungarian_pairs(*sides)
    return float((pairs[:, 0] == pairs[:, 1]).sum() / IDENTITIES)


def test_clusters_match_once_light_has_no_say() -> None:
    features, labels = world(nuisance=1.5)
    plain = [torch.from_numpy(x.reshape(IDENTITIES, IMAGES, WIDTH).mean(1)) for x in features]
    plain = [matching.centered(side) for side in plain]
    assert right_pairs(plain) < 0.5
    assert right_pairs(whitening.whitened_prototypes(features, labels)) > 0.7


def test_the_definition() -> None:
    """Row after row in float64; outliers count nowhere."""
    features, labels = world(nuisance=1.0)
    labels = [np.where(np.arange(len(y)) % 7 == 3, -1, y) for y in labels]
    means = [
        np.stack([x[y == c].mean(axis=0, dtype=np.float64) for c in range(IDENTITIES)])
        for x, y in zip(features, labels, strict=True)
    ]
    covariances = []
    for x, y, mean in zip(features, labels, means, strict=True):
        offsets = [np.outer(r - mean[c], r - mean[c]) for r, c in zip(x, y, strict=True) if c >= 0]
        covariances.append(np.mean(offsets, axis=0))
    covariance = np.mean(covariances, axis=0)
    covariance += 0.1 * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    values, vectors = np.linalg.eigh(covariance)
    transform = vectors @ np.diag(values**-0.5) @ vectors.T
    for side, mean in zip(whitening.whitened_prototypes(features, labels), means, strict=True):
        expected = (mean - mean.mean(axis=0)) @ transform
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(side.numpy(), expected, atol=1e-4)
        assert side.dtype == torch.float32


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = world(nuisance=1.0)
    whole = whitening.whitened_prototypes(features, labels)
    monkeypatch.setattr(whitening, "_BLOCK_BYTES", 4 * WIDTH * 50)
    tensors = [torch.from_numpy(x) for x in features]
    for side, expected in zip(whitening.whitened_prototypes(tensors, labels), whole, strict=True):
        torch.testing.assert_close(side, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_images_that_are_all_alike_are_centered_alone(copies: int) -> None:
    """Also where the mean of equal rows differs from them by its rounding."""
    few = world(nuisance=0.0)[0][0][: 4 * IMAGES : IMAGES]
    rows, truth = np.repeat(few, copies, axis=0), np.repeat(np.arange(4), copies)
    expected = matching.centered(torch.from_numpy(few))
    for side in whitening.whitened_prototypes([rows, rows], [truth, truth]):
        torch.testing.assert_close(side, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("nuisance", "is_whitened"), [(1.5, 1.0), (0.0, 0.0)])
def test_more_clusters_that_agree_decide(nuisance: float, is_whitened: float) -> None:
    features, labels = world(nuisance)
    sides = dict(zip((Modality.VISIBLE, Modality.INFRARED), features, strict=True))
    names = dict(zip(sides, labels, strict=True))
    means = [torch.from_numpy(x.reshape(IDENTITIES, IMAGES, WIDTH).mean(1)) for x in features]
    prototypes = dict(zip(sides, map(torch.nn.functional.normalize, means), strict=True))
    given = {"matching": {"whitened": "agreed"}, "swap": {"start_epoch": 0}}
    config = Config.model_validate(given)
    matched, counts = whitened(config, sides, names, prototypes, epoch=0)
    assert counts == {"whitened": is_whitened}
    assert (matched is not prototypes) == bool(is_whitened)
    given["swap"]["start_epoch"] = 1  # nothing is matched yet: nothing is computed or logged
    later = Config.model_validate(given)
    assert whitened(later, sides, names, prototypes, epoch=0) == (prototypes, {})
    never = Config()
    assert whitened(never, sides, names, prototypes, epoch=0) == (prototypes, {})


def test_matching_in_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="whitened=agreed is of the pairs between epochs"):
        Config.model_validate({"matching": {"whitened": "agreed"}, "swap": {"when": "step"}})


@pytest.mark.parametrize("method", ["joint", "consistent", "proposed"])
def test_methods_that_compare_images_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"method={method} compares images"):
        Config.model_validate({"matching": {"whitened": "agreed", "method": method}})
