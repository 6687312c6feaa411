"""The generated world in every layout, through the loaders of real data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_core.datasets import LAYOUTS, synthetic
from reid_core.datasets.synthetic import cameras, layouts, trees
from reid_core.datasets.synthetic.identities import COLORS, VIEWS, draw_identity
from reid_core.datasets.synthetic.sentences import write_sentence
from reid_core.types import Dataset, Modality

KINDS = ("sysu", "regdb", "llcm", "cuhk", "icfg", "rstp")
IDENTITIES = 6


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of six identities in every layout."""
    root = tmp_path_factory.mktemp("worlds")
    for kind in KINDS:
        synthetic.write(root / kind, num_identities=IDENTITIES, seed=3, layout=kind, height=32)
    return root


def splits(dataset: Dataset) -> dict:
    return {name: getattr(dataset, name) for name in ("train", "val", "test")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loader_counts_what_expected_json_says(worlds: Path, kind: str) -> None:
    dataset = LAYOUTS[kind].read(worlds / kind)
    expected = json.loads((worlds / kind / "expected.json").read_text())
    for name, split in splits(dataset).items():
        by_modality = expected.get(name, {})
        assert {str(sample.modality) for sample in split.samples} == set(by_modality)
        for modality, counts in by_modality.items():
            rows = split.rows(Modality(modality))
            result = {"ids": len(set(split.pids[rows]))}
            if modality == "text":
                result["captions"] = len(rows)
            else:
                result |= {"cameras": len(set(split.cameras[rows])), "images": len(rows)}
            assert result | counts == result


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_image_exists_once_and_none_is_left_over(worlds: Path, kind: str) -> None:
    listed = [
        sample.image
        for split in splits(LAYOUTS[kind].read(worlds / kind)).values()
        for sample in split.samples
        if sample.modality != Modality.TEXT
    ]
    written = [
        path.relative_to(worlds / kind).as_posix()
        for path in (worlds / kind).rglob("*")
        if path.suffix in (".jpg", ".bmp")
    ]
    assert sorted(listed) == sorted(written)
    with Image.open(worlds / kind / listed[0]) as image:
        assert image.size == (16, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_can_be_evaluated_with_every_query_answerable(worlds: Path, kind: str) -> None:
    test = LAYOUTS[kind].read(worlds / kind).test
    names = set()
    for trial in LAYOUTS[kind].protocol(test):
        names.add(trial.name)
        right = np.equal.outer(test.pids[trial.query], test.pids[trial.gallery])
        if (ignored := trial.ignored()) is not None:
            right &= ~ignored
        # The only queries without an answer are those whose every answer is by their own camera.
        assert right.any(axis=1).mean() > 0.8
    assert LAYOUTS[kind].headline in names


def test_each_trial_of_regdb_is_another_half(worlds: Path) -> None:
    halves = set()
    for trial in range(1, 11):
        dataset = LAYOUTS["regdb"].read(worlds / "regdb", trial=trial)
        train, test = (set(split.pids.tolist()) for split in (dataset.train, dataset.test))
        assert (len(train), len(test), len(train | test)) == (3, 3, IDENTITIES)
        halves.add(frozenset(train))
    assert len(halves) > 5


@pytest.mark.parametrize(("kind", "first"), [("cuhk", 1), ("icfg", 0), ("rstp", 0)])
def test_training_ids_of_captioned_sets_start_at_their_base_without_gaps(
    worlds: Path, kind: str, first: int
) -> None:
    ids = sorted(set(LAYOUTS[kind].read(worlds / kind).train.pids.tolist()))
    assert ids == list(range(first, first + len(ids)))


def test_icfg_folders_are_not_the_split(worlds: Path) -> None:
    train = LAYOUTS["icfg"].read(worlds / "icfg").train
    assert {sample.image.split("/")[2] for sample in train.samples} == {"train", "test"}


def test_sentences_are_about_the_view_that_was_filmed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = layouts.Recipe(4, 9, "icfg", "default", 32)
    filmed, stage = [], cameras._stage

    def spy(identity, view, height, rng):
        filmed.append(view)
        return stage(identity, view, height, rng)

    monkeypatch.setattr(cameras, "_stage", spy)
    monkeypatch.setattr(layouts, "_save", lambda image, path: None)
    layouts._write_identities(Path(), recipe, range(4))
    world, ids = layouts._world(recipe), layouts._ids(recipe).tolist()
    known = [
        view
        for pid in ids
        for camera in trees.LAYOUTS["icfg"].cameras
        for view in world.views(pid, camera)
    ]
    assert known == filmed


def test_sentences_differ_in_form_leave_things_out_and_err() -> None:
    identity = draw_identity(np.random.default_rng(3))
    said = [write_sentence(identity, "back", np.random.default_rng([0, i])) for i in range(300)]
    assert len(set(said)) > 290
    spoken = [sentence.lower() for sentence in said]
    assert 0.3 < np.mean([identity.upper.kind in text for text in spoken]) < 0.95
    assert len({text.split()[0] for text in spoken}) >= 4
    worn = {
        identity.upper.color,
        identity.lower.color,
        identity.shoes.color,
        identity.bag.color,
    }
    wrong = [bool(set(text.replace(",", "").split()) & (set(COLORS) - worn)) for text in spoken]
    assert 0.02 < np.mean(wrong) < 0.6
    assert 0.05 < np.mean([not text.endswith(".") for text in spoken]) < 0.2


@pytest.mark.parametrize("view", VIEWS)
def test_sentences_have_no_gaps(view: str) -> None:
    for i in range(100):
        rng = np.random.default_rng([1, i])
        text = write_sentence(draw_identity(rng), view, rng)
        assert len(text.split()) >= 4
        assert not {"  ", " ,", " ."} & {text[j : j + 2] for j in range(len(text))}
        assert "{" not in text
