"""A run that is interrupted anywhere ends in the state of the undisturbed run."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from pipelines.errors import StaleBankError, UserError
from pipelines.runs import checkpoint, recovery, runlog
from pipelines.storage import lock
from pipelines.training import deterministic, within_epoch
from pipelines.training.equipment import Equipment
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.progress import Place
from pipelines.training.within_epoch import Order
from reid_core.types import Modality
from tests.pipelines import small_runs

pytestmark = pytest.mark.slow
METHODS = ("cclnet", "bmil", "csdn", "cpcl", "cclnet-vit", "bmil-vit", "csdn-vit", "cpcl-vit")
KILLS = (  # of those of `make bench-kills`: every process once, both kinds of encoder
    "driver mid-epoch",
    "worker while a checkpoint is written",
    "memory actor while clustering",
    "worker mid-epoch, BMIL on a transformer",
)


class InterruptionError(Exception):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class Undisturbed:
    """A run to its end: its states after every epoch and its log."""

    config: RunConfig
    states: list[dict[str, Any]]
    hashes: list[str]
    lines: list[dict[str, Any]]


@pytest.fixture(
    scope="module",
    params=["cclnet", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS[1:])],
)
def undisturbed(
    request: pytest.FixtureRequest, trees: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    config = small_runs.make_config(request.param, trees)
    folder = tmp_path_factory.mktemp(request.param)
    remaining = small_runs.Kept(folder / "kept")
    run = small_runs.open_run(config, folder)
    deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
    return Undisturbed(config, remaining.states, remaining.hashes, log_of(folder))


def log_of(folder: Path) -> list[dict[str, Any]]:
    """What an epoch found, without how long it took."""
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "speed")}
        for line in runlog.read_metrics(folder)
    ]


def until(remaining: small_runs.Kept, epochs: int) -> Callable[..., None]:
    """What keeps some epochs, then ends the process."""

    def report(line: dict[str, Any], state: dict[str, Any] | None) -> None:
        remaining(line, state)
        if len(remaining.states) == epochs:
            raise InterruptionError

    return report


def go_on(
    run: small_runs.Small, state: dict[str, Any] | None, remaining: small_runs.Kept, *, epochs: int
) -> None:
    """Train some epochs as a new process would, then stop between two."""

    report = until(remaining, epochs)
    with pytest.raises(InterruptionError):
        deterministic.train(
            run.job, run.bank, run.batches, report, device=small_runs.CPU, state=state
        )


def test_every_epoch_goes_on_from_the_one_before(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """By induction: from any checkpoint, first epochs and finished stages among them."""
    states = [None, *undisturbed.states]
    for number, state in enumerate(states[:-1]):
        remaining = small_runs.Kept(tmp_path / "kept")
        run = small_runs.open_run(undisturbed.config, tmp_path / "run")
        go_on(run, state, remaining, epochs=1)
        assert remaining.hashes == [undisturbed.hashes[number]], f"epoch {number} of the run"


@pytest.mark.parametrize("steps", [1, 2])
def test_an_epoch_cut_off_leaves_no_trace(
    undisturbed: Undisturbed, tmp_path: Path, steps: int
) -> None:
    """Interrupted after any step; the bank lives on and has seen the unfinished epoch.

    BMIL's stage 2 ends in a step on separate labels after one, on joint ones after two.
    """
    number = int(np.random.default_rng(7).integers(1, len(undisturbed.states)))
    if undisturbed.config.method == "bmil":
        number = len(undisturbed.states) - 1
    state = undisturbed.states[number - 1]
    run = small_runs.open_run(undisturbed.config, tmp_path)
    remaining = small_runs.Kept(tmp_path / "kept")
    taken = []

    def stumble(*_: Any) -> None:
        taken.append(1)
        if len(taken) == steps:
            raise InterruptionError

    hook = register_optimizer_step_post_hook(stumble)
    with pytest.raises(InterruptionError):
        deterministic.train(
            run.job, run.bank, run.batches, remaining, device=small_runs.CPU, state=state
        )
    hook.remove()
    assert not remaining.states
    go_on(run, state, remaining, epochs=1)
    assert remaining.hashes == [undisturbed.hashes[number]]


def test_a_run_that_is_asked_to_end_goes_on_within_the_epoch(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every epoch is stopped after each of its steps, by another process every time."""
    drawn: list[tuple[Place, int]] = []
    begin_step = Equipment.begin_step

    def watched(equipment: Equipment) -> None:
        begin_step(equipment)
        drawn.append((equipment.place, torch.initial_seed()))

    monkeypatch.setattr(Equipment, "begin_step", watched)
    states: list[dict[str, Any] | None] = [None, *undisturbed.states]
    streamed = 0
    for number, finished in enumerate(states[:-1]):
        folder = tmp_path / str(number)
        drawn.clear()
        remaining, taken = small_runs.Kept(tmp_path / "kept"), 0
        while not remaining.states and taken < 4:
            run = small_runs.open_run(undisturbed.config, folder)
            stop = Order.STOP if taken < 3 else Order.NOTHING
            state = within_epoch.load(folder, finished)
            train = {"device": small_runs.CPU, "state": state, "notice": lambda stop=stop: stop}
            with contextlib.suppress(InterruptionError):
                deterministic.train(run.job, run.bank, run.batches, until(remaining, 1), **train)
            taken += 1
        if (folder / checkpoint.WITHIN).exists():
            steps = [place.step for place, _ in drawn]
            assert steps == list(range(1, len(steps) + 1))
            assert len({seed for _, seed in drawn}) == len(steps)
            streamed += 1
            assert remaining.hashes == [undisturbed.hashes[number]], f"epoch {number} of the run"
            assert log_of(folder)[-1] == undisturbed.lines[number]
    assert streamed >= 2


