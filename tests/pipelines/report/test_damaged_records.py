"""The report names what is missing or damaged, and trusts nothing that it is given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.report.page import write
from pipelines.report.run import read
from pipelines.runs import runlog
from tests.pipelines.fake_run import Page, epoch_line, fake_evaluation, html_of, small_run


def test_without_metrics_the_error_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl does not exist.*--out DIR"):
        write(tmp_path)


def test_bare_metrics_leave_out_the_rest_and_say_so(tmp_path: Path) -> None:
    page = Page(html_of(small_run(tmp_path, {"stage": "prepare", "epoch": 0})))
    assert page.classes()["left-out"] == 13
    for sentence in (
        "summary.json is missing or holds no scores, so this run has not finished",
        "metrics.jsonl holds no losses",
        "this run formed no groups",
        "the groups were not compared with the true people",
        "no epoch was evaluated during training",
        "there is no readable evaluation/*.npz",
        "evaluation/final.npz is missing",
        "heat maps are made of the first rank lists, and there are none",
        "metrics.jsonl holds no times",
        "environment.json is missing",
        "config.yaml is missing",
    ):
        assert page.says(sentence)


def test_run_that_finished_no_epoch_has_a_page(tmp_path: Path) -> None:
    assert Page(html_of(small_run(tmp_path))).says("No epoch of training has finished yet.")


def test_missing_images_are_named(tmp_path: Path, run_dir: Path) -> None:
    run = small_run(tmp_path / "run", {"stage": "align", "epoch": 0})
    missing = tmp_path / "gone"
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"root": str(missing)}}))
    arrays: dict[str, Any] = dict(read(run_dir).rankings["final"])
    (run / "evaluation").mkdir()
    np.savez(run / "evaluation" / "final.npz", **arrays)
    assert Page(html_of(run)).says(f"The pictures are not at {missing}.")
    missing.mkdir()
    page = Page(html_of(run))
    assert page.classes()["gone"] == 9 * 9
    assert page.says("picture not readable")


def test_damaged_last_line_is_skipped_with_a_note(tmp_path: Path) -> None:
    good = {"stage": "prepare", "epoch": 0, "losses": {"total": 2.0}}
    run = small_run(tmp_path, good, '{"stage": "prepare", "epoch": 1, "los')
    assert len(read(run).epochs) == 1
    assert Page(html_of(run)).says("The last line of metrics.jsonl is damaged and was skipped")


def test_resumed_run_counts_a_repeated_epoch_once(tmp_path: Path) -> None:
    epochs = [{"stage": "align", "epoch": epoch, "losses": {"total": 1.0}} for epoch in (0, 1, 1)]
    epochs[2]["losses"] = {"total": 0.5}
    result = read(small_run(tmp_path, epochs[0], epochs[1], '{"stage": "al', epochs[2]))
    assert [(one["epoch"], one["losses"]["total"]) for one in result.epochs] == [(0, 1.0), (1, 0.5)]
    assert result.notes[0].startswith("Line 3 of metrics.jsonl is damaged")


@pytest.mark.parametrize(
    "line",
    [
        b"3",
        b"[]",
        b"null",
        b'{"epoch": 1}',
        b'{"stage": "a", "epoch": "b"}',
        b'{"stage": "a", "epoch": 1e400}',
        b"\xff\xfe{",
        b"[" * 100_000,
    ],
)
def test_line_that_is_no_epoch_is_damaged(tmp_path: Path, line: bytes) -> None:
    """For the report, which says so, and for training alike."""
    run = small_run(tmp_path, {"stage": "a", "epoch": 0})
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(line + b'\n{"stage": "a", "epoch": 1}\n')
    result = read(run)
    assert [one["epoch"] for one in result.epochs] == [0, 1]
    assert len(result.notes) == 1
    assert result.notes[0].startswith("Line 2 of metrics.jsonl is damaged")
    assert [one["epoch"] for one in runlog.read_metrics(run)] == [0, 1]
    runlog.rewind(run, "a", 0, ["a"])
    assert [one["epoch"] for one in runlog.read_metrics(run)] == [0]


def test_damaged_side_files_become_notes(tmp_path: Path) -> None:
    run = small_run(tmp_path, {"stage": "align", "epoch": 0})
    (run / "summary.json").write_text('{"rows": ')
    (run / "config.yaml").write_text("a: [1")
    (run / "environment.json").write_text("[]")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "start.npz").write_bytes(b"PK nonsense")
    np.savez(run / "evaluation" / "final.npz", ap=np.array([{}], dtype=object))
    assert read(run).notes == (
        "config.yaml is damaged and was left out.",
        "environment.json is damaged and was left out.",
        "summary.json is damaged and was left out.",
        "evaluation/start.npz is damaged and was left out.",
        "evaluation/final.npz is damaged and was left out.",
    )


def test_nothing_that_a_run_recorded_becomes_markup(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=y> $x_'
    root = tmp_path / "data"
    line = epoch_line("align", 1, 1.0, np.random.default_rng(0))
    line |= {"stage": evil, "losses": {evil: 1.0}, "clusters": {evil: 3}, "seconds": {evil: 1.0}}
    run = small_run(tmp_path / "a<b>&c", line, "{" + evil)
    (run / "config.yaml").write_text(
        yaml.safe_dump({"method": evil, evil: {evil: [evil]}, "data": {"root": str(root)}})
    )
    (run / "environment.json").write_text(
        json.dumps({"command": evil, "started": evil, evil: evil, "machine": {evil: evil}})
    )
    rows = {name: {"rank1": 1.0} for name in ("start", evil, "final")}
    rows[evil] = {"rank1": 2.0}
    (run / "summary.json").write_text(
        json.dumps({"rows": rows, "protocol": evil, "seed": evil, "evaluation": {evil: {}}})
    )
    arrays = fake_evaluation(root, 1.0, np.random.default_rng(0))
    arrays["query_images"] = np.array([evil] * len(arrays["query_images"]))
    (run / "evaluation").mkdir()
    np.savez(run / "evaluation" / "final.npz", **arrays)
    html = html_of(run)
    page = Page(html)
    assert "<script" not in html.lower()
    assert page.open == []
    assert "onerror" not in {name for _, attrs in page.elements for name in attrs}
    assert all(source.startswith("data:image/jpeg") for source in page.values("src"))
    assert page.text.count("<script>alert(1)</script>") > 10, "shown as what it is: text"


def test_old_page_survives_when_the_new_one_cannot_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, {"stage": "train", "epoch": 0})
    before = html_of(run)

    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(OSError, match="No space left"):
        write(run)
    assert (run / "report.html").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "report.html"]
