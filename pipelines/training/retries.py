"""When a group of workers that failed is started again, and when that is of no use.

Ray Train would count failures over a whole run and try everything again. Here a failure counts only
until something has been finished after it, and what is sure to come again ends the run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, TrainingFailedError, UserCallback

from pipelines.errors import RunFailedError, UserError
from pipelines.runs import failures
from pipelines.training import within_epoch


class GaveUpError(Exception):
    """The run is over; how it is said to the user.

    Args:
        text: cause and place of the whole traceback.
        by_user: whether the user can put it right.
    """

    def __init__(self, text: str, by_user: bool) -> None:
        super().__init__(text, by_user)
        self.text, self.by_user = text, by_user

    def for_users(self) -> Exception:
        """As a command raises it."""
        return (UserError if self.by_user else RunFailedError)(self.text)


def for_users(error: TrainingFailedError) -> Exception:
    """What a command raises where Ray Train says that a run is over."""
    reason = getattr(error, "controller_failure", error)
    if isinstance(reason, GaveUpError):
        return reason.for_users()
    said = next(iter(str(reason).splitlines()), "")
    return RunFailedError(f"Ray Train ended the run with {type(reason).__name__}: {said}")


class Retries(UserCallback):
    """Ray's controller asks it after every failure; what it raises ends the run.

    Args:
        run_dir: of the run.
        limit: failures in a row, without anything finished between them, after which the run goes
            on; -1 for any number.
        say: takes what the user is told where the run goes on.
    """

    def __init__(
        self, run_dir: Path, limit: int, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._run_dir, self._limit, self._say = run_dir, limit, say
        self._attempt = failures.next_attempt(run_dir) - 1
        self._failed = 0
        self._before: str | None = None
        self._mark = within_epoch.mark(run_dir)

    def after_report(
        self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """An epoch is finished and kept: what failed before it counts no longer."""
        if checkpoint is not None:
            self._failed, self._before = 0, None

    def after_exception(
        self, run_context: object, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        """Write down who could not do so, and end the run where trying again is of no use.

        Raises:
            GaveUpError: with the cause.
        """
        if any(failures.was_preempted(error) for error in worker_exceptions.values()):
            self._say("a machine is taken away: the workers go on where there is room")
            return  # nobody's failure
        self._attempt = max(self._attempt + 1, failures.next_attempt(self._run_dir) - 1)
        for rank, error in worker_exceptions.items():
            if not failures.path(self._run_dir, rank, self._attempt).exists():
                failures.write(self._run_dir, error, rank=rank, attempt=self._attempt)
        if (mark := within_epoch.mark(self._run_dir)) != self._mark:
            self._mark, self._failed, self._before = mark, 0, None
        rank = failures.culprit(worker_exceptions)
        error = worker_exceptions[rank]
        self._failed += 1
        before, self._before = self._before, None
        if not any(map(failures.died, worker_exceptions.values())):
            self._before = "\n".join([repr(error), *getattr(error, "__notes__", ())])
        if failures.is_final(error):
            why = ""
        elif before is not None and before == self._before:
            why = ", a second time at the same step"
        elif 0 <= self._limit < self._failed:
            times = f"{self._failed} failures with nothing finished between them"
            why = f" ({times}; trainer.max_failures={self._limit})"
        else:
            why = None
        cause = failures.cause(error, rank)
        where = f"all of it: {failures.path(self._run_dir, rank, self._attempt)}"
        if why is not None:
            raise GaveUpError(f"{cause}{why}; {where}", failures.is_final(error))
        self._say(f"{cause}; the workers start again from what is kept; {where}")