def test_the_log_tells_every_epoch_once(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Interrupted between the line of an epoch and its checkpoint: the line is taken back."""
    last = len(undisturbed.states) - 1
    (tmp_path / runlog.METRICS).write_text(
        "".join(json.dumps(line) + "\n" for line in undisturbed.lines) + '{"stage": "al'
    )
    run = small_runs.open_run(undisturbed.config, tmp_path)
    remaining = small_runs.Kept(tmp_path / "kept")
    state = undisturbed.states[last - 1]
    deterministic.train(
        run.job, run.bank, run.batches, remaining, device=small_runs.CPU, state=state
    )
    assert log_of(tmp_path) == undisturbed.lines  # stability too, whose other half is kept
    assert remaining.hashes == undisturbed.hashes[last:]


def test_a_finished_run_trains_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = small_runs.open_run(undisturbed.config, tmp_path)
    remaining = small_runs.Kept(tmp_path / "kept")
    state = undisturbed.states[-1]
    progress = deterministic.train(
        run.job, run.bank, run.batches, remaining, device=small_runs.CPU, state=state
    )
    assert not remaining.states
    assert progress.scores == state["progress"]["scores"]


def test_the_first_epoch_with_another_label_is_found(tmp_path: Path) -> None:
    labels = ({"visible": "a"}, {"visible": "b"}, {"visible": "c"})
    for name, third in (("one", labels[2]), ("same", labels[2]), ("other", labels[0])):
        (tmp_path / name).mkdir()
        for epoch, digests in enumerate((*labels[:2], third)):
            line = {"stage": "align", "epoch": epoch, "labels": digests}
            runlog.append_metrics(tmp_path / name, line)
    assert runlog.first_difference(tmp_path / "one", tmp_path / "same") is None
    assert runlog.first_difference(tmp_path / "one", tmp_path / "other") == ("align", 2)
    (tmp_path / "whole").mkdir()  # with a stage before, whose epochs are not the other's
    for stage in ("prepare", "align"):
        line = {"stage": stage, "epoch": 0, "labels": labels[stage == "prepare"]}
        runlog.append_metrics(tmp_path / "whole", line)
    assert runlog.first_difference(tmp_path / "one", tmp_path / "whole") is None
    (tmp_path / "none").mkdir()
    runlog.append_metrics(tmp_path / "none", {"stage": "align", "epoch": 0})
    with pytest.raises(UserError, match="no epoch in common"):
        runlog.first_difference(tmp_path / "one", tmp_path / "none")


def test_an_empty_stream_is_not_an_epoch(trees: Path, tmp_path: Path) -> None:
    """A bank that was restarted after it began the epoch has no plan to stream."""
    run = small_runs.open_run(small_runs.make_config("cpcl", trees), tmp_path)
    remaining = small_runs.Kept(tmp_path / "kept")

    def nothing(start: object) -> Iterator[Any]:
        return iter(())

    with pytest.raises(RuntimeError, match="ended before the plan"):
        deterministic.train(run.job, run.bank, nothing, remaining, device=small_runs.CPU)


def test_nobody_waits_for_a_group_that_is_gone(trees: Path) -> None:
    """A new group opens the bank while a call of the old one still waits for features."""
    pids = {m: np.zeros(4, dtype=np.int64) for m in (Modality.VISIBLE, Modality.INFRARED)}
    bank = MemoryBank(small_runs.make_config("cclnet", trees), pids)
    old, errors = bank.open(), []

    def wait() -> None:
        try:
            bank.begin_epoch(old, ("align", 0), 1)
        except StaleBankError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    bank.open()
    waiting.join(timeout=5)
    assert [error.sent for error in errors] == [old]


@pytest.mark.slow
@pytest.mark.night
def test_killed_processes_end_as_the_undisturbed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four of the kills, on a real Ray; the script asserts that they happened and equal hashes."""
    root, table = Path(__file__).parents[3], tmp_path / "kills.json"
    command = [sys.executable, "-m", "benchmarks.kills", "--out", str(table)]
    for kill in KILLS:
        command += ["--only", kill]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    with capsys.disabled():
        sys.stdout.write("\n" + result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(json.loads(table.read_text())) == len(KILLS) + 2  # and the undisturbed runs


# Checkpoints -------------------------------------------------------------------------------------


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"w": torch.zeros(3)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # bytes of a file
    try:
        with pytest.raises((OSError, RuntimeError)):  # torch's writer has its own words
            checkpoint.save(tmp_path, {"w": torch.ones(1 << 16)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(checkpoint.load(tmp_path)["w"], torch.zeros(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["info.json", "state.pt"]


def test_the_hash_does_not_cover_where_and_on_how_many_workers(tmp_path: Path) -> None:
    here = {"config": {"trainer": {"num_workers": 1}}, "module": {"w": torch.ones(2)}}
    there = {**here, "config": {"trainer": {"num_workers": 4}}}
    assert checkpoint.content_hash(here) == checkpoint.content_hash(there)


def leave(run_dir: Path, *names: str, listed: tuple[str, ...]) -> None:
    """Checkpoints in a run directory, and Ray's list of them."""
    for number, name in enumerate(names):
        checkpoint.save(run_dir / name, {"number": number}, {})
    entries = [{"checkpoint_dir_name": name, "metrics": {}} for name in listed]
    (run_dir / recovery.RECORD).write_text(json.dumps({"checkpoint_results": entries}))


A, B, C = (f"checkpoint_{number}" for number in (1, 2, 3))


def names_in(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.glob("checkpoint_?"))


def test_a_good_list_is_left_to_ray_and_strays_go(tmp_path: Path) -> None:
    leave(tmp_path, A, B, C, listed=(A, B))
    assert recovery.tidy(tmp_path) is None
    assert names_in(tmp_path) == [A, B]
    assert (tmp_path / recovery.RECORD).exists()


@pytest.mark.parametrize("text", ["", '{"checkpoint_results": [{"check', "[]"])
def test_a_broken_list_gives_way_to_the_newest_whole_checkpoint(tmp_path: Path, text: str) -> None:
    leave(tmp_path, A, B, C, listed=())
    (tmp_path / recovery.RECORD).write_text(text)
    state = tmp_path / C / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-10])
    result = recovery.tidy(tmp_path)
    assert result is not None
    assert checkpoint.load(result) == {"format": checkpoint.FORMAT, "number": 1}
    assert names_in(tmp_path) == [A, B]
    assert not (tmp_path / recovery.RECORD).exists()


def test_a_list_that_names_a_damaged_checkpoint_is_not_followed(tmp_path: Path) -> None:
    leave(tmp_path, A, B, listed=(A, B))
    (tmp_path / B / checkpoint.INFO).unlink()
    assert recovery.tidy(tmp_path) == tmp_path / A


def test_a_first_run_has_nothing_to_tidy(tmp_path: Path) -> None:
    assert recovery.tidy(tmp_path) is None


def test_a_copy_that_was_cut_off_is_not_the_newest_checkpoint(tmp_path: Path) -> None:
    leave(tmp_path, A, B, listed=())
    (tmp_path / B / checkpoint.STATE).write_bytes(b"PK")
    assert checkpoint.find(tmp_path) == tmp_path / A


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    other = pytest.raises(UserError, match="another process trains in")
    with lock.held(tmp_path), other, lock.held(tmp_path):
        pass
    with lock.held(tmp_path):
        pass


def test_strictness_may_not_change_within_a_run(trees: Path, tmp_path: Path) -> None:
    runlog.claim(tmp_path, small_runs.make_config("cpcl", trees), [])
    runlog.append_metrics(tmp_path, {"stage": "train", "epoch": 0})
    changed = small_runs.make_config("cpcl", trees, "trainer.strict=true")
    with pytest.raises(UserError, match=r"trainer\.strict: False -> True"):
        runlog.claim(tmp_path, changed, [])
    runlog.claim(tmp_path, small_runs.make_config("cpcl", trees, "trainer.num_workers=2"), [])


def test_a_directory_in_which_nothing_was_trained_takes_another_configuration(
    trees: Path, tmp_path: Path
) -> None:
    runlog.claim(tmp_path, small_runs.make_config("cpcl", trees, "seed=4"), [])
    mended = small_runs.make_config("cpcl", trees, "seed=5")
    runlog.claim(tmp_path, mended, [])
    assert configuration.load(tmp_path / runlog.CONFIG, []).seed == 5
