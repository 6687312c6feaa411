"""Images per second through an encoder in eval mode, from bytes that lie on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.settings import Settings
from pipelines.config import run as configuration
from pipelines.distributed.precision import autocast, set_tf32
from reid_core.methods import METHODS
from reid_core.models import backbones
from reid_core.models.folding import folded
from reid_core.types import Modality

RECIPES = {"RN50": "cclnet_sysu.yaml", "ViT-B-16": "cpcl_cuhk.yaml"}
TINY = {"crossreid-small": "demo.yaml"}
MODES = ("fp32", "tf32", "bf16")
COMPILED = ("bf16 compiled", "tf32 compiled")
_COMPILING = 25  # seconds, with what is measured then


def cases(settings: Settings) -> Iterator[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]:
    """Every model in every precision, then compiled, which takes its time."""
    models = TINY if settings.tiny else RECIPES
    for name, recipe in models.items():
        yield name, partial(measure, settings, recipe, MODES)
    for mode in COMPILED:
        for name, recipe in models.items():
            yield f"{name}, {mode}", partial(measure, settings, recipe, (mode,))


def measure(settings: Settings, recipe: str, modes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rates of a recipe's encoder."""
    modes = tuple(filter(settings.takes_mode, modes))
    if not modes:
        return
    config = configuration.load(Path(recipe), ["data.root=/", "model.pretrained=null"])
    model = config.model
    backbone = backbones.load(model.name, None, options=model.options())
    load = METHODS[config.method].load_encoder
    encoder: Any = load(config.settings, backbone, model.height, model.width, None)
    assert isinstance(encoder, nn.Module)
    encoder = folded(encoder.to(settings.device).to(memory_format=torch.channels_last).eval())
    batch = 32 if settings.tiny else config.trainer.embed_batch
    shape = (batch, 3, model.height, model.width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=settings.device)
    size = f"{model.height}x{model.width}"
    for mode in modes:
        rest = settings.not_measured(_COMPILING) if mode in COMPILED else {}
        rest = rest or _rate(settings, encoder, images, mode)
        yield {"size": size, "batch": batch, "mode": mode, **rest}


def _rate(settings: Settings, encoder: Any, images: torch.Tensor, mode: str) -> dict[str, Any]:
    set_tf32(mode.startswith("tf32"))
    embed = settings.compiled(encoder.embed) if mode in COMPILED else encoder.embed
    settings.reset_memory()

    @torch.inference_mode()
    def work() -> None:
        with autocast(settings.device, "bf16" if mode.startswith("bf16") else "fp32"):
            embed(images, Modality.VISIBLE)

    seconds = settings.seconds_per_call(work)
    return {"images/s": len(images) / seconds, "device MiB": settings.memory_mib()}
