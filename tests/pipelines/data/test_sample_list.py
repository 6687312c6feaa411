"""A run that goes on meets the rows that it began with, or is told why it cannot."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.run import RunConfig
from pipelines.data.inputs import Inputs
from pipelines.data.sample_list import ROWS, recall, remember, restore, rows_of
from pipelines.errors import UserError
from reid_core.types import Modality, Sample, Split
from tests.pipelines import small_runs

VISIBLE, TEXT = Modality.VISIBLE, Modality.TEXT
# two images, the first of which has two sentences
IDENTITIES = Split(
    (
        Sample("a.jpg", VISIBLE),
        Sample("b.jpg", VISIBLE),
        Sample("a.jpg", TEXT, caption="red coat"),
        Sample("a.jpg", TEXT, caption="black bag"),
        Sample("b.jpg", TEXT, caption="jeans"),
    )
)


def broken(inputs: Inputs, modality: Modality) -> list[tuple[int, str]]:
    """The check finds the eighth visible image unreadable."""
    return [(7, f"{inputs.paths[VISIBLE][7]} is truncated")] if modality == VISIBLE else []


def test_an_image_that_broke_since_stays_a_row(make_config: Callable[..., RunConfig]) -> None:
    config = make_config("data.max_unreadable=0.01")
    whole = small_runs.prepare_data(config)
    begun = rows_of(whole.train)
    assert len(small_runs.prepare_data(config, broken).train) == len(whole.train) - 1
    again = small_runs.prepare_data(config, broken, begun=begun)
    assert again.train == whole.train
    assert "is truncated" in again.unreadable[0]
    with pytest.raises(UserError, match="is truncated"):
        small_runs.prepare_data(make_config("data.max_unreadable=0"), broken, begun=begun)


def test_an_image_that_was_left_out_stays_out(make_config: Callable[..., RunConfig]) -> None:
    config = make_config("data.max_unreadable=0.01")
    first = small_runs.prepare_data(config, broken)
    repaired = small_runs.prepare_data(config, begun=rows_of(first.train))
    assert repaired.train == first.train


def test_rows_that_are_gone_are_named() -> None:
    without = IDENTITIES.take([0, 2, 3])
    with pytest.raises(UserError, match=r"began with 5 training rows.*2 are gone: b\.jpg, b\.jpg"):
        restore(without, rows_of(IDENTITIES))
    one_sentence_less = IDENTITIES.take([0, 1, 2, 4])
    with pytest.raises(UserError, match=r"1 are gone: a\.jpg; restore"):
        restore(one_sentence_less, rows_of(IDENTITIES))


def test_another_order_is_another_run() -> None:
    with pytest.raises(UserError, match="another order"):
        restore(IDENTITIES.take([1, 0, 2, 3, 4]), rows_of(IDENTITIES))


def test_only_a_run_with_a_checkpoint_has_begun(tmp_path: Path) -> None:
    assert recall(tmp_path) is None
    remember(tmp_path, IDENTITIES)
    assert recall(tmp_path) is None
    (tmp_path / "checkpoint_1").mkdir()
    assert recall(tmp_path) == rows_of(IDENTITIES)


@pytest.mark.parametrize("content", ["cut off", "no gzip", "no list", "another byte"])
def test_a_damaged_list_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "checkpoint_0").mkdir()
    remember(tmp_path, IDENTITIES)
    assert recall(tmp_path) == rows_of(IDENTITIES)
    file = tmp_path / ROWS
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut off": whole[:-9],
            "no gzip": b"rows",
            "no list": gzip.compress(b"7"),
            "another byte": whole[:12] + b"\xff\xff" + whole[14:],
        }[content]
    )
    with pytest.raises(UserError, match=r"rows\.json\.gz is damaged .*from a copy of the run"):
        recall(tmp_path)
