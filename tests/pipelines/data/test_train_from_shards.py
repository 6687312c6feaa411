"""Training from converted data, in a folder or at a URI, is training from the tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from pipelines.data import check
from pipelines.data import decode as decoding
from pipelines.data.convert import convert
from pipelines.data.plan import Plan
from pipelines.errors import UserError
from pipelines.report import ranklists
from pipelines.training import deterministic
from pipelines.training.driver import train
from reid_core.augmentation import Augmentation
from reid_core.transforms import TrainTransform
from reid_core.types import Modality
from tests.pipelines import small_runs
from tests.pipelines.local_stream import blocks


def test_training_gets_the_same_rows_and_pixels_from_tree_and_shards(
    without_ray: list[int], make_config: Callable[..., RunConfig], tree: Path, tmp_path: Path
) -> None:
    convert("sysu", tree, str(tmp_path))
    own, packed = (
        small_runs.prepare_data(config)
        for config in (make_config(), make_config("data.kind=manifest", root=tmp_path))
    )
    assert own.measured is not None
    assert packed.measured is not None
    assert (own.kind, own.train) == (packed.kind, packed.train)
    assert own.measured.split == packed.measured.split
    for modality in (Modality.VISIBLE, Modality.INFRARED):
        rows = np.arange(own.train_inputs.num_rows(modality))[::5]
        np.testing.assert_array_equal(
            own.train_inputs.read(modality, rows), packed.train_inputs.read(modality, rows)
        )


@pytest.mark.parametrize(
    "uri", [pytest.param("file://{}", marks=pytest.mark.slow), "memory://bucket/set"]
)
def test_training_from_a_uri_is_training_from_the_tree(
    without_ray: list[int],
    make_config: Callable[..., RunConfig],
    tree: Path,
    tmp_path: Path,
    uri: str,
) -> None:
    """Splits, decoded rows and augmented batches; through pyarrow and through fsspec."""
    root = uri.format(tmp_path)
    convert("sysu", tree, root)
    config = make_config("data.kind=manifest", f"data.root={root}")
    assert config.model_dump(mode="json")["data"]["root"] == root
    assert configuration.validate(yaml.safe_load(configuration.dump(config)), source="") == config
    own, packed = (small_runs.prepare_data(c) for c in (make_config(), config))
    assert (own.kind, own.train) == (packed.kind, packed.train)
    rows = {m: np.array([[5, 3, 5], [0, 9, 2]]) for m in (Modality.VISIBLE, Modality.INFRARED)}
    plan = Plan(rows, rows, seeds={m: x.astype(np.uint64) for m, x in rows.items()})
    transforms = {m: [TrainTransform(Augmentation(pad=2))] for m in rows}
    streams = (
        blocks(plan, prepared.train_inputs, transforms, rank=0, world=1)
        for prepared in (own, packed)
    )
    for share, theirs in zip(*streams, strict=True):
        np.testing.assert_equal(share, theirs)
    with pytest.raises(ValueError, match=rf"{root}/cam1/none.jpg: .*No such image"):
        decoding.read_image(Path(root) / "cam1/none.jpg", height=64, width=32)
    assert check.check("manifest", Path(root)).ok
    assert ranklists.thumbnail(Path(root), packed.train.samples[0].image) is not None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cclnet", "cpcl"])
def test_a_run_from_a_uri_ends_where_the_run_from_the_tree_ends(
    without_ray: list[int], trees: Path, tmp_path: Path, method: str
) -> None:
    """Weights, optimizer, banks and labels after every epoch, to the bit; images and captions."""
    data = small_runs.make_config(method, trees).data
    convert(data.kind, data.root, f"memory://{method}")
    hashes = []
    for place in (f"data.root={data.root}", f"data.root=memory://{method}"):
        kind = "manifest" if "://" in place else data.kind
        config = small_runs.make_config(method, trees, place, f"data.kind={kind}")
        folder = tmp_path / kind
        remaining = small_runs.Kept(folder / "kept")
        run = small_runs.open_run(config, folder / "run")
        deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
        hashes.append(remaining.hashes)
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("kind", "root", "message"),
    [
        (
            "manifest",
            "nosuch://place/set",
            r"cannot read place/set by nosuch://(.|\n)*package",
        ),
        ("manifest", "file:///nowhere/set", "file:///nowhere/set holds none of manifest.parquet"),
        ("sysu", "s3://bucket/set", r"convert sysu FOLDER s3://bucket/set. packs it"),
    ],
)
def test_a_uri_that_holds_nothing_is_refused_before_anything_is_made(
    make_config: Callable[..., RunConfig], tmp_path: Path, kind: str, root: str, message: str
) -> None:
    config = make_config(f"data.kind={kind}", f"data.root={root}")
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", [])
    assert not (tmp_path / "run").exists()
