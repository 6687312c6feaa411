"""What the driver says while a run's workers do not train, and when they are waited for no longer.

Ray Train asks for their room again and again, without a word or an end, in a process that has no
terminal. There `Awaited` follows its states, ends a run for which nobody will make room, and leaves
on a board of the cluster what is the matter; the driver looks at it and says so.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)

from pipelines.cluster import capacity
from pipelines.config.run import RunConfig
from pipelines.runs.console import say
from pipelines.training.retries import GaveUpError

log = logging.getLogger(__name__)
_LOOK_S = 1.0
_AT_ONCE_S = 10.0  # that a group which begins may take before its room is said to be lacking
_NO_ANSWER = RayError, OSError  # of the cluster: what only talks ends no run
_TRAINS = RunningState, PreemptingState
_STARTS = InitializingState, SchedulingState, RestartingState, ReschedulingState, ResizingState


@dataclass(frozen=True)
class Board:
    """A place of the cluster that Ray's controller and the driver of a run both know.

    Attributes:
        key: its name.
    """

    key: str = field(default_factory=lambda: f"crossreid-{uuid.uuid4().hex}")

    def waits(self, seconds: float | None) -> None:
        """Leave that workers lack room for so long; None: no longer."""
        self._put("waits", seconds)

    def failed(self, text: str) -> None:
        """Leave what has happened to a worker, after which they are started again."""
        self._put("failed", (time.time(), text))

    def waited(self) -> float | None:
        """The last of `waits`."""
        seconds = self._get("waits")
        return None if seconds is None else float(seconds)

    def failure(self) -> tuple[float, str] | None:
        """The last of `failed`, with what tells it from another one of the same words."""
        failure = self._get("failed")
        return None if failure is None else (float(failure[0]), str(failure[1]))

    def clear(self) -> None:
        """Leave nothing."""
        with suppress(*_NO_ANSWER):
            _internal_kv_del(self.key, del_by_prefix=True)

    def _put(self, name: str, value: object) -> None:
        with suppress(*_NO_ANSWER):
            _internal_kv_put(f"{self.key}-{name}", json.dumps(value), overwrite=True)

    def _get(self, name: str) -> Any:
        value = None
        with suppress(*_NO_ANSWER):
            value = _internal_kv_get(f"{self.key}-{name}")
        return json.loads(value) if value else None


class Awaited(ControllerCallback):
    """Ray's controller tells it every state; what it raises ends the run.

    That there is no room is known where a group could not be placed within Ray's minute, or where
    a run with `trainer.min_workers` does not even try.

    Args:
        config: of the run.
        share: what a worker reserves.
        board: for the driver to look at.
    """

    def __init__(self, config: RunConfig, share: Mapping[str, float], board: Board) -> None:
        self._config, self._share, self._board = config, dict(share), board
        self._since: float | None = None
        self._left = False
        self._looked = 0.0

    def after_controller_start(self, train_run_context: object) -> None:
        """From now on workers are waited for."""
        self._since = time.monotonic()

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Workers train, or are waited for.

        Raises:
            GaveUpError: they are waited for longer than `ray.wait_for_nodes_s`, where no machine
                that is lacking may be added.
        """
        if isinstance(current_state, _TRAINS):
            self._since = None
        elif isinstance(current_state, _STARTS):
            self._since = self._since or time.monotonic()
        waited = 0.0 if self._since is None else time.monotonic() - self._since
        stays = type(current_state) is type(previous_state)
        lacking = waited >= _AT_ONCE_S and (
            isinstance(current_state, ReschedulingState)
            or (stays and isinstance(current_state, (InitializingState, RestartingState)))
        )
        if lacking and not self._left:
            self._board.waits(waited)
        elif self._left and self._since is None:
            self._board.waits(None)
        self._left = self._since is not None and (self._left or lacking)
        if isinstance(current_state, ReschedulingState) and not stays:
            self._say_why(current_state)
        if lacking and waited > self._config.ray.wait_for_nodes_s:
            self._end()

    def _say_why(self, state: ReschedulingState) -> None:
        """What kept a group from starting, unless that is the room it lacks."""
        failed = getattr(state, "training_failed_error", None)
        why = getattr(failed, "controller_failure", None)
        if why is not None and not isinstance(why, WorkerGroupStartupTimeoutError):
            said = next(iter(str(why).splitlines()), type(why).__name__)
            self._board.failed(f"the workers did not start ({said}); they are started again")

    def _end(self) -> None:
        if time.monotonic() - self._looked < _LOOK_S:
            return  # where Ray does not even try, it calls without a pause
        self._looked = time.monotonic()
        workers = fewest(self._config)
        if capacity.may_grow(self._config) and capacity.free_room(self._share) < workers:
            return
        raise GaveUpError(
            f"its workers were waited for longer than ray.wait_for_nodes_s="
            f"{self._config.ray.wait_for_nodes_s:g}: {capacity.freely(workers, self._share)}. What "
            "is finished is kept: the same command goes on from there once there is room; also "
            "with fewer workers (trainer.num_workers, or trainer.min_workers)",
            by_user=True,
        )


def fewest(config: RunConfig) -> int:
    """Workers without which a run does not train."""
    settings = config.trainer
    return settings.num_workers if settings.min_workers is None else settings.min_workers


@contextmanager
def said(
    config: RunConfig, share: Mapping[str, float], board: Board
) -> Iterator[Callable[[], None]]:
    """Gives what the driver calls again and again, which says what is on the board."""
    try:
        yield _Sayer(fewest(config), share, board).look
    finally:
        board.clear()


class _Sayer:
    def __init__(self, workers: int, share: Mapping[str, float], board: Board) -> None:
        self._workers, self._share, self._board = workers, share, board
        self._look_at = self._say_at = 0.0
        self._began: float | None = None
        self._failure: tuple[float, str] | None = None

    def look(self) -> None:
        """Say what is new, and every 30 s that workers are waited for."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        failure, waited = self._board.failure(), self._board.waited()
        if failure is not None and failure != self._failure:
            self._failure = failure
            log.warning("%s", failure[1])
        if waited is None:
            self._began = None
            return
        is_new = self._began is None
        if is_new:
            self._began, self._say_at = now - waited, now
        if now >= self._say_at:
            self._say_at = now + capacity.SAY_EVERY_S
            with suppress(*_NO_ANSWER):
                there = capacity.freely(self._workers, self._share)
                line = f"no worker trains since {now - (self._began or 0):.0f} s: {there}"
                (log.warning if is_new else say)(line)  # one of them is kept
