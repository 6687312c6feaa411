"""What holds for every method, also the next one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reid_core.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_settings_that_are_named_by_name_are_there(name: str) -> None:
    method = METHODS[name]
    settings = method.config()
    assert set(method.of_weights) <= type(settings).model_fields.keys()
    assert method.spent_at_opening.keys() <= set(method.stages(settings)[1:])
    if method.released is not None:
        given = method.config.model_validate(method.released.settings)
        assert method.released.stage in method.stages(given)
    if method.without_text:
        key, _, value = method.without_text.partition("=")
        section, _, key = key.partition(".")
        assert section == name
        assert not method.needs_text(method.config.model_validate({key: value}))


@pytest.mark.parametrize(
    ("name", "asking"),
    [
        ("cclnet", {"clustering": {"camera_scaling": 0.5}}),
        ("cclnet", {"matching": {"camera_scaling": 0.5}}),
        ("bmil", {"clustering": {"camera_scaling": 0.5}}),
        ("bmil", {"sampling": {"camera_aware": True}}),
    ],
)
def test_cameras_are_needed_by_the_setting_that_is_named_and_not_without_it(
    name: str, asking: dict[str, dict[str, Any]]
) -> None:
    method = METHODS[name]
    needed = method.needs_cameras(method.config.model_validate(asking))
    assert needed is not None
    for said, is_needed in ((needed.setting, True), (needed.without, False)):
        key, _, value = said.partition("=")
        own, section, key = key.split(".")
        assert own == name
        config = method.config.model_validate({section: {key: json.loads(value)}})
        assert (method.needs_cameras(config) is not None) is is_needed


def test_an_average_is_stored_where_a_teacher_learns() -> None:
    for name in ("cclnet", "bmil"):
        method = METHODS[name]
        assert method.averages(method.config.model_validate({"teacher": 0.99}))
    assert not any(method.averages(method.config()) for method in METHODS.values())


def test_stages_of_one_name_have_one_label() -> None:
    labels: dict[str, set[str]] = {}
    for method in METHODS.values():
        for stage, words in method.words.stages.items():
            labels.setdefault(stage, set()).add(words.label)
    assert all(len(own) == 1 for own in labels.values()), labels
