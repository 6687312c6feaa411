"""Weight files of any origin: found, read without running their code, and filled in or refused."""

from __future__ import annotations

import argparse
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reid_core.models import hub

HUB = "hf-hub:"
_HUB_FILES = ("open_clip_model.safetensors", "model.safetensors", "pytorch_model.bin")
_HUB_NOTES = ("open_clip_config.json", "config.json")
# Buffers that OpenAI's archives carry beside the weights; no other checkpoint has them.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
# Where training scripts put the weights: timm and MAE, open_clip and MoCo, DINO.
_INSIDE = ("state_dict", "model", "teacher")
# What they put beside them that is no tensor: their arguments, as DINO and MAE do.
_BESIDE: list[Any] = [argparse.Namespace]
# What they call the encoder: MoCo, DINO and mmdetection, TransReID.
_WRAPPERS = ("encoder_q.", "backbone.", "base.")
# What torch, open_clip and timm draw first weights with.
_DRAWS = (
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.erfinv_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
)


@dataclass(frozen=True)
class Pixels:
    """What weights were trained on, as their own metadata says.

    Attributes:
        mean, std: of RGB, of 1.
        size: (height, width) of the images, None where nothing tells.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        path: of the file, for messages.
        state: name -> tensor.
        quick_gelu: whether it was trained with QuickGELU, as OpenAI's own archives and the notes
            beside a file from a hub say; None where nothing does.
        pixels: of those notes, None without.
    """

    path: Path
    state: dict[str, Tensor]
    quick_gelu: bool | None = None
    pixels: Pixels | None = None


def read_weights(path: Path) -> WeightFile:
    """A state dict, a training script's checkpoint, safetensors, or OpenAI's JIT archive.

    Raises:
        ValueError: no file, not readable, or no names with tensors.
    """
    content: Any
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif _is_archive(path):
            with warnings.catch_warnings():  # the format is old, and OpenAI's
                warnings.simplefilter("ignore", FutureWarning)
                content = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            with torch.serialization.safe_globals(_BESIDE):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each raise their own kinds
        # torch would advise to read it in a way that runs whatever code the file holds
        raise ValueError(
            f"{path} is not a readable weight file: damaged, or with objects that are not opened "
            f"({type(error).__name__}); it must hold tensors alone, as "
            "torch.save(model.state_dict(), ...) writes them"
        ) from error
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (names -> tensors)")
    state = {key.removeprefix("module."): value for key, value in content.items()}
    marks = [state.pop(mark, None) for mark in _OPENAI_MARKS]
    pixels, quick_gelu = _notes_beside(path)
    if any(mark is not None for mark in marks):
        quick_gelu = True
    return WeightFile(path, state, quick_gelu, pixels)


def download_weights(name: str) -> Path:
    """The weight file of a repository of the hub, "hf-hub:owner/name", with its notes beside it.

    Raises:
        ValueError: no such repository, or no network.
    """
    repository, failure = name.removeprefix(HUB), "it has none of the usual files"
    with hub.asked() as unreachable:
        for file in _HUB_FILES:
            try:
                path = Path(hf_hub_download(repository, file))
            except Exception as error:  # the client raises its own kinds
                failure = f"{type(error).__name__}: {error}"
                continue
            for note in _HUB_NOTES:
                with suppress(Exception):
                    hf_hub_download(repository, note)
            return path
    raise ValueError(
        f"could not download the weights {name!r}: {unreachable or failure}. Download them "
        "elsewhere and give the path of the file as model.pretrained"
    )


class Undrawn(TorchFunctionMode):
    """Within the block modules are built without drawing their first weights.

    For a model that is filled completely next, or not at all: until then its weights are whatever
    the memory held. Drawing them is most of what building a model takes.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls the function of torch, except what draws: that gives its tensor back."""
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def fill(model: nn.Module, file: WeightFile, *, name: str, hint: str) -> None:
    """Loads every name into `model` or raises; half-precision weights become float32.

    Args:
        model: to fill, in place.
        file: with the model's own names.
        name: of the model, for messages.
        hint: what else could be loaded.

    Raises:
        ValueError: weights of another model, with the missing, unexpected and misshapen names.
    """
    wanted = model.state_dict()
    state = file.state
    # Counters that no computation here reads; older files lack them.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted]
    misshapen = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{file.path} does not hold the weights of {name!r}: "
            f"missing: {listed(missing)}; unexpected: {listed(unexpected)}; "
            f"wrong shape: {listed(misshapen)}. {hint}"
        )
    model.load_state_dict(state, strict=False)


def unwrapped(file: WeightFile, left_out: tuple[str, ...] = ()) -> WeightFile:
    """The encoder's own names; what else a training script saves beside it goes.

    Args:
        file: whose names may begin with what the script calls its encoder.
        left_out: beginnings of names that are heads.
    """
    state = file.state
    for prefix in _WRAPPERS:
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state = inside or state
    return replace(file, state={k: v for k, v in state.items() if not k.startswith(left_out)})


def listed(names: Iterable[str], *, limit: int = 8) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest


def _is_archive(path: Path) -> bool:
    """Whether it is TorchScript, which is code and is read as such only where it has any."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _notes_beside(path: Path) -> tuple[Pixels | None, bool | None]:
    """What the configurations say that hubs keep beside the weights: pixels, QuickGELU."""
    pixels, quick_gelu = None, None
    for name in _HUB_NOTES:
        try:
            notes = json.loads((path.parent / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if quick_gelu is None and "model_cfg" in notes:
            quick_gelu = bool(notes["model_cfg"].get("quick_gelu", False))
        notes = notes.get("preprocess_cfg") or notes.get("pretrained_cfg") or {}
        size = notes.get("input_size") or notes.get("size")
        if pixels is None and "mean" in notes and "std" in notes:
            sides = (size, size) if isinstance(size, int) else tuple(size[-2:]) if size else None
            pixels = Pixels(tuple(notes["mean"]), tuple(notes["std"]), sides)
    return pixels, quick_gelu
