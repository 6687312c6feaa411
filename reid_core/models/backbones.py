"""Backbones by name: an image tower with weights from anywhere, and a text tower where it has one.

With `towers` the only files that know how open_clip and timm name and build a model.
"""

from __future__ import annotations

import difflib
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import _build_vision_tower
from open_clip.transformer import QuickGELU
from torch import nn

from reid_core.models import hub, reid_weights
from reid_core.models.options import PLAIN, Options
from reid_core.models.text_tower import TextTower
from reid_core.models.weight_files import (
    HUB,
    Pixels,
    Undrawn,
    WeightFile,
    download_weights,
    fill,
    read_weights,
    unwrapped,
)
from reid_core.transforms import IMAGENET_MEAN, IMAGENET_STD

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SMALL, SMALL_VIT = "crossreid-small", "crossreid-small-vit"
BUNDLED = (SMALL, SMALL_VIT)
TIMM = "timm/"
IMAGENET = Pixels(IMAGENET_MEAN, IMAGENET_STD)
HALF = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Backbone:
    """A loaded model.

    Attributes:
        name: architecture, as `load` takes it.
        model: the whole model; `visual` and `text` share its parameters.
        text_tower: None where it has none of CLIP's own kind.
        pixels: what the weights were trained on.
        options: of the encoder that is to be made of it.
        guesses_pixels: nothing says what the weights of a file were trained on, and others of this
            architecture were trained on different ones.
        twin: the same architecture with QuickGELU, where nothing says whether the weights of a file
            were trained with it; "" where that is known.
    """

    name: str
    model: nn.Module
    text_tower: TextTower | None
    pixels: Pixels
    options: Options = PLAIN
    guesses_pixels: bool = False
    twin: str = ""

    @property
    def visual(self) -> nn.Module:
        """The image tower as its library builds it."""
        return self.model if self.text_tower is None else self.model.get_submodule("visual")

    @property
    def text(self) -> TextTower:
        """The text tower.

        Raises:
            ValueError: there is none.
        """
        if self.text_tower is None:
            raise ValueError(without_text(self.name))
        return self.text_tower

    @property
    def embed_dim(self) -> int:
        """E, the width of the joint space."""
        return self.text.embed_dim

    @property
    def quick_gelu(self) -> bool:
        """Whether its transformers use QuickGELU, which no weight tells."""
        return any(isinstance(module, QuickGELU) for module in self.model.modules())

    @property
    def encoder_pixels(self) -> Pixels:
        """Mean and deviation that an `ImageEncoder` normalizes with, see `Options.pixels`."""
        chosen = self.options.pixels
        if chosen is None:
            chosen = "imagenet" if hasattr(self.visual, "attnpool") else "weights"
        return {"imagenet": IMAGENET, "half": HALF, "weights": self.pixels}[chosen]


