"""The authors' own checkpoints of CCLNet, name by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core.methods.cclnet.settings import Config

_PLACES = {
    "visible_module.visible.": "visible_stem.",
    "thermal_module.thermal.": "infrared_stem.",
    "base_resnet.base.attnpool.": "attnpool.",
    "base_resnet.base.layer": "trunk.layer",
    "bottleneck.": "neck.",
}
# Every module holds a whole CLIP tower of which it uses one part; texts are learned anew.
_UNUSED = ("prompt_learner.", "text_encoder.")
_STEM = ("conv1.", "conv2.", "conv3.", "bn1.", "bn2.", "bn3.")


def module_state(config: Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict -> that of an `ImageEncoder` of RN50 at 288 x 144.

    Args:
        config: any, it decides nothing.
        state: names as the public code saves them, without DataParallel's "module.".

    Raises:
        ValueError: a name that the public code does not use, or one of its parts that is missing;
            lists them.
    """
    result: dict[str, Tensor] = {}
    unknown = []
    for name, x in state.items():
        place = next((old for old in _PLACES if name.startswith(old)), None)
        if place is not None:
            inside = name.removeprefix(place)
            if "_stem" not in _PLACES[place] or inside.startswith(_STEM):
                result[_PLACES[place] + inside] = x
        elif not name.startswith((*_UNUSED, "base_resnet.base.")):
            unknown.append(name)
    if unknown or not result:
        raise ValueError(
            f"not a checkpoint of CCLNet's public code: it knows no {', '.join(unknown[:5])} "
            f"({len(unknown)} of {len(state)} names)"
        )
    missing = [
        old for old, place in _PLACES.items() if not any(name.startswith(place) for name in result)
    ]
    if missing:
        raise ValueError(
            f"an incomplete checkpoint of CCLNet's public code: it lacks {', '.join(missing)}"
        )
    return result
