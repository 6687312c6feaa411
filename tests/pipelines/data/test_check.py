"""The data check: a good tree passes, and each thing that can be off is said and fails it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines import cli
from pipelines.data import check
from pipelines.errors import UserError
from reid_core.datasets import LAYOUTS, synthetic, sysu
from reid_core.datasets.counts import Count, count, expected_counts
from reid_core.types import Dataset, Modality, Sample, Split

KINDS = ("sysu", "regdb", "llcm", "cuhk", "icfg", "rstp")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of four identities in every layout."""
    root = tmp_path_factory.mktemp("worlds")
    for kind in KINDS:
        synthetic.write(root / kind, num_identities=4, seed=1, layout=kind, height=32)
    return root


@pytest.fixture
def identities(worlds: Path, tmp_path: Path) -> Path:
    """A SYSU tree of one's own."""
    return Path(shutil.copytree(worlds / "sysu", tmp_path / "sysu"))


def said(root: Path, kind: str = "sysu") -> list[str]:
    return [problem.what for problem in check.check(kind, root).problems]


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_tree_passes(worlds: Path, kind: str) -> None:
    result = check.check(kind, worlds / kind)
    assert result.ok, result.problems
    assert result.sizes["visible"] == [[32, 16], [32, 16]]
    assert result.expected_from.endswith("expected.json")
    assert all(line.expected for line in result.counts)


def test_one_missing_image_fails_with_the_number_that_is_off(identities: Path) -> None:
    victim = sysu.read(identities).test.samples[0]
    (identities / victim.image).unlink()
    expected = json.loads((identities / "expected.json").read_text())["test"]["visible"]["images"]
    assert said(identities) == [f"test visible: {expected - 1} images instead of {expected}"]


def test_a_file_that_a_list_names_and_that_is_missing_is_named(
    worlds: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(worlds / "cuhk", tmp_path / "cuhk"))
    victim = next(root.rglob("*.jpg"))
    victim.unlink()
    (problem,) = check.check("cuhk", root).problems
    assert problem.what == "unreadable: 1 image"
    assert victim.name in problem.examples[0]


def test_truncated_and_foreign_files_are_named(identities: Path) -> None:
    first, second = (
        identities / sample.image for sample in sysu.read(identities).train.samples[:2]
    )
    first.write_bytes(first.read_bytes()[:300])
    second.write_text("<html>")
    (problem,) = check.check("sysu", identities).problems
    assert problem.what == "unreadable: 2 images"
    assert all(
        path.relative_to(identities).as_posix() in example
        for path, example in zip((first, second), problem.examples, strict=True)
    )


