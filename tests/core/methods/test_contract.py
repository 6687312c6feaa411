"""What holds for every method, also the next one."""

from __future__ import annotations

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


def test_stages_of_one_name_have_one_label() -> None:
    labels: dict[str, set[str]] = {}
    for method in METHODS.values():
        for stage, words in method.words.stages.items():
            labels.setdefault(stage, set()).add(words.label)
    assert all(len(own) == 1 for own in labels.values()), labels
