"""What a step of a recipe keeps in memory: parameters, their gradients and the activations.

    python -m benchmarks.memory [RECIPE ...] [key=value ...]

Activations are the tensors that autograd keeps in a forward pass of the image encoder, counted on
the CPU with random weights, in the recipe's precision and in the other one. "in all" adds weights,
gradients and the optimizer's moments, for the images of the largest step. What CUDA, the banks and
a convolution's workspace take comes on top; attention on a GPU keeps about as much.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from reid_core.methods import METHODS
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder

RECIPES = (
    "cclnet_sysu.yaml",
    "cclnet_sysu_vitb16.yaml",
    "bmil_sysu.yaml",
    "bmil_sysu_vitb.yaml",
    "bmil_sysu_dinov3.yaml",
)
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}


@dataclass(frozen=True)
class Counted:
    """Of one recipe.

    Attributes:
        parameters: of the image encoder.
        images: of the largest step, all modalities and views.
        mib: precision -> MiB of activations for one image.
        gib: precision -> GiB of weights, gradients, moments and activations.
    """

    parameters: int
    images: int
    mib: dict[str, float]
    gib: dict[str, float]


def count(config: RunConfig) -> Counted:
    """Builds the encoder of a recipe of an image method and passes few images through it."""
    model, method = config.model, METHODS[config.method]
    start = backbones.load(model.name, None, options=model.options())
    whole = method.load_encoder(config.settings, start, model.height, model.width, None)
    assert isinstance(whole, nn.Module)
    encoder = next(part for part in whole.modules() if isinstance(part, ImageEncoder)).train()
    encoder.requires_grad_(True)
    mib = {name: _activations(encoder, config, name) / 2**20 for name in ("fp32", "bf16")}
    parameters = sum(p.numel() for p in encoder.parameters())
    fixed = 4 * parameters * (2 + MOMENTS[_optimizer(config)])
    images = _images(config)
    gib = {name: (fixed / 2**20 + images * each) / 2**10 for name, each in mib.items()}
    return Counted(parameters, images, mib, gib)


def _activations(encoder: ImageEncoder, config: RunConfig, precision: str) -> float:
    """Bytes for one image: the difference between steps of four and of two."""
    one, two = (_saved(encoder, config, precision, rows) for rows in (1, 2))
    return (two - one) / 2


def _saved(encoder: ImageEncoder, config: RunConfig, precision: str, rows: int) -> int:
    """Bytes that autograd keeps beside the weights, for `rows` images of each modality."""
    own = {x.untyped_storage()._cdata for x in (*encoder.parameters(), *encoder.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage()._cdata] = x
        return x

    images = torch.zeros(rows, 3, config.model.height, config.model.width)
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), half:
        encoder(images, images)
    return sum(x.untyped_storage().nbytes() for at, x in saved.items() if at not in own)


def _images(config: RunConfig) -> int:
    """Of the largest step: rows of each modality times its views."""
    method, images = METHODS[config.method], 0
    views = method.augmentations(config.settings, config.augmentation.options())
    rows = {k: n for k, n in method.batch_rows(config.settings).items() if "instances" in k}
    for m in method.inputs:
        own = [n for key, n in rows.items() if f"({m})" in key or "(" not in key]
        images += max(own) * len(views[m])
    return images


def _optimizer(config: RunConfig) -> str:
    """Of the last stage."""
    *_, last = METHODS[config.method].stages(config.settings)
    name: str = getattr(config.settings, last).optimizer
    return name


def main() -> None:
    """Print a line for every recipe and precision."""
    recipes = [word for word in sys.argv[1:] if "=" not in word] or RECIPES
    given = ["data.root=unused", *(word for word in sys.argv[1:] if "=" in word)]
    print("recipe | parameters | images a step | MiB an image fp32, bf16 | GiB in all fp32, bf16")
    for recipe in recipes:
        config = configuration.load(Path(recipe), given)
        result = count(config)
        numbers = (
            f"{result.parameters / 1e6:.1f} M",
            str(result.images),
            ", ".join(f"{x:.0f}" for x in result.mib.values()),
            ", ".join(f"{x:.1f}" for x in result.gib.values()),
        )
        print(" | ".join((f"{recipe} ({config.trainer.precision})", *numbers)), flush=True)


if __name__ == "__main__":
    main()
