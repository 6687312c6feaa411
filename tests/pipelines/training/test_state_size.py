"""A kept state holds everything once: module, optimizer, the epoch's banks, and little else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipelines.config.run import RunConfig
from pipelines.runs import checkpoint
from pipelines.runs.records import State
from pipelines.training import deterministic, within_epoch
from pipelines.training.within_epoch import Order
from reid_core.methods.bmil.settings import HANDED_WEIGHTS
from tests.pipelines import small_runs

pytestmark = pytest.mark.slow
NEEDED = set(checkpoint.TO_GO_ON_FROM) - {"config", "progress"}  # module, optimizer and banks


def tensors_in(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from tensors_in(branch)


def bytes_of(*trees: Any) -> int:
    return sum(x.nbytes for tree in trees for x in tensors_in(tree))


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("cclnet", ()),
        ("cclnet-ours", ()),
        ("bmil", ()),
        ("bmil", ("bmil.teacher=0.9",)),
        ("csdn", ()),
        ("cpcl", ()),
    ],
)
def test_a_state_is_as_large_as_what_an_epoch_needs(
    method: str, overrides: tuple[str, ...], trees: Path, tmp_path: Path
) -> None:
    """The labels and texts of a small run that are handed on, and its configuration, are kilobytes.

    `-s` shows the numbers.
    """
    config = small_runs.make_config(method, trees, *overrides)
    run = small_runs.open_run(config, tmp_path / "run")
    sizes: dict[str, tuple[int, int]] = {}

    def report(line: Any, state: Any) -> None:
        checkpoint.save(tmp_path / "kept", state)
        needed = bytes_of(*(state[name] for name in NEEDED))
        size = (tmp_path / "kept" / checkpoint.STATE).stat().st_size
        sizes[f"{line['stage']}, epoch {line['epoch']}"] = size, needed

    deterministic.train(run.job, run.bank, run.batches, report, device=small_runs.CPU)
    for place, (size, needed) in sizes.items():
        sys.stdout.write(
            f"{' '.join([method, *overrides])}, {place}: {size:,} bytes, {size / needed:.2f} times "
            "module, optimizer and banks\n"
        )
        assert size <= 1.1 * needed + 32 * 1024, place
    assert len(sizes) >= 2


@pytest.fixture(scope="module", params=[(), ("bmil.teacher=0.9",)], ids=["student", "teacher"])
def undisturbed(
    request: pytest.FixtureRequest, trees: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, small_runs.Kept, Path]:
    """BMIL, whose stage 2 starts from the weights of stage 1: two epochs of each."""
    config = small_runs.make_config("bmil", trees, *request.param)
    folder = tmp_path_factory.mktemp("bmil")
    run, remaining = small_runs.open_run(config, folder), small_runs.Kept(folder / "kept")
    deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
    return config, remaining, folder


def weights_in(state: State) -> int:
    """How many tensors of an encoder finished stages have handed on in it."""
    return sum(name.startswith(HANDED_WEIGHTS) for name in state["progress"]["handed"])


def test_weights_are_handed_on_once_and_only_to_the_stage_that_starts_from_them(
    undisturbed: tuple[RunConfig, small_runs.Kept, Path],
) -> None:
    _, remaining, folder = undisturbed
    end_of_first = checkpoint.load(folder / checkpoint.STAGES / "intra")
    for state in (remaining.states[1], end_of_first):
        assert weights_in(state)
        handed, module = state["progress"]["handed"], state["module"]
        stored = {x.untyped_storage().data_ptr() for x in module.values()}
        assert all(x.untyped_storage().data_ptr() in stored for x in handed.values())
    assert [weights_in(remaining.states[number]) for number in (0, 2, 3)] == [0, 0, 0]


def test_an_epoch_that_begins_with_handed_weights_goes_on_without_them(
    undisturbed: tuple[RunConfig, small_runs.Kept, Path], tmp_path: Path
) -> None:
    """Stopped after the first step of stage 2, by what is kept within its first epoch."""
    config, whole, _ = undisturbed
    finished = whole.states[1]
    run, remaining = small_runs.open_run(config, tmp_path), small_runs.Kept(tmp_path / "kept")
    work = run.job, run.bank, run.batches, remaining
    stop: dict[str, Any] = {"state": finished, "notice": lambda: Order.STOP}
    deterministic.train(*work, device=small_runs.CPU, **stop)
    within = within_epoch.load(tmp_path, finished)
    assert not remaining.states
    assert within is not None
    assert (within["within"]["stage"], within["within"]["batch"]) == ("joint", 1)
    assert not weights_in(within)
    deterministic.train(*work, device=small_runs.CPU, state=within)
    assert remaining.hashes == whole.hashes[2:]


def test_a_state_that_repeats_the_weights_goes_on_alike(
    undisturbed: tuple[RunConfig, small_runs.Kept, Path], tmp_path: Path
) -> None:
    """Versions before kept stage 1's weights in every state of stage 2."""
    config, whole, _ = undisturbed
    handed = whole.states[1]["progress"]["handed"]
    older = {**whole.states[2], "progress": {**whole.states[2]["progress"], "handed": handed}}
    run, remaining = small_runs.open_run(config, tmp_path), small_runs.Kept(tmp_path / "kept")
    work = run.job, run.bank, run.batches, remaining
    deterministic.train(*work, device=small_runs.CPU, state=older)
    assert remaining.hashes == whole.hashes[3:]