def load(
    name: str,
    pretrained: str | None = None,
    *,
    seed: int = 0,
    quick_gelu: bool | None = None,
    options: Options = PLAIN,
    tagged: bool = False,
) -> Backbone:
    """Builds a model and fills it with weights, completely or not at all; float32, eval mode.

    Args:
        name: an open_clip model, "timm/<model>", one of `reid_weights`, "crossreid-small"
            or "crossreid-small-vit".
        pretrained: None (random weights), "bundled" (the weights that ship with the small models),
            a tag of open_clip or timm such as "openai" (downloaded), "hf-hub:owner/name", or a
            local file: plain state dict, a training script's checkpoint, safetensors, or OpenAI's
            JIT archive. OpenAI's own files, tags and the notes of a hub bring QuickGELU with them;
            any other file that needs it takes the name that says so, such as "RN50-quickgelu".
        seed: of the random weights; the global random state is left alone.
        quick_gelu: what CLIP's transformers are built with; None where the name, or else the
            weights, say it.
        options: of the encoder.
        tagged: take "timm/<model>.<tag>" too, of a run that began with one: the tag says mean and
            deviation, and no weights are read for it.

    Raises:
        ValueError: unknown name, missing or unreadable file, or weights of another
            architecture, with the missing, unexpected and misshapen keys listed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith(TIMM):
            backbone = _load_timm(name, pretrained, options, tagged=tagged)
        elif name in reid_weights.MODELS:
            backbone = _load_reid_weights(name, pretrained, options)
        else:
            backbone = _load_clip(name, pretrained, options, quick_gelu=quick_gelu)
    backbone.model.eval()
    return replace(backbone, options=options)


def has_text(name: str) -> bool:
    """Whether a model of this name comes with a text tower that prompts can be put into.

    Raises:
        ValueError: unknown name.
    """
    if name.startswith(TIMM) or name in reid_weights.MODELS:
        return False
    config = _clip_config(name)
    text = config["text_cfg"]
    foreign = "hf_model_name" in text or "hf_tokenizer_name" in text
    return not foreign and not config.get("custom_text") and "multimodal_cfg" not in config


def without_text(name: str) -> str:
    """Why a method that needs texts cannot take this model, and what it could take."""
    return (
        f"{name!r} has no text tower of CLIP's own kind (causal, read at EOT), which prompts "
        f"need; take RN50, ViT-B-16, {SMALL} or another plain CLIP"
    )


# Names and files of all families -----------------------------------------------------------------


def _unknown(name: str) -> ValueError:
    names = [*open_clip.list_models(), *reid_weights.MODELS]
    names += [f"{TIMM}{model}" for model in timm.list_models()]
    part = name.removeprefix(TIMM).lower()
    near = [each for each in names if part in each.lower()][:6]
    near = near or difflib.get_close_matches(name, names, n=4, cutoff=0.4)
    return ValueError(
        f"unknown model {name!r}; close names: {', '.join(near) or 'none'}. Models of timm are "
        f"called {TIMM}<name>"
    )


def _before(pretrained: str | None) -> AbstractContextManager[object]:
    """What a model is built in: no weights are drawn where a file follows."""
    return nullcontext() if pretrained is None else Undrawn()


def _without_tag(name: str, pretrained: str, tags: list[str]) -> Path:
    """The weight file that ships with the package, of a hub, or of the user."""
    if pretrained.startswith(HUB):
        return download_weights(pretrained)
    if pretrained == "bundled" and name in BUNDLED:
        return ASSETS / f"{name}.pt"
    path = Path(pretrained).expanduser()
    if not path.is_file():
        bundled = f", 'bundled' for {' and '.join(BUNDLED)}"
        raise ValueError(
            f"model.pretrained={pretrained}: no such file, and no weights of {name!r} have this "
            f"name. Give the path of a state dict, a training script's checkpoint, safetensors or "
            f"OpenAI's JIT archive, {HUB}owner/name{bundled}, or one of the tags that are "
            f"downloaded: {', '.join(tags) or 'none for this model'}"
        )
    return path


# open_clip ---------------------------------------------------------------------------------------


def _load_clip(
    name: str, pretrained: str | None, options: Options, *, quick_gelu: bool | None
) -> Backbone:
    config = _clip_config(name)
    if options.drop_path:
        raise ValueError(
            f"model.drop_path={options.drop_path}: the towers of open_clip have none; set it to 0, "
            "or take a model of timm"
        )
    if pretrained is None:
        return _build_clip(name, config, quick_gelu=bool(quick_gelu))
    path, of_tag = _locate(name, pretrained)
    file = read_weights(path)
    needed = of_tag or bool(file.quick_gelu) if quick_gelu is None else quick_gelu
    with Undrawn():
        backbone = _build_clip(name, config, quick_gelu=needed)
    if backbone.text_tower is None:
        visual = {k.removeprefix("visual."): v for k, v in file.state.items() if "visual." in k}
        file = replace(file, state=visual or file.state)
    tags = open_clip.list_pretrained_tags_by_model(name)
    fill(
        backbone.model,
        file,
        name=name,
        hint="Name the architecture that the file was made for, or take one of the tags that "
        f"open_clip downloads: {', '.join(tags) or 'none'}",
    )
    twin = f"{name}-quickgelu"
    known = quick_gelu is not None or pretrained in tags or file.quick_gelu is not None
    twin = "" if known or twin not in open_clip.list_models() else twin
    return replace(backbone, pixels=file.pixels or _clip_pixels(name, pretrained), twin=twin)


def _clip_config(name: str) -> dict[str, Any]:
    if SMALL not in open_clip.list_models():
        for small in BUNDLED:
            open_clip.add_model_config(ASSETS / f"{small}.json")
    if name not in open_clip.list_models():
        raise _unknown(name)
    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def _build_clip(name: str, config: dict[str, Any], *, quick_gelu: bool) -> Backbone:
    settings = dict(config)
    settings["quick_gelu"] = quick_gelu or config.get("quick_gelu", False)
    pixels = _clip_pixels(name)
    if not has_text(name):
        visual = _build_vision_tower(
            config["embed_dim"], config["vision_cfg"], settings["quick_gelu"]
        )
        return Backbone(name, visual, None, pixels)
    settings.pop("custom_text", None)
    model = open_clip.CLIP(**settings)
    return Backbone(name, model, TextTower(model).eval(), pixels)


def _clip_pixels(name: str, pretrained: str | None = None) -> Pixels:
    """What open_clip says of the tag, or of any of this name, or OpenAI's where it says nothing."""
    if name in BUNDLED:
        return replace(IMAGENET, size=(96, 48))
    tags = open_clip.list_pretrained_tags_by_model(name)
    for tag in [pretrained] if pretrained in tags else tags:
        notes = open_clip.get_pretrained_cfg(name, tag)
        if "mean" in notes:
            return Pixels(tuple(notes["mean"]), tuple(notes["std"]))
    return Pixels(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def _locate(name: str, pretrained: str) -> tuple[Path, bool]:
    """The weight file and whether their tag says that they need QuickGELU."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        return _without_tag(name, pretrained, tags), False
    source = open_clip.get_pretrained_cfg(name, pretrained)
    path = hub.downloaded(name, pretrained, lambda: open_clip.download_pretrained(source))
    return Path(path), bool(source.get("quick_gelu", False))


# timm --------------------------------------------------------------------------------------------


def _load_timm(name: str, pretrained: str | None, options: Options, *, tagged: bool) -> Backbone:
    plain, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(plain):
        raise _unknown(name)
    if tag and not tagged:
        raise ValueError(
            f"{name!r} names weights too: take model.name={TIMM}{plain} and model.pretrained={tag}"
            ", which is downloaded, or the path of their file as model.pretrained"
        )
    settings: dict[str, Any] = {"num_classes": 0}
    settings |= {"drop_path_rate": options.drop_path} if options.drop_path else {}
    tags = [tag.removeprefix(f"{plain}.") for tag in timm.list_pretrained(f"{plain}.*")]
    twin = _timm_twin(plain)
    if pretrained is not None and pretrained in tags:
        if twin and timm.is_model_pretrained(f"{twin}.{pretrained}") and not tagged:
            raise _of_quick_gelu(f"model.pretrained={pretrained}", f"{TIMM}{twin}")
        model = hub.downloaded(
            name,
            pretrained,
            lambda: timm.create_model(f"{plain}.{pretrained}", pretrained=True, **settings),
        )
        return Backbone(name, model, None, _timm_pixels(model.pretrained_cfg))
    with _before(pretrained):
        model = timm.create_model(f"{plain}.{tag}" if tag in tags else plain, **settings)
    pixels, guessed, unsure = _timm_pixels(model.pretrained_cfg), False, ""
    if pretrained is not None:
        file = unwrapped(read_weights(_without_tag(name, pretrained, tags)))
        if twin and file.quick_gelu and not tagged:
            raise _of_quick_gelu(str(file.path), f"{TIMM}{twin}")
        unsure = f"{TIMM}{twin}" if twin and file.quick_gelu is None else ""
        usual = {_timm_pixels(vars(timm.get_pretrained_cfg(f"{plain}.{x}"))) for x in tags}
        guessed = file.pixels is None and not tag and len(usual) > 1
        pixels = file.pixels or pixels
        reid_weights.match_positions(model, file.state)
        hint = (
            "Name the architecture of the file; pedestrian weights have names of their own: "
            f"{', '.join(reid_weights.MODELS)}"
        )
        fill(model, _for_timm(file, model), name=name, hint=hint)
    return Backbone(name, model, None, pixels, guesses_pixels=guessed, twin=unsure)


def _timm_twin(plain: str) -> str:
    """The same CLIP of timm with QuickGELU, "" where there is none."""
    twin = plain.replace("_clip_", "_clip_quickgelu_")
    return twin if twin != plain and timm.is_model(twin) else ""


def _of_quick_gelu(weights: str, twin: str) -> ValueError:
    return ValueError(f"{weights} was trained with QuickGELU: take model.name={twin}")


def _timm_pixels(notes: Any) -> Pixels:
    return Pixels(tuple(notes["mean"]), tuple(notes["std"]))


def _for_timm(file: WeightFile, model: Any) -> WeightFile:
    """The names of timm, of a file by the model's authors; without the classifier."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    state = file.state
    if convert is not None:
        # Converters stumble over names of other models, each in its own way: `fill` lists them.
        with suppress(Exception):
            state = convert(dict(state), model)
    classifier = model.pretrained_cfg.get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    remaining = {k: v for k, v in state.items() if not k.startswith(tuple(f"{n}." for n in names))}
    return replace(file, state=remaining)


def _load_reid_weights(name: str, pretrained: str | None, options: Options) -> Backbone:
    source = reid_weights.MODELS[name]
    with _before(pretrained):
        model = source.build(options.drop_path)
    if pretrained is not None:
        file = source.rename(read_weights(_without_tag(name, pretrained, [])))
        reid_weights.match_positions(model, file.state)
        fill(model, file, name=name, hint=f"It takes the files of {source.origin}")
    return Backbone(name, model, None, source.pixels)
