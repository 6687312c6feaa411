"""Released weights of others as a run folder that `eval`, `embed`, `search` and `export` take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipelines.config import run as configuration
from pipelines.config.overrides import apply
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.runs import checkpoint
from pipelines.runs.records import State
from pipelines.storage.files import replace_file
from reid_core.method import Method
from reid_core.methods import DEFAULT, METHODS
from reid_core.models import backbones, reid_weights
from reid_core.models.weight_files import WeightFile, listed, read_weights

Tree = dict[str, Any]


@dataclass(frozen=True)
class _Publisher:
    """How a publisher's files become a run.

    Attributes:
        settings: of a file; what the user says may add to them, not change them.
        stage: that the weights are the end of; the last one where None.
        state: the module state of that stage.
        quick_gelu: whether its transformers use QuickGELU.
    """

    settings: Callable[[WeightFile], Tree]
    stage: str | None
    state: Callable[[RunConfig, WeightFile], dict[str, Tensor]]
    quick_gelu: bool


def import_released(file: Path, out: Path, publisher: str, overrides: Sequence[str] = ()) -> Path:
    """Write a run folder with one checkpoint.

    Args:
        file: a publisher's weights.
        out: the folder; must not exist, or be empty.
        publisher: a key of `PUBLISHERS`.
        overrides: further settings, such as data.kind=sysu and data.root=PATH.

    Raises:
        UserError: no such publisher, a folder in use, settings that the weights contradict, weights
            that are incomplete or of something else.
    """
    if publisher not in PUBLISHERS:
        raise UserError(f"--from {publisher}: choose one of {', '.join(PUBLISHERS)}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another folder")
    source = PUBLISHERS[publisher]
    try:
        weights = read_weights(file)
        config = _config(source.settings(weights), overrides, publisher)
        state = source.state(config, weights)
        _check(config, state, quick_gelu=source.quick_gelu)
    except (ValueError, KeyError) as error:
        missing = isinstance(error, KeyError)
        said = f"it holds no {error.args[0]}" if missing else str(error)[:300]
        raise UserError(
            f"{file}, --from {publisher}: {said}; take the file as it was published, or say "
            "whose it is"
        ) from error
    whole: State = {
        "config": config.used(),
        "progress": {
            "stage": source.stage or METHODS[config.method].stages(config.settings)[-1],
            "epoch": 0,
            "handed": {},
            "scores": {},
            "table": {},
            "chance": None,
            "selected": -1.0,
        },
        "trains_encoder": True,
        "quick_gelu": source.quick_gelu,
        "module": state,
        "epoch": {},
        "optimiser": {},
    }
    checkpoint.save(out / "checkpoint_000000", whole, {"released": publisher})
    replace_file(out / "config.yaml", configuration.dump(config))
    return out


def _config(tree: Tree, overrides: Sequence[str], publisher: str) -> RunConfig:
    """The publisher's settings and the user's, which must not contradict each other."""
    source = f"--from {publisher}"
    whole = {"data": {"kind": "sysu", "root": "unknown"}, **tree}
    before = configuration.validate(whole, source=source).used()
    given = configuration.overridden(copy.deepcopy(whole), overrides, source=source)
    after = given.used()
    fixed = ("method", "model", tree["method"])
    changed = configuration.differences(
        {key: before[key] for key in fixed}, {key: after.get(key) for key in fixed}
    )
    if changed:
        raise UserError(
            f"--from {publisher}: these settings belong to the weights and cannot be changed:\n  "
            + "\n  ".join(changed)
        )
    return given


def _check(config: RunConfig, state: dict[str, Tensor], *, quick_gelu: bool) -> None:
    """Loads the weights as every later command will."""
    model = config.model
    start = backbones.load(model.name, None, quick_gelu=quick_gelu, options=model.options())
    try:
        METHODS[config.method].load_encoder(
            config.settings, start, model.height, model.width, state
        )
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"incomplete, or of another model ({said})") from error


def _of_authors(method: Method[Any]) -> _Publisher:
    """The method's own authors."""
    released = method.released
    assert released is not None

    def settings(file: WeightFile) -> Tree:
        own = {method.name: dict(released.settings)} if released.settings else {}
        return {"method": method.name, "model": dict(released.model), **own}

    def state(config: RunConfig, file: WeightFile) -> dict[str, Tensor]:
        return released.module_state(config.settings, file.state)

    return _Publisher(settings, released.stage, state, released.quick_gelu)


