"""What methods decide between epochs does not ask where the features are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reid_core.knn import duplicates, products
from reid_core.method import BetweenEpochs, EpochPlan
from reid_core.methods import METHODS
from reid_core.methods.bmil.settings import Config as BmilConfig
from reid_core.methods.cclnet.settings import Config as CclnetConfig
from reid_core.types import Modality

INPUTS = Modality.VISIBLE, Modality.INFRARED
STAGE = {"clusters_per_batch": 3, "instances": 4, "batches_per_epoch": 3}
CLUSTERING = {"k1": 8, "k2": 2, "min_samples": 3}


class OnDevice(torch.Tensor):
    """Rows that NumPy cannot read, as those of a GPU, until they are brought to the CPU."""

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("these rows are on a device")

    __array__ = numpy

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def world() -> dict[Modality, torch.Tensor]:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(10, 24))
    x = np.repeat(centers, 16, axis=0) + 0.3 * rng.normal(size=(160, 24))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    block = torch.from_numpy(np.concatenate([x[::2], x[1::2]]))
    return {INPUTS[0]: block[:80], INPUTS[1]: block[80:]}


def epoch_of(method: str, config: Any, stage: str, features: Any) -> EpochPlan:
    how = METHODS[method]
    context = BetweenEpochs(stage, 60, 0, features=features)
    labels = {m: how.cluster(config, m, context) for m in INPUTS} if how.cluster else {}
    return how.begin_epoch(config, context, labels)


CASES = [
    *[("cclnet", "align", {"matching": {"method": m}}) for m in ("hungarian", "joint", "proposed")],
    ("cclnet", "align", {"refine": {"labels": "voted", "neighbors": 8}}),
    *[("bmil", "joint", {"clustering": {"together": t}}) for t in ("rows", "assigned", "both")],
    ("bmil", "joint", {"clustering": {"subset": 0.5}}),
]


@pytest.mark.parametrize(("method", "stage", "changes"), CASES)
def test_rows_on_a_device_give_the_epoch_of_rows_at_hand(
    method: str, stage: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"align": STAGE, "intra": STAGE, "joint": STAGE, "clustering": CLUSTERING}
    kind = CclnetConfig if method == "cclnet" else BmilConfig
    content = {k: v for k, v in content.items() if k in kind.model_fields}
    for name, values in changes.items():
        content[name] = content.get(name, {}) | values
    config = kind.model_validate(content)
    at_hand = epoch_of(method, config, stage, {m: x.numpy() for m, x in world().items()})
    for module in (products, duplicates):
        monkeypatch.setattr(module, "on_device", lambda rows: isinstance(rows, OnDevice))
    there = {m: x.as_subclass(OnDevice) for m, x in world().items()}
    on_device = epoch_of(method, config, stage, there)
    assert len(at_hand.pairs) > 3
    np.testing.assert_array_equal(on_device.pairs, at_hand.pairs)
    for m in INPUTS:
        np.testing.assert_array_equal(on_device.labels[m], at_hand.labels[m])
        np.testing.assert_array_equal(on_device.rows[m], at_hand.rows[m])
    for name, values in {**at_hand.arrays, **at_hand.prototypes}.items():
        other = {**on_device.arrays, **on_device.prototypes}[name]
        np.testing.assert_array_equal(other, values)


def test_both_modalities_together_are_no_copy() -> None:
    first, second = world().values()
    together = products.stacked([first, second])
    assert together.data_ptr() == first.data_ptr()
    np.testing.assert_array_equal(together, np.concatenate([first, second]))
    assert products.take(together, np.arange(80, 160)).data_ptr() == second.data_ptr()
    np.testing.assert_array_equal(
        products.stacked([second, first]), np.concatenate([second, first])
    )
    np.testing.assert_array_equal(products.take(together, np.array([3, 1])), together[[3, 1]])
