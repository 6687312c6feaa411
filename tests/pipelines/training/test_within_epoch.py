"""When workers keep what an epoch has come to, and that what is kept comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from pipelines.data.plan import Plan
from pipelines.runs import checkpoint
from pipelines.training import within_epoch, worker
from pipelines.training.epoch import EpochStart
from pipelines.training.within_epoch import Order, Pauses, Underway
from reid_core.stage import Epoch
from reid_core.types import Modality

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED


class Clock:
    """A step takes half a second."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(within_epoch, "time", clock)
    return clock


def orders(pauses: Pauses, clock: Clock, steps: int) -> list[Order]:
    result = []
    for _ in range(steps):
        clock.now += 0.5
        result.append(pauses.after_step())
    return result


def test_the_cluster_is_asked_every_two_seconds(clock: Clock) -> None:
    asked: list[float] = []

    def notice() -> Order:
        asked.append(clock.now)
        return Order.NOTHING

    orders(Pauses(notice, 0), clock, 40)
    assert asked[0] == 100.5  # the first step shows how long one takes
    assert set(np.diff(asked)) == {2.0}


@pytest.mark.parametrize(
    ("every", "remaining"), [(0, []), (6, [13, 25, 37]), (0.1, list(range(40)))]
)
def test_a_state_is_kept_so_many_seconds_after_the_last(
    clock: Clock, every: float, remaining: list[int]
) -> None:
    result = orders(Pauses(within_epoch.nothing, every), clock, 40)
    steps = [number for number, order in enumerate(result) if order == Order.KEEP]
    assert steps == pytest.approx(remaining, abs=4)
    pauses = Pauses(within_epoch.nothing, 6)
    orders(pauses, clock, 10)
    pauses.begin()  # a finished epoch is kept
    assert set(orders(pauses, clock, 10)) == {Order.NOTHING}


def test_a_notice_is_followed_within_two_seconds(clock: Clock) -> None:
    result = orders(Pauses(lambda: Order.STOP if clock.now > 105 else Order.NOTHING, 0), clock, 20)
    assert result.index(Order.STOP) in range(10, 14)


def underway() -> Underway:
    rng = np.random.default_rng(0)
    epoch = Epoch(
        labels={m: rng.integers(-1, 5, 9) for m in (VISIBLE, INFRARED)},
        prototypes={m: rng.random((5, 3), dtype=np.float32) for m in (VISIBLE, INFRARED)},
        pairs=np.array([[0, 1], [2, 0]]),
        arrays={"bank.joint": rng.random((2, 3), dtype=np.float32), "flags": np.array([True])},
        repeats={VISIBLE: 2},
    )
    plan = Plan(
        rows={m: rng.integers(0, 9, (4, 6)) for m in (VISIBLE, INFRARED)},
        labels={m: rng.integers(0, 5, (4, 6)) for m in (VISIBLE, INFRARED)},
        seeds={m: rng.integers(0, 2**64, (4, 12), dtype=np.uint64) for m in (VISIBLE, INFRARED)},
        captions=rng.integers(0, 30, (4, 6)),
        kinds=("separate", "joint") * 2,
    )
    result = Underway(EpochStart(epoch, plan, {}, {}), {"pairs": 2, "warnings": ["few"]})
    result.means.add(("one", "total"), torch.tensor([3.0, 6.0]), torch.tensor([2.0, 2.0]))
    return result


def stood_at(stage: str, epoch: int) -> Any:
    progress = {"stage": stage, "epoch": epoch, "handed": {}, "scores": {}}
    return {entry: {} for entry in checkpoint.TO_GO_ON_FROM} | {"progress": progress}


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    before = underway()
    finished = stood_at("align", 3)
    within_epoch.save(tmp_path, finished | {"within": before.state_dict("align", 0, 2)})
    state = within_epoch.load(tmp_path, finished)
    assert state is not None
    after = Underway.from_state(state["within"], torch.device("cpu"))
    assert (after.start.plan.first, after.start.plan.num_batches) == (2, 4)
    assert after.start.plan.kinds == before.start.plan.kinds
    assert after.metrics == before.metrics
    assert after.means.read() == before.means.read() == {"one": 1.5, "total": 3.0}
    for side in ("plan", "epoch"):
        for name, value in vars(getattr(before.start, side)).items():
            if name not in ("first", "kinds"):
                np.testing.assert_equal(getattr(getattr(after.start, side), name), value)


@pytest.mark.parametrize("finished", [None, {"progress": {"stage": "align", "epoch": 4}}])
def test_it_follows_its_checkpoint_alone(
    tmp_path: Path, finished: Any, caplog: pytest.LogCaptureFixture
) -> None:
    state = stood_at("align", 3) | {"within": {"batch": 1}}
    within_epoch.save(tmp_path, state)
    assert within_epoch.load(tmp_path, finished) is finished
    assert not caplog.text
    (tmp_path / checkpoint.WITHIN).write_bytes(b"PK")
    own = {"progress": state["progress"]}
    assert within_epoch.load(tmp_path, own) is own
    assert "the epoch is repeated: " in caplog.text


def test_the_first_epoch_has_no_checkpoint_before_it(tmp_path: Path) -> None:
    assert within_epoch.mark(tmp_path) == 0
    within_epoch.save(tmp_path, stood_at("", -1) | {"within": {"batch": 1}})
    state = within_epoch.load(tmp_path, None)
    assert state is not None
    assert state["within"]["batch"] == 1
    assert within_epoch.mark(tmp_path) > 0


def test_a_machine_that_will_be_taken_away_is_a_notice_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: list[Any] = [None]
    asked = [False]

    class Bank:
        def is_to_stop(self) -> bool:
            return asked[0]

    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: known[0])
    notice = worker._Notice(Bank())  # type: ignore[arg-type]
    result = [notice()]
    known[0] = "node a, rank 1"
    result += [notice(), notice()]
    known[0] = "nodes a and b, ranks 1 and 2"
    result += [notice(), notice()]
    asked[0] = True
    result += [notice(), notice()]
    names = ["NOTHING", "KEEP", "NOTHING", "KEEP", "NOTHING", "STOP", "STOP"]
    assert result == [Order[name] for name in names]
