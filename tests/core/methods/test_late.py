"""Functions that wait for their first call: the same ones, here and in another process."""

from __future__ import annotations

import pickle

import pytest

from reid_core.methods import METHODS
from reid_core.methods.cclnet import between_epochs, opening
from reid_core.methods.late import Late

LATE = [
    (name, part)
    for name, method in METHODS.items()
    for part in ("begin_epoch", "cluster", "load_encoder", "open_stage")
    if getattr(method, part) is not None
]


@pytest.mark.parametrize(("name", "part"), LATE)
def test_every_part_of_a_method_is_a_function_that_is_there(name: str, part: str) -> None:
    late = getattr(METHODS[name], part)
    assert isinstance(late, Late)
    assert callable(late.function)
    assert late.module.startswith(f"reid_core.methods.{name}.")
    assert pickle.loads(pickle.dumps(late)) == late


def test_a_call_is_passed_on() -> None:
    assert Late("operator", "sub")(5, 3) == 2
    for late, function in (
        (METHODS["cclnet"].open_stage, opening.open_stage),
        (METHODS["cclnet"].begin_epoch, between_epochs.begin_epoch),
    ):
        assert isinstance(late, Late)
        assert late.function is function
