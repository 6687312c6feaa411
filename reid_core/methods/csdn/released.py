"""The authors' own checkpoints of CSDN, name by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reid_core.methods.csdn.settings import Config

_STEM = {
    str(2 * i + j): f"{kind}{i + 1}" for i in range(3) for j, kind in enumerate(("conv", "bn"))
}
_RELEASED = {
    **{
        f"image_encoder{number}.{index}.": f"encoder.{m}_stem.{name}."
        for number, m in ((1, "visible"), (2, "infrared"))
        for index, name in _STEM.items()
    },
    **{f"image_encoder.{i}.": f"encoder.trunk.layer{i + 1}." for i in range(4)},
    "attnpool.": "encoder.attnpool.",
    "classifier.GEM.": "encoder.gem.",
    "classifier.BN.": "encoder.neck.",
    "classifier.classifier.": "classifier.",
    "classifier2.BN.": "projected_neck.",
    "classifier2.classifier.": "projected_classifier.",
}
# Of the text side, which no image needs: CLIP's own, and what stages 1 and 2 have trained.
_OF_TEXTS = (
    "text_encoder.",
    *(f"prompt_learner{number}.{part}" for number in (1, 2) for part in ("token_", "cls_ctx")),
    *(f"attention_fusion.embedding_{part}.0." for part in ("q", "k", "v", "common")),
)


def module_state(config: Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict -> module state of stage "images", which `load_encoder` takes.

    Args:
        config: of the encoder that will take them, with `profile: reference`: the stems of the
            public code have one rectifier, and their weights are noise behind three.
        state: names as the public code saves them, with or without DataParallel's "module.".

    Raises:
        ValueError: settings of another profile, a name that the public code does not use, or a part
            that is missing as a whole; lists them. Which tensors a part has, the encoder knows:
            `load_encoder` names those that are missing.
    """
    if config.stem_relu != "last":
        raise ValueError(
            f"csdn.profile={config.profile}, csdn.stem_relu={config.stem_relu}: the authors' "
            "weights were trained with the last rectifier of each stem alone; take "
            "csdn.profile=reference"
        )
    result: dict[str, Tensor] = {}
    unknown = []
    for name, x in state.items():
        plain = name.removeprefix("module.")
        if plain.startswith(_OF_TEXTS):
            continue
        match = next((prefix for prefix in _RELEASED if plain.startswith(prefix)), None)
        if match is None:
            unknown.append(name)
            continue
        result[_RELEASED[match] + plain.removeprefix(match)] = x
    if unknown:
        raise ValueError(
            f"not a checkpoint of CSDN's public code: it knows no {', '.join(unknown[:5])} "
            f"({len(unknown)} of {len(state)} names)"
        )
    missing = [
        prefix
        for prefix, ours in _RELEASED.items()
        if not any(name.startswith(ours) for name in result)
    ]
    if missing:
        raise ValueError(
            f"an incomplete checkpoint of CSDN's public code: it lacks {', '.join(missing[:5])} "
            f"({len(missing)} parts)"
        )
    return result