def test_a_image_of_too_many_pixels_is_named(
    identities: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = identities / sysu.read(identities).train.samples[0].image
    Image.new("L", (200, 200)).save(victim)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 200 // 2 - 1)
    (problem,) = check.check("sysu", identities).problems
    assert problem.what == "unreadable: 1 image"
    assert victim.name in problem.examples[0]


def test_the_same_content_under_two_names_is_a_duplicate(identities: Path) -> None:
    first, *_, last = sysu.read(identities).train.samples
    shutil.copy(identities / first.image, identities / last.image)
    (problem,) = check.check("sysu", identities).problems
    assert problem.what == "under several names: 1 image with the very same content"
    assert problem.examples == (f"{first.image} = {last.image}",)


def test_a_identity_in_two_splits_is_found(worlds: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(worlds / "rstp", tmp_path / "rstp"))
    path = root / "RSTPReid" / "data_captions.json"
    entries = json.loads(path.read_text())
    train = next(entry["id"] for entry in entries if entry["split"] == "train")
    for entry in entries:
        if entry["split"] == "test":
            entry["id"] = train
    path.write_text(json.dumps(entries))
    (problem,) = check.check("rstp", root).problems
    assert problem.what == "both in train and in test: 1 identities"
    assert problem.examples == (f"id {train}",)


def test_an_image_that_is_listed_twice_is_found(worlds: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(worlds / "icfg", tmp_path / "icfg"))
    path = root / "ICFG-PEDES" / "ICFG-PEDES.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([*entries, entries[0]]))
    (root / "expected.json").unlink()
    result = said(root, "icfg")
    assert "listed more than once: 1 image" in result
    assert not any("very same" in what for what in result)


def test_every_trial_of_regdb_is_read(worlds: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(worlds / "regdb", tmp_path / "regdb"))
    path = root / "idx" / "test_thermal_7.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert said(root, "regdb") == ["trial 7, test infrared: 19 images instead of 20"]
    path.unlink()
    assert "test_thermal_7.txt is missing" in said(root, "regdb")[0]


def test_a_wrong_layout_is_the_only_thing_said(tmp_path: Path) -> None:
    (what,) = said(tmp_path)
    assert "cam1 is missing: a SYSU-MM01 root holds" in what
    with pytest.raises(UserError, match="unknown layout; choose one of sysu, regdb"):
        check.check("market", tmp_path)


@pytest.mark.parametrize("kind", ["sysu", "regdb"])
def test_an_own_tree_is_compared_with_what_it_was(kind: str, worlds: Path, tmp_path: Path) -> None:
    """In SYSU's layout and not SYSU-MM01: seven numbers are off, and none once they are written."""
    root = Path(shutil.copytree(worlds / kind, tmp_path / kind))
    drawn = json.loads((root / "expected.json").read_text())
    (root / "expected.json").unlink()
    assert said(root, kind)
    command = ["data", "check", kind, str(root), "--write-expected"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    written = json.loads((root / "expected.json").read_text())
    for split, by_modality in drawn.items():
        for modality, numbers in by_modality.items():
            assert numbers.items() <= written[split][modality].items()
    next(root.rglob("*.jpg" if kind == "sysu" else "*.bmp")).unlink()
    assert said(root, kind)
    again = CliRunner().invoke(cli.app, command)
    assert again.exit_code != 0
    assert "is there already" in " ".join((again.output + str(again.exception)).split())


def test_without_expected_json_the_published_numbers_count(identities: Path) -> None:
    (identities / "expected.json").unlink()
    result = check.check("sysu", identities)
    assert result.expected_from == "published numbers"
    assert "train+val visible: 3 identities instead of 395" in said(identities)
    assert check.counts_differ(sysu.read(identities)) == said(identities)


def test_a_data_set_without_known_numbers_has_nothing_wrong_about_its_numbers() -> None:
    dataset = Dataset("folder", Path("nowhere"), *[Split((Sample("a", Modality.VISIBLE),))] * 3)
    source, expected = expected_counts(dataset)
    assert (source, expected) == ("nothing to compare with", {})
    assert [line.found for line in count(dataset, expected)] == [
        {"ids": 0, "cameras": 0, "images": 1}
    ] * 3


@pytest.mark.parametrize(("captions", "wrong"), [(68_107, True), (68_108, False), (68_126, False)])
def test_a_pair_of_numbers_is_a_range(captions: int, wrong: bool) -> None:
    published = {kind: layout.published for kind, layout in LAYOUTS.items()}
    numbers = published["cuhk"]["train"]["text"]
    line = Count("train", Modality.TEXT, {"ids": 11_003, "captions": captions}, numbers)
    assert bool(line.wrong) == wrong


def test_published_totals_are_those_of_the_papers() -> None:
    """Sums that the papers print beside the parts."""
    published = {kind: layout.published for kind, layout in LAYOUTS.items()}

    def total(kind: str, split: str, name: str) -> int:
        return sum(numbers.get(name, 0) for numbers in published[kind][split].values())

    assert total("llcm", "train", "images") == 30_921
    assert published["llcm"]["train"]["visible"]["ids"] + 351 == 1_064
    assert total("regdb", "train", "images") + total("regdb", "test", "images") == 8_240
    assert (
        sum(published["cuhk"][s]["visible"]["images"] for s in ("train", "val", "test")) == 40_206
    )
    assert sum(published["icfg"][s]["visible"]["images"] for s in ("train", "test")) == 54_522
    assert (
        sum(published["rstp"][s]["visible"]["images"] for s in ("train", "val", "test")) == 20_505
    )


@pytest.mark.parametrize(
    "text", ['{"dev": {}}', '{"train": {"thermal": {}}}', '{"train": {"visible": 3}}', "[1", "[]"]
)
def test_a_broken_expected_json_is_named(identities: Path, text: str) -> None:
    (identities / "expected.json").write_text(text)
    (what,) = said(identities)
    assert "expected.json must hold numbers per split and modality" in what


def test_the_command_exits_with_1_and_writes_everything_as_json(
    identities: Path, tmp_path: Path
) -> None:
    runner, out = CliRunner(), tmp_path / "check.json"
    command = ["data", "check", "sysu", str(identities), "--json", str(out)]
    good = runner.invoke(cli.app, command)
    assert good.exit_code == 0, good.output
    assert "nothing is off" in good.output
    assert json.loads(out.read_text())["ok"] is True
    missing, broken = (
        identities / sample.image for sample in sysu.read(identities).test.samples[:2]
    )
    broken.write_bytes(b"")
    missing.unlink()
    bad = runner.invoke(cli.app, command)
    assert bad.exit_code == 1
    assert "wrong: test visible:" in bad.output
    assert "unreadable: 1 image" in bad.output
    written = json.loads(out.read_text())
    assert written["ok"] is False
    assert written["problems"][-1]["examples"]
    assert written["counts"][0]["found"]["images"] > 0
