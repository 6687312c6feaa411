"""What users have reported, end to end: each kind of fault has its own tests elsewhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.config import run as configuration
from pipelines.data.check import check
from pipelines.errors import UserError
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.retrieval.sources import Source
from reid_core.datasets import LAYOUTS, folder, manifest, synthetic
from tests.pipelines import small_runs
from tests.pipelines.trained import save_run

SMALL = {"name": "crossreid-small", "pretrained": "bundled", "height": 64, "width": 32}


def draw(root: Path, *images: str) -> Path:
    for number, image in enumerate(images):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), (40 * number, 99, 7)).save(root / image)
    return root


def test_data_check_train_and_embed_list_the_same_images(tmp_path: Path) -> None:
    """Linked folders, capitals, notebooks' checkpoints: fastai#2270, anomalib#3058, vision#2831."""
    root = draw(
        tmp_path / "d",
        "visible/1/a.JPG",
        "infrared/1/b.PNG",
        "visible/.ipynb_checkpoints/a.jpg",
        "infrared/1/@eaDir/b.jpg",
    )
    draw(tmp_path / "elsewhere", "c.jpg")
    (root / "visible/2").symlink_to(tmp_path / "elsewhere")
    (root / "visible/2/again").symlink_to(root)
    images = {"visible/1/a.JPG", "visible/2/c.jpg", "infrared/1/b.PNG"}
    assert {sample.image for sample in folder.read(root).train.samples} == images
    assert {sample.image for sample in Source(root).samples()} == images
    result = check("folder", root)
    assert sum(line.found["images"] for line in result.counts) == 3
    assert any("ipynb_checkpoints" in note for note in result.notes)


def test_a_manifest_of_pandas_is_read_alike(tmp_path: Path) -> None:
    """deep-person-reid#207, fast-reid#173."""
    root = draw(tmp_path / "d", "v0.jpg", "i0.jpg")
    path = root / "M.CSV"
    path.write_text("image,modality,pid,camera\nv0.jpg,Visible,0.0,1.0\ni0.jpg, infrared,,3.0\n")
    read = manifest.read(path).train.samples
    assert [(s.image, s.pid, s.camera) for s in read] == [("v0.jpg", 0, 1), ("i0.jpg", -1, 3)]
    assert tuple(Source(path).samples()) == read
    assert check("manifest", path).ok


@pytest.mark.parametrize("kind", ["folder", "manifest", "cuhk"])
def test_identities_of_train_and_test_are_refused_in_every_layout(
    tmp_path: Path, kind: str
) -> None:
    """mmtracking#244, fast-reid#173."""
    places = [f"{s}/{m}/anna/{s}.jpg" for s in ("train", "test") for m in ("visible", "infrared")]
    root = draw(tmp_path / "d", *places)
    lines = [f"{place},{place.split('/')[1]},3,{place.split('/')[0]}" for place in places]
    (root / "manifest.csv").write_text("\n".join(["image,modality,pid,split", *lines]))
    images = draw(root / "CUHK-PEDES/imgs", "0.jpg", "1.jpg").parent
    entries = [
        {"split": split, "captions": ["a man"], "file_path": f"{n}.jpg", "id": 7}
        for n, split in enumerate(("train", "test"))
    ]
    (images / "reid_raw.json").write_text(json.dumps(entries))
    method = "cpcl" if kind == "cuhk" else "cclnet"
    tree = {"method": method, "data": {"kind": kind, "root": str(root)}, "model": SMALL}
    config = configuration.validate(tree, source="test")
    with pytest.raises(UserError, match="train and test share 1 identities"):
        small_runs.prepare_data(config)


@pytest.mark.parametrize(("kind", "list_name"), [("sysu", "exp"), ("llcm", "idx")])
def test_identities_of_published_lists_are_shared_only_where_that_is_said(
    tmp_path: Path, kind: str, list_name: str
) -> None:
    root = tmp_path / kind
    synthetic.write(root, num_identities=8, seed=1, height=32, layout=kind)
    train = sorted(set(LAYOUTS[kind].reader(root).train.pids.tolist()))
    test = root / list_name / "test_id.txt"
    test.write_text(f"{test.read_text().strip()},{train[0]}")
    if kind == "llcm":
        for name in ("vis", "nir"):
            cameras = [path for path in (root / f"test_{name}").iterdir() if path.is_dir()]
            image = next(cameras[0].rglob("*.*"))
            for camera in cameras:
                draw(camera / f"{train[0]:04d}", image.name)
    tree: dict[str, Any] = {"data": {"kind": kind, "root": str(root)}, "model": SMALL}
    with pytest.raises(UserError, match="train and test share 1 identities"):
        small_runs.prepare_data(configuration.validate(tree, source="test"))
    tree["data"]["allow_shared_identities"] = True
    small_runs.prepare_data(configuration.validate(tree, source="test"))


def test_queries_without_a_match_are_no_score(tmp_path: Path) -> None:
    """deep-person-reid#562, pytorch-metric-learning#129."""
    run = save_run(tmp_path / "run")
    root = draw(tmp_path / "d", "test/visible/v/0.jpg", "test/infrared/i/0.jpg")
    with pytest.raises(UserError, match="none of the 1 queries has a match"):
        evaluate_checkpoint(run, kind="folder", root=root)


def test_unlabeled_test_identities_are_trained_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TransReID#62, SOLIDER-REID#12."""
    root = draw(
        tmp_path / "d",
        *[f"train/{m}/anna/0.jpg" for m in ("visible", "infrared")],
        *[f"test/{m}/0.jpg" for m in ("visible", "infrared")],
    )
    tree = {"data": {"kind": "folder", "root": str(root)}, "model": SMALL}
    config = configuration.validate(tree, source="test")
    with caplog.at_level(logging.WARNING):
        prepared = small_runs.prepare_data(config)
    assert prepared.measured is None
    assert "training without evaluation" in caplog.text


def test_a_relative_root_is_absolute_in_what_a_run_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ray#28082, #40585."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: {kind: folder, root: d}\n")
    remaining = configuration.load(tmp_path / "recipe.yaml").model_dump(mode="json")
    assert remaining["data"]["root"] == str(tmp_path / "d")


@pytest.mark.parametrize("name", ["set #2", "2024", "a: b", "no", "~", "0x1F", "[x]", "50% off"])
def test_a_root_is_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: {kind: folder}\n")
    config = configuration.load(tmp_path / "recipe.yaml", [f"data.root={name}"])
    assert config.data.root == tmp_path / name
    (tmp_path / "recipe.yaml").write_text(f"data:\n  kind: folder\n  root: {json.dumps(name)}\n")
    assert configuration.load(tmp_path / "recipe.yaml").data.root == tmp_path / name