def _of_images(model: Tree) -> Tree:
    """Where one modality is all that a model was trained on: its stem serves both, without text."""
    tree: Tree = {"method": DEFAULT, "model": model}
    apply(tree, METHODS[DEFAULT].without_text)
    return tree


def _backbone_settings(name: str, file: WeightFile) -> Tree:
    """Of a whole re-identification model the authors' test settings, of a backbone its own."""
    whole = any(key.startswith(("base.", "bottleneck.")) for key in file.state)
    if whole:
        _refuse_other_descriptors(file)
    height, width, stride = 256, 128, 16
    positions = next((v for k, v in file.state.items() if k.endswith("pos_embed")), None)
    if positions is not None:
        height, width, stride = reid_weights.image_of(positions.shape[1] - 1)
    model = {"name": name, "pretrained": str(file.path), "height": height, "width": width}
    model |= {"patch_stride": 12} if stride == 12 else {}
    model |= {"pixels": "half"} if whole else {}
    return _of_images(model)


def _refuse_other_descriptors(file: WeightFile) -> None:
    """Raises where more than the neck and the classifiers stands behind the tower.

    Both are left out, since the authors test what comes before them.
    """
    if "fcneck.weight" in file.state:
        raise ValueError(
            "fcneck.weight: the descriptor of these weights is a matrix times the tower's feature "
            "(REDUCE_FEAT_DIM), which no encoder here has; take weights trained without"
        )
    usual = ("base.", "bottleneck", "classifier", "b1.", "b2.")
    if others := [key for key in file.state if not key.startswith(usual)]:
        raise ValueError(f"beside base.* nothing is known of {listed(others)}")


def _named(file: WeightFile, ending: str) -> Tensor:
    for name, x in file.state.items():
        if name.endswith(ending):
            return x
    raise ValueError(f"no name ends with {ending}")


def _transreid_ssl_settings(file: WeightFile) -> Tree:
    dims = {384: "small", 768: "base"}
    tokens = _named(file, "cls_token")
    ics = any(".conv.0." in key for key in file.state)
    return _backbone_settings(f"transreid-ssl/vit_{dims[tokens.shape[-1]]}{'_ics' * ics}", file)


def _solider_settings(file: WeightFile) -> Tree:
    patches = _named(file, "patch_embed.projection.weight")
    deep = any("stages.2.blocks.17." in key for key in file.state)
    size = "base" if len(patches) == 128 else "small" if deep else "tiny"
    tree = _backbone_settings(f"solider/swin_{size}", file)
    tree["model"] |= {"height": 384, "pool": "mean"}
    return tree


def _backbone_state(config: RunConfig, file: WeightFile) -> dict[str, Tensor]:
    """Both stems from the one of the file; the neck does nothing yet."""
    model = config.model
    start = backbones.load(model.name, str(file.path), options=model.options())
    encoder = METHODS[config.method].load_encoder(
        config.settings, start, model.height, model.width, None
    )
    assert isinstance(encoder, nn.Module)
    return encoder.state_dict()


def _clip_reid_settings(file: WeightFile) -> Tree:
    positions = file.state.get("image_encoder.positional_embedding")
    name = "RN50" if positions is None else "ViT-B-16"
    if positions is None:
        positions = file.state["image_encoder.attnpool.positional_embedding"]
    height, width, stride = reid_weights.image_of(len(positions) - 1)
    model = {"name": name, "pretrained": "openai", "height": height, "width": width}
    # its cnn_*.yml have ImageNet's mean and deviation, its vit_*.yml one half
    model |= {"pool": "mean", "pixels": "imagenet"} if name == "RN50" else {"pixels": "half"}
    model |= {"patch_stride": 12} if stride == 12 else {}
    return _of_images(model)


def _clip_reid_state(config: RunConfig, file: WeightFile) -> dict[str, Tensor]:
    model = config.model
    start = backbones.load(model.name, None, quick_gelu=True, options=model.options())
    encoder = METHODS[config.method].load_encoder(
        config.settings, start, model.height, model.width, None
    )
    assert isinstance(encoder, nn.Module)
    own = {k: v for k, v in encoder.state_dict().items() if k.startswith("neck.")}
    return own | reid_weights.from_clip_reid(file.state)


PUBLISHERS: dict[str, _Publisher] = {
    **{m.name: _of_authors(m) for m in METHODS.values() if m.released is not None},
    "transreid-ssl": _Publisher(_transreid_ssl_settings, None, _backbone_state, False),
    "solider": _Publisher(_solider_settings, None, _backbone_state, False),
    "clip-reid": _Publisher(_clip_reid_settings, None, _clip_reid_state, True),
}
