"""The memory bank as a plain class: waiting, repeating, refusing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError

from pipelines.config.run import RunConfig
from pipelines.distributed.collectives import shares
from pipelines.errors import BarrierTimeoutError, StaleBankError
from pipelines.training.epoch import EpochStart
from pipelines.training.incoming import Incoming
from pipelines.training.memory_bank import MemoryBank
from reid_core.types import Modality

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED
KEY = ("align", 0)
IDENTITIES, SHOTS, WIDTH = 6, 8, 16


def features(seed: int = 0) -> dict[Modality, np.ndarray]:
    """Tight groups of unit rows; identity i is group i in both modalities."""
    rng = np.random.default_rng(seed)
    centers = np.repeat(np.eye(IDENTITIES, WIDTH), SHOTS, axis=0)
    result = {}
    for m in (VISIBLE, INFRARED):
        x = centers + 0.05 * rng.standard_normal(centers.shape)
        result[m] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return result


def bank_of(config: RunConfig, pids: np.ndarray | None = None) -> MemoryBank:
    known = np.repeat(np.arange(IDENTITIES), SHOTS) if pids is None else pids
    both = {VISIBLE: known, INFRARED: known}
    settings: Any = config.settings
    given = both if settings.labels == "identities" else None
    return MemoryBank(config, both, identities=given)


def begin(bank: MemoryBank, *, world: int = 1) -> EpochStart:
    token = bank.open()
    for m, x in features().items():
        for rank, part in enumerate(np.array_split(x, world)):
            bank.add_features(token, KEY, m, part, rank, world)
    return bank.begin_epoch(token, KEY, world)


@pytest.mark.parametrize("part", ["make_room", "place", "count"])
def test_what_goes_wrong_while_features_arrive_is_raised_at_once(
    part: str, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the call that takes them: on a GPU their block may find no room."""

    def no_room(*_: Any) -> None:
        raise MemoryError("no room for the features")

    monkeypatch.setattr(Incoming, part, no_room)
    began = time.monotonic()
    with pytest.raises(MemoryError, match="no room for the features"):
        begin(bank_of(make_config("trainer.barrier_timeout_s=60")))
    assert time.monotonic() - began < 30


def test_finds_the_groups_and_matches_them(make_config: Callable[..., RunConfig]) -> None:
    start = begin(bank_of(make_config()))
    assert start.metrics["clusters"] == {"visible": IDENTITIES, "infrared": IDENTITIES}
    assert start.metrics["truth"]["matching_accuracy"] == 1.0  # type: ignore[index]
    assert start.plan.num_batches == 3
    assert start.plan.shape.rows == {VISIBLE: 16, INFRARED: 16}


@pytest.mark.parametrize("world", [2, 3])
def test_number_of_shares_changes_nothing(
    make_config: Callable[..., RunConfig], world: int
) -> None:
    one, many = begin(bank_of(make_config())), begin(bank_of(make_config()), world=world)
    for m in (VISIBLE, INFRARED):
        np.testing.assert_array_equal(one.epoch.labels[m], many.epoch.labels[m])
        np.testing.assert_array_equal(one.epoch.prototypes[m], many.epoch.prototypes[m])
        np.testing.assert_array_equal(one.plan.rows[m], many.plan.rows[m])


def test_true_identities_never_reach_the_epoch(make_config: Callable[..., RunConfig]) -> None:
    shuffled = np.random.default_rng(1).permutation(IDENTITIES * SHOTS)
    one, other = begin(bank_of(make_config())), begin(bank_of(make_config(), shuffled))
    np.testing.assert_array_equal(one.epoch.pairs, other.epoch.pairs)
    for m in (VISIBLE, INFRARED):
        np.testing.assert_array_equal(one.epoch.prototypes[m], other.epoch.prototypes[m])
        np.testing.assert_array_equal(one.plan.rows[m], other.plan.rows[m])


def test_asking_again_repeats_the_answer(make_config: Callable[..., RunConfig]) -> None:
    bank = bank_of(make_config())
    start = begin(bank)
    assert bank.begin_epoch(bank._token, KEY, 1) is start


def test_missing_worker_is_named_after_the_timeout(make_config: Callable[..., RunConfig]) -> None:
    bank = bank_of(make_config("trainer.barrier_timeout_s=0.05"))
    token = bank.open()
    for m, x in features().items():
        bank.add_features(token, KEY, m, x[:16], 0, 3)
        bank.add_features(token, KEY, m, x[16:20], 1, 3)  # the rest of this share never comes
    bank.add_features(token, KEY, VISIBLE, x[32:], 2, 3)
    with pytest.raises(BarrierTimeoutError, match=r"workers \[1, 2\].*barrier_timeout_s=0\.05"):
        bank.begin_epoch(token, KEY, 3)


