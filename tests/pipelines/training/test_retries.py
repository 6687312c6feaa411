"""Failures are written down, counted until something is finished, and not repeated in vain."""

from __future__ import annotations

import errno
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from pipelines.errors import RunFailedError, UserError
from pipelines.runs import failures
from pipelines.training.retries import GaveUpError, Retries
from reid_core.augmentation import Augmentation

GONE = WorkerHealthCheckFailedError("no answer", RayActorError())


def at(error: Exception, step: int) -> Exception:
    error.add_note(f"in align, epoch 3, step {step}")
    return error


def ends(retries: Retries, **errors: Exception) -> GaveUpError | None:
    """What a failure of ranks r0, r1, ... leads to; None where the run goes on."""
    try:
        retries.after_exception(None, {int(name[1:]): error for name, error in errors.items()})
    except GaveUpError as end:
        return end
    return None


def test_a_failure_is_written_with_place_traceback_and_log(tmp_path: Path) -> None:
    def fail() -> None:
        logging.getLogger("pipelines").warning("the disk is slow")
        raise at(KeyError("labels.visible"), 7)

    with pytest.raises(KeyError), failures.reported(tmp_path, rank=1, attempt=1, node="abc"):
        fail()
    text = (tmp_path / "failures/rank-1-attempt-1.txt").read_text()
    for part in ("worker 1, attempt 1, on ", " abc\n", "in align, epoch 3, step 7", "in fail\n"):
        assert part in text
    assert text.rstrip().endswith("WARNING pipelines: the disk is slow")
    assert failures.next_attempt(tmp_path) == 2


def test_a_full_disk_is_for_the_user(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(UserError, match=r"make room in .* the same command again"),
        failures.reported(tmp_path, rank=0, attempt=1),
    ):
        raise full


def test_failures_count_until_an_epoch_is_finished(tmp_path: Path) -> None:
    retries = Retries(tmp_path, 2)
    for _ in range(3):
        assert ends(retries, r0=GONE) is None
        assert ends(retries, r1=GONE) is None
        retries.after_report(None, [{}], object())  # type: ignore[arg-type]
    assert ends(retries, r0=GONE) is None
    assert ends(retries, r0=GONE) is None
    end = ends(retries, r0=GONE)
    assert end is not None
    assert "worker 0 ended without a word" in end.text
    assert "3 failures with nothing finished between them; trainer.max_failures=2" in end.text
    assert end.text.endswith(str(tmp_path / "failures/rank-0-attempt-9.txt"))
    assert "no answer" in (tmp_path / "failures/rank-0-attempt-9.txt").read_text()
    assert isinstance(end.for_users(), RunFailedError)


@pytest.mark.parametrize(
    ("error", "who"),
    [
        (ActorDiedError(), "an actor, most likely the memory bank, ended"),
        (ActorUnavailableError("it restarts", b"0" * 16), "an actor, most likely the memory bank,"),
        (RayActorError(error_msg="died\n\tclass_name: BankActor\n"), "the memory bank, on the"),
        (RayActorError(error_msg="died\n\tclass_name: SplitCoordinator\n"), "the actor SplitC"),
    ],
)
def test_an_actor_that_ends_is_not_taken_for_the_worker_that_asked_it(
    tmp_path: Path, error: Exception, who: str
) -> None:
    """A worker that ends is told by Ray's health check, as `GONE` is."""
    retries = Retries(tmp_path, 2)
    assert ends(retries, r0=RuntimeError("gloo: closed"), r1=error) is None
    assert ends(retries, r1=error) is None  # nor the same error at the same step
    end = ends(retries, r1=error)
    assert end is not None
    assert end.text.startswith(who)
    assert "ended without a word to worker 1: " in end.text
    # a worker that is gone says more than one that has asked what is gone
    assert failures.culprit({0: error, 1: GONE}) == 1


