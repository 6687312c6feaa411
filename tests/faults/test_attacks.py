"""Whoever writes into a data set or a run gets nothing read, written, run or typed elsewhere.

Attacks are lines of attacks.yaml; here is how each kind is carried out, and what must hold then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, PngImagePlugin

from pipelines.config import run as configuration
from pipelines.data import roots
from pipelines.data.check import check
from pipelines.data.sample_list import remember
from pipelines.errors import UserError
from pipelines.evaluation.evaluate import Evaluation
from pipelines.report import page
from pipelines.retrieval import contact_sheet
from pipelines.retrieval.search import Query
from pipelines.runs import checkpoint, failures, runlog, tensorboard
from pipelines.runs.console import _Terminal, printable
from pipelines.storage import http, lock
from pipelines.training import within_epoch
from pipelines.training.summary import finish
from reid_core.models import backbones
from reid_core.types import Modality
from tests.faults import ledger
from tests.pipelines import fake_run

ATTACKS = yaml.safe_load((Path(__file__).parent / "attacks.yaml").read_text())
Attack = Callable[[dict[str, Any], Path], None]
HOW: dict[str, Attack] = {}
SMALL = "crossreid-small"
LINE = fake_run.epoch_line("align", 0, 0.5, np.random.default_rng(0))


def attack(kind: str) -> Callable[[Attack], Attack]:
    def add(carried_out: Attack) -> Attack:
        HOW[kind] = carried_out
        return carried_out

    return add


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: "-".join(map(str, case.values()))[:40])
def test_an_attack_is_held(case: dict[str, Any], tmp_path: Path) -> None:
    outcome = "through"
    try:
        HOW[case["kind"]](case, tmp_path)  # asserts what the attack wanted
        outcome = "answered"
    finally:
        ledger.note("attacks", outcome)
    assert outcome == "answered"


class Bomb:
    """Ends the process where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


# A run that writes all that a run writes ---------------------------------------------------------


def write_everything(run: Path) -> None:
    """Every writer of a run folder, in turn; refusals are as good as replaced links."""
    config = configuration.validate({"data": {"root": "/data"}}, source="test")
    line = {"stage": "align", "epoch": 0, "losses": {"total": 1.0}}
    result = Evaluation({}, {"rank1": 1.0}, 1.0, {"ap": np.ones(2)})
    state = {"progress": {"stage": "align", "epoch": 0}}
    empty: Any = dataclasses.make_dataclass("Prepared", ["kind", "measured"])("sysu", True)
    progress: Any = dataclasses.make_dataclass("Progress", ["stage", "scores", "table", "chance"])(
        "align", {}, {}, 1.0
    )
    split: Any = dataclasses.make_dataclass("Rows", ["samples"])(())

    def claim() -> None:
        with lock.held(run):
            runlog.claim(run, config, ["crossreid"])

    for write in (
        claim,
        lambda: remember(run, split),
        lambda: runlog.append_metrics(run, line),
        lambda: tensorboard.write(run, line),
        lambda: result.save_details(run / "evaluation" / "align.npz"),
        lambda: within_epoch.save(run, state),
        lambda: checkpoint.save_stage(run, state),
        lambda: checkpoint.save(run / "checkpoint_align_0000", state, {}),
        lambda: failures.write(run, KeyError("x"), rank=0, attempt=1),
        lambda: finish(run, config, empty, progress, {}),
        lambda: page.write(run),
    ):
        with contextlib.suppress(UserError, OSError, ValueError, KeyError):
            write()


@attack("planted")
def planted(case: dict[str, Any], folder: Path) -> None:
    outside, place = folder / "precious", folder / "run" / case["name"]
    outside.write_text("precious")
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    write_everything(folder / "run")
    assert outside.read_text() == "precious"


@attack("planted folder")
def planted_folder(case: dict[str, Any], folder: Path) -> None:
    outside, place = folder / "precious", folder / "run" / case["name"]
    outside.mkdir()
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    write_everything(folder / "run")
    assert not list(outside.iterdir())


# Terminals, images, rows, addresses --------------------------------------------------------------


@attack("escape")
def escape(case: dict[str, Any], folder: Path) -> None:
    code, output = case["text"], io.StringIO()
    terminal = _Terminal(file=output, force_terminal=False, soft_wrap=True)
    terminal.print(f"id {code} end", markup=False)
    assert code[0] not in output.getvalue()
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in printable(code))


@attack("image")
def image(case: dict[str, Any], folder: Path) -> None:
    path = folder / "d" / "visible" / "a.png"
    path.parent.mkdir(parents=True)
    if case["file"] == "bomb":
        Image.new("1", (8_000, 8_000)).save(path)
    elif case["file"] == "pipe":
        os.mkfifo(path)
    elif case["file"] == "device":
        path.symlink_to("/dev/zero")
    else:
        text = PngImagePlugin.PngInfo()
        text.add_text("a", "x" * 2**27, zip=True)  # 128 MiB in 130 kB
        Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    problems = check("folder", folder / "d").problems
    said = " ".join([*(p.what for p in problems), *(e for p in problems for e in p.examples)])
    assert case["says"] in said


@attack("row")
def row(case: dict[str, Any], folder: Path) -> None:
    root = folder / "root"
    (root / "visible").mkdir(parents=True)
    (folder / "secret.png").write_bytes(b"secret")
    (root / "link").symlink_to(folder)
    (root / "manifest.csv").write_text(f"image,modality\n{case['image']},visible\n")
    with pytest.raises((UserError, ValueError), match=case["says"]):
        roots.read("manifest", root)


@attack("fetch")
def fetch(case: dict[str, Any], folder: Path) -> None:
    with pytest.raises(OSError, match=r"refused|resol|service|known|address") as refused:
        http.read(case["url"], max_bytes=100)
    assert not isinstance(refused.value, ConnectionRefusedError)  # nobody was asked


# Code, and pages ---------------------------------------------------------------------------------


@attack("pickle")
def unpickle(case: dict[str, Any], folder: Path) -> None:
    run = fake_run.small_run(folder / "run", LINE)
    if case["file"] == "evaluation":
        (run / "evaluation").mkdir()
        np.savez(run / "evaluation/final.npz", ap=np.array([Bomb()], dtype=object))
        assert "final.npz is damaged and was left out" in page.write(run).read_text()
        return
    torch.save({"format": 1, "x": Bomb()}, run / "state.pt")
    is_weights = case["file"] == "weights"
    with pytest.raises((UserError, ValueError)) as refused:
        backbones.load(SMALL, str(run / "state.pt")) if is_weights else checkpoint.load(run)
    assert "weights_only" not in str(refused.value)
    os.replace(run / "state.pt", run / checkpoint.WITHIN)
    assert within_epoch.load(run, None) is None


@attack("recipe")
def recipe(case: dict[str, Any], folder: Path) -> None:
    (folder / "recipe.yaml").write_text(case["text"])
    with pytest.raises(UserError, match=case["says"]):
        configuration.load(folder / "recipe.yaml")


@attack("page")
def words(case: dict[str, Any], folder: Path) -> None:
    text = case["text"]
    query = Query(np.ones(2, dtype=np.float32), text, Modality.VISIBLE)
    html = contact_sheet.write(folder / "a.html", query, [], note=text).read_text()
    run = fake_run.small_run(folder / "run", {**LINE, "warnings": [text]})
    (run / "config.yaml").write_text(yaml.safe_dump({"method": "cclnet", "data": {"kind": text}}))
    html += page.write(run).read_text()
    for tag in ("<script>alert", "<img src=x", 'href="javascript', 'src="javascript'):
        assert tag not in html
