"""Whoever writes into a data set or a run folder gets nothing read, written or typed elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.config import RunConfig
from pipelines.data.check import check
from pipelines.errors import UserError
from pipelines.runs import runlog
from pipelines.runs.console import _Terminal, printable


@pytest.mark.parametrize("name", [".lock", "config.yaml", "environment.json"])
def test_a_planted_link_is_not_written_through(
    tmp_path: Path, make_config: Callable[..., RunConfig], name: str
) -> None:
    outside, run = tmp_path / "precious", tmp_path / "run"
    outside.write_text("precious")
    run.mkdir()
    (run / name).symlink_to(outside)
    with contextlib.suppress(UserError), runlog.held(run):
        runlog.claim(run, make_config(), ["crossreid"])
    assert outside.read_text() == "precious"


@pytest.mark.parametrize("code", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x08\x08", "\r"])
def test_no_control_character_reaches_a_terminal(code: str) -> None:
    output = io.StringIO()
    terminal = _Terminal(file=output, force_terminal=False, soft_wrap=True)
    terminal.print(f"id {code} end", markup=False)
    assert code[0] not in output.getvalue()
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in printable(code))


def test_a_bomb_a_pipe_and_a_device_are_named_and_not_read(tmp_path: Path) -> None:
    root = tmp_path / "d"
    (root / "visible").mkdir(parents=True)
    Image.new("1", (8_000, 8_000)).save(root / "visible/bomb.png")
    result = check("folder", root)
    (problem,) = result.problems
    assert "64 megapixels" in problem.examples[0]
    os.mkfifo(root / "visible/x.png")
    (problem,) = check("folder", root).problems
    assert "x.png is no regular file" in problem.what
