"""Which settings of CCLNet nothing reads because of a choice beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid_core.methods.sections import (
    OF_AN_IMAGE_STAGE,
    Unread,
    unread,
    unread_by_choice,
    unread_of_votes,
)

if TYPE_CHECKING:
    from reid_core.methods.cclnet.settings import Config

_JOINTLY = ("joint_eps", "least_overlap", "balanced")
_MATCHING: Unread = {
    "method": {
        **dict.fromkeys(("hungarian", "mutual", "scaled"), ("temperature", *_JOINTLY)),
        **dict.fromkeys(("both", "either"), ("temperature",)),
        **dict.fromkeys(("transport", "consistent", "proposed"), ("min_similarity", *_JOINTLY)),
        "joint": ("min_similarity", "temperature"),
    }
}
_SWAP: Unread = {"when": {"never": ("keep", "order")}}


def of_choices(config: Config) -> list[str]:
    """Sentences on settings that were changed and that the choices of others leave unread."""
    how, texts = config.matching, config.image_to_text > 0
    lines = unread_by_choice(how, "cclnet.matching", _MATCHING)
    if not how.exclusion:
        off = "cclnet.matching.exclusion=0"
        lines += unread(how, "cclnet.matching", ("exclusion_from",), off)
    lines += unread_by_choice(config.swap, "cclnet.swap", _SWAP)
    lines += unread_of_votes(config.refine, "cclnet.refine")
    if not texts:
        without = "cclnet.image_to_text=0"
        lines += unread(config, "cclnet", ("smoothing",), without)
    for name in ("prepare", "align") if texts else ("align",):
        lines += unread_by_choice(getattr(config, name), f"cclnet.{name}", OF_AN_IMAGE_STAGE)
    return lines