def test_clustering_may_take_longer_than_the_barrier(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for features that do not come, not for what is done with them."""
    bank = bank_of(make_config("trainer.barrier_timeout_s=0.2"))
    cluster = bank._method.cluster

    def slow(*args: Any, **kwargs: Any) -> np.ndarray:
        time.sleep(0.5)
        return cluster(*args, **kwargs)

    monkeypatch.setattr(bank, "_method", replace(bank._method, cluster=slow))
    token = bank.open()
    for m, x in features().items():
        threading.Thread(target=bank.add_features, args=(token, KEY, m, x, 0, 1)).start()
    assert bank.begin_epoch(token, KEY, 1).plan.num_batches == 3


def test_features_are_given_back_when_the_epoch_is_made(
    make_config: Callable[..., RunConfig],
) -> None:
    bank = bank_of(make_config())
    begin(bank, world=2)
    assert bank._pending.incoming._block is None


def test_what_is_sent_again_counts_once(make_config: Callable[..., RunConfig]) -> None:
    """Shards of one process, or a call that was repeated: nobody waits for ever."""
    bank, whole = bank_of(make_config()), begin(bank_of(make_config()))
    token = bank.open()
    for m, x in features().items():
        for _ in range(3):
            bank.add_features(token, KEY, m, x[:24], 0, 2)
        bank.add_features(token, KEY, m, x[24:], 1, 2)
    start = bank.begin_epoch(token, KEY, 2)
    bank.add_features(token, KEY, VISIBLE, features()[VISIBLE][24:], 1, 2)
    assert bank._pending.incoming._block is None
    for m in (VISIBLE, INFRARED):
        np.testing.assert_array_equal(start.epoch.labels[m], whole.epoch.labels[m])


def test_pieces_in_any_order_are_the_share(make_config: Callable[..., RunConfig]) -> None:
    bank, whole = bank_of(make_config()), begin(bank_of(make_config()))
    token = bank.open()
    for m, x in features().items():
        for rank, first in ((1, 0), (0, 20), (0, 0), (1, 3)):
            stop = {0: 20, 20: 24, 3: 24}[first] if (rank, first) != (1, 0) else 3
            piece = x[24 * rank + first : 24 * rank + stop]
            bank.add_features(token, KEY, m, piece, rank, 2, first)
    start = bank.begin_epoch(token, KEY, 2)
    for m in (VISIBLE, INFRARED):
        np.testing.assert_array_equal(start.epoch.labels[m], whole.epoch.labels[m])
        np.testing.assert_array_equal(start.epoch.prototypes[m], whole.epoch.prototypes[m])


@pytest.mark.parametrize("world", [1, 3, 50])
def test_shares_that_go_to_the_actor_in_pieces_arrive(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """As through Ray, whose arrays are read-only; with 50 workers some shares are empty."""
    from pipelines.training import actor

    def put(piece: np.ndarray) -> np.ndarray:
        piece.flags.writeable = False
        return piece

    monkeypatch.setattr(actor, "PIECE_BYTES", 4 * WIDTH * 5)
    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(ray, "get", lambda call: call)
    bank, whole = bank_of(make_config()), begin(bank_of(make_config()))
    handle = SimpleNamespace(add_features=SimpleNamespace(remote=bank.add_features))
    remote, token = actor.RemoteBank(handle), bank.open()
    for m, x in features().items():
        for rank, part in enumerate(shares(len(x), world)):
            share = torch.from_numpy(x[part])
            remote.add_features(token, KEY, m, share, rank, world)
    start = bank.begin_epoch(token, KEY, world)
    for m in (VISIBLE, INFRARED):
        np.testing.assert_array_equal(start.epoch.labels[m], whole.epoch.labels[m])
        np.testing.assert_array_equal(start.epoch.prototypes[m], whole.epoch.prototypes[m])


def test_a_bank_that_is_gone_was_not_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers ask it within an epoch, where nothing else needs it: that must not cost the epoch."""
    from pipelines.training import actor

    def get(call: Exception | bool) -> bool:
        if isinstance(call, Exception):
            raise call
        return call

    monkeypatch.setattr(ray, "get", get)
    for answer, expected in ((True, True), (False, False), (ActorDiedError(), False)):
        handle = SimpleNamespace(is_to_stop=SimpleNamespace(remote=lambda answer=answer: answer))
        assert actor.RemoteBank(handle).is_to_stop() is expected


def test_an_approximate_search_says_its_recall(make_config: Callable[..., RunConfig]) -> None:
    exact, graph = (
        begin(bank_of(make_config(f"trainer.search={how}"))) for how in ("exact", "approximate")
    )
    assert graph.metrics["search_recall"] == 1  # so few rows are searched exactly
    assert "search_recall" not in exact.metrics
    assert graph.metrics["labels"] == exact.metrics["labels"]


def test_calls_of_an_earlier_incarnation_are_refused(make_config: Callable[..., RunConfig]) -> None:
    bank = bank_of(make_config())
    old = bank.open()
    bank.open()
    with pytest.raises(StaleBankError, match="reload the last checkpoint"):
        bank.begin_epoch(old, KEY, 1)


def test_no_cluster_names_modality_and_remedy(make_config: Callable[..., RunConfig]) -> None:
    bank = bank_of(make_config("cclnet.clustering.min_samples=100"))
    with pytest.raises(
        ValueError, match=r"no cluster in the visible modality.*raise cclnet.clustering.eps"
    ):
        begin(bank)


def test_clustering_that_fails_is_not_waited_for(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("row 3 is zero")

    bank = bank_of(make_config())
    monkeypatch.setattr(bank, "_method", replace(bank._method, cluster=fail))
    with pytest.raises(ValueError, match="row 3 is zero"):
        begin(bank)


def test_fewer_clusters_than_a_batch_holds_is_said(make_config: Callable[..., RunConfig]) -> None:
    bank = bank_of(make_config("cclnet.align.clusters_per_batch=50"))
    start = begin(bank)
    assert start.plan.shape.rows[VISIBLE] == 200
    assert any("50" in str(line) for line in start.metrics["warnings"])  # type: ignore[union-attr]


def test_given_identities_are_pairs_without_clustering(
    make_config: Callable[..., RunConfig],
) -> None:
    start = begin(bank_of(make_config("cclnet.labels=identities")))
    np.testing.assert_array_equal(
        start.epoch.pairs, np.repeat(np.arange(IDENTITIES)[:, None], 2, axis=1)
    )
    np.testing.assert_array_equal(start.epoch.prototypes[VISIBLE], start.epoch.prototypes[INFRARED])
