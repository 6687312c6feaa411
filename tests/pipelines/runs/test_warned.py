"""What a run warns of stands in its folder, whoever said it and wherever."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipelines.config.run import RunConfig
from pipelines.runs import warned
from pipelines.training import run
from pipelines.training.progress import Progress


def test_our_own_warnings_are_kept_while_the_block_runs(tmp_path: Path) -> None:
    ours = [logging.getLogger(name) for name in ("pipelines.data.prepare", "reid_core.datasets")]
    assert warned.read(tmp_path) == []
    with warned.kept(tmp_path):
        for log in ours:
            log.warning("left out: %s", log.name)
            log.info("no warning")
        logging.getLogger("ray.data").warning("somebody else's")
    ours[0].warning("later")
    lines = warned.read(tmp_path)
    assert [line.split(" ", 2)[2] for line in lines] == [f"left out: {log.name}" for log in ours]


def test_what_was_warned_of_before_the_folder_was_known_stands_in_it_too(tmp_path: Path) -> None:
    log = logging.getLogger("pipelines.data.gate")
    with warned.kept() as warnings:
        log.warning("early")
        assert warned.read(tmp_path) == []
        warnings.write_to(tmp_path)
        log.warning("late")
    with warned.kept():
        log.warning("of a run that was refused")
    with warned.kept() as warnings:  # the same command again
        log.warning("early")
        log.warning("another\nof two lines")
        early = [record.getMessage() for record in warnings.early]
        assert early == ["early", "another\nof two lines"]
        warnings.write_to(tmp_path)
    texts = [text for _, text in warned.messages(warned.read(tmp_path))]
    assert texts == ["early", "late", "another\nof two lines"]


def test_a_folder_that_takes_nothing_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warned.kept(tmp_path / "gone"):
        logging.getLogger("pipelines.data.prepare").warning("left out: x")
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("configured", [False, True])
def test_what_is_kept_is_shown_once_as_it_would_have_been(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    configured: bool,
) -> None:
    """A user of the Python API configures no logging, and Python then shows warnings on stderr."""
    shown: list[str] = []

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    monkeypatch.setattr(logging.getLogger(), "handlers", [Terminal()] if configured else [])
    log = logging.getLogger("pipelines.data.prepare")
    log.warning("before")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with warned.kept(tmp_path / "a"), warned.kept(tmp_path / "b"):
        log.warning("within")
        log.info("no warning")
    log.warning("after")
    assert (shown or capsys.readouterr().err.splitlines()) == ["before", "within", "after"]
    assert capsys.readouterr().err == ""
    assert [len(warned.read(tmp_path / name)) for name in "ab"] == [1, 1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_names_what_it_left_out_and_what_it_could_not_say(
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    def fit(*_: object) -> Progress:
        if fails:
            raise OSError("the machine is gone")
        return Progress()

    monkeypatch.setattr(run, "finish", lambda *_: {})
    backend = run.Backend(
        machines=lambda config, run_dir: nullcontext(),
        find_broken=lambda inputs, modality: [(0, f"a broken image of {modality}")],
        fit=fit,
        calibrate=lambda config, run_dir: "there was no room",
    )
    config = make_config("data.max_unreadable=0.5", "evaluation.calibrate=true")
    with pytest.raises(OSError, match="gone") if fails else nullcontext():
        run.complete(config, tmp_path / "a", (), backend)
    text = "\n".join(warned.read(tmp_path / "a"))
    assert "left out: a broken image of visible" in text
    assert ("no probability yet: there was no room" in text) is not fails