def test_any_number_of_machines_may_go(tmp_path: Path) -> None:
    retries = Retries(tmp_path, -1)
    assert not any(ends(retries, r0=GONE, r1=RuntimeError("gloo: closed")) for _ in range(100))
    assert len(list((tmp_path / "failures").iterdir())) == 100  # of the last fifty attempts


def of_a_worker(work: Callable[[], object], run_dir: Path) -> Exception:
    """What Ray's controller gets of a worker that fails so: without its traceback."""
    with (
        pytest.raises(Exception, match=r"\S") as caught,
        failures.reported(run_dir, rank=1, attempt=1),
    ):
        work()
    sent: Exception = pickle.loads(pickle.dumps(caught.value))
    assert sent.__traceback__ is None
    return sent


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: torch.tensor([1, 2]).numpy().reshape(3), "cannot reshape array of size 2"),
        (lambda: int("a"), "invalid literal for int"),
        (lambda: np.linalg.norm(1, axis=7), "axis"),
    ],
)
def test_a_library_that_refuses_a_value_is_no_mistake_of_the_user(
    tmp_path: Path, work: Callable[[], object], said: str
) -> None:
    error = of_a_worker(work, tmp_path)
    retries = Retries(tmp_path, -1)
    assert isinstance(error, ValueError)
    assert ends(retries, r1=error) is None
    end = ends(retries, r1=error)
    assert end is not None
    assert "a second time at the same step" in end.text
    assert said in end.text
    assert isinstance(end.for_users(), RunFailedError)


def test_a_value_that_this_project_refuses_is_one(tmp_path: Path) -> None:
    error = of_a_worker(lambda: Augmentation(pad=-1), tmp_path)
    end = ends(Retries(tmp_path, -1), r1=error)
    assert end is not None
    assert end.text.startswith("pad is a number of pixels, not -1; all of it: ")
    assert isinstance(end.for_users(), UserError)


def test_what_settings_or_data_cause_is_not_tried_again(tmp_path: Path) -> None:
    error = UserError("the loss is not finite")
    end = ends(Retries(tmp_path, -1), r0=RuntimeError("Connection closed by peer"), r1=error)
    assert end is not None
    assert str(error) in end.text.splitlines()[-1]
    assert end.text.endswith(str(tmp_path / "failures/rank-1-attempt-1.txt"))
    assert isinstance(end.for_users(), UserError)


def test_the_same_error_at_the_same_step_is_not_tried_a_third_time(tmp_path: Path) -> None:
    retries = Retries(tmp_path, -1)
    assert ends(retries, r0=at(KeyError("a"), 4)) is None
    assert ends(retries, r0=at(KeyError("a"), 5)) is None
    assert ends(retries, r0=GONE) is None
    assert ends(retries, r0=at(KeyError("a"), 5)) is None
    end = ends(retries, r0=at(KeyError("a"), 5))
    assert end is not None
    assert "worker 0 met KeyError: 'a', a second time at the same step" in end.text


def test_a_machine_that_is_taken_back_is_no_failure(tmp_path: Path) -> None:
    taken = WorkerHealthCheckFailedError("drained", RayActorError(preempted=True))
    retries = Retries(tmp_path, 0)
    assert ends(retries, r0=taken, r1=RuntimeError("gloo: closed")) is None
    assert not (tmp_path / "failures").exists()


def test_attempts_of_later_commands_are_counted_on(tmp_path: Path) -> None:
    for attempt in (1, 2):
        ends(Retries(tmp_path, -1), r0=GONE)
        assert failures.path(tmp_path, 0, attempt).exists()
    # workers wrote their own files
    retries = Retries(tmp_path, -1)
    failures.write(tmp_path, KeyError("a"), rank=0, attempt=3)
    ends(retries, r0=KeyError("a"), r1=GONE)
    assert sorted(path.name for path in (tmp_path / "failures").glob("*-3.txt")) == [
        "rank-0-attempt-3.txt",
        "rank-1-attempt-3.txt",
    ]
