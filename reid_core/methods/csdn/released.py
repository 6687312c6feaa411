"""The authors' own checkpoints of CSDN, name by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core.methods.csdn.settings import Config

_STEM = {
    str(2 * i + j): f"{kind}{i + 1}" for i in range(3) for j, kind in enumerate(("conv", "bn"))
}
_RELEASED: dict[str, tuple[str, str]] = {
    **{
        f"image_encoder{number}.{index}.": ("images", f"encoder.{m}_stem.{name}.")
        for number, m in ((1, "visible"), (2, "infrared"))
        for index, name in _STEM.items()
    },
    **{f"image_encoder.{i}.": ("images", f"encoder.trunk.layer{i + 1}.") for i in range(4)},
    "attnpool.": ("images", "encoder.attnpool."),
    "classifier.GEM.": ("images", "encoder.gem."),
    "classifier.BN.": ("images", "encoder.neck."),
    "classifier.classifier.": ("images", "classifier."),
    "classifier2.BN.": ("images", "projected_neck."),
    "classifier2.classifier.": ("images", "projected_classifier."),
    "prompt_learner1.cls_ctx": ("prompts", "learners.visible.tokens"),
    "prompt_learner2.cls_ctx": ("prompts", "learners.infrared.tokens"),
    "attention_fusion.embedding_q.0.": ("fusion", "query."),
    "attention_fusion.embedding_k.0.": ("fusion", "key."),
    "attention_fusion.embedding_v.0.": ("fusion", "value."),
    "attention_fusion.embedding_common.0.": ("fusion", "output."),
}
# CLIP's own, frozen: ours come with the CLIP model.
_FROZEN = ("text_encoder.", "prompt_learner1.token_", "prompt_learner2.token_")


def from_released(config: Config, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The authors' state dict -> module state per stage; `load_encoder` takes that of "images".

    Args:
        config: of the encoder that will take them, with `profile: reference`: the stems of the
            public code have one rectifier, and their weights are noise behind three.
        state: names as the public code saves them, with or without DataParallel's "module.".

    Returns:
        "prompts", "fusion" and "images", each a module state without what is CLIP's own.

    Raises:
        ValueError: settings of another profile, a name that the public code does not use, or a part
            of stage 3 that is missing as a whole; lists them. Which tensors a part has, the
            encoder knows: `load_encoder` names those that are missing.
    """
    if config.stem_relu != "last":
        raise ValueError(
            f"csdn.profile={config.profile}, csdn.stem_relu={config.stem_relu}: the authors' "
            "weights were trained with the last rectifier of each stem alone; take "
            "csdn.profile=reference"
        )
    result: dict[str, dict[str, Tensor]] = {"prompts": {}, "fusion": {}, "images": {}}
    unknown = []
    for name, x in state.items():
        plain = name.removeprefix("module.")
        if plain.startswith(_FROZEN):
            continue
        match = next((prefix for prefix in _RELEASED if plain.startswith(prefix)), None)
        if match is None:
            unknown.append(name)
            continue
        stage, ours = _RELEASED[match]
        result[stage][ours + plain.removeprefix(match)] = x
    if unknown:
        raise ValueError(
            f"not a checkpoint of CSDN's public code: it knows no {', '.join(unknown[:5])} "
            f"({len(unknown)} of {len(state)} names)"
        )
    missing = [
        prefix
        for prefix, (stage, ours) in _RELEASED.items()
        if stage == "images" and not any(name.startswith(ours) for name in result["images"])
    ]
    if missing:
        raise ValueError(
            f"an incomplete checkpoint of CSDN's public code: it lacks {', '.join(missing[:5])} "
            f"({len(missing)} parts)"
        )
    return result


def module_state(config: Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `from_released` has for the last stage, "images"."""
    return from_released(config, state)["images"]
