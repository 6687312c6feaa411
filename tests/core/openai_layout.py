"""The published layout of OpenAI's RN50: names, shapes and precisions, written from rules.

Nothing here is taken from a model of ours or of open_clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Draw = Callable[..., Tensor]


def batch_norm(name: str, width: int, draw: Draw) -> Iterator[tuple[str, Tensor]]:
    for part in ("weight", "running_var"):
        yield f"{name}.{part}", 0.5 + draw(width).abs()
    for part in ("bias", "running_mean"):
        yield f"{name}.{part}", 0.1 * draw(width)
    yield f"{name}.num_batches_tracked", torch.tensor(1000)


def image_weights(draw: Draw) -> Iterator[tuple[str, Tensor]]:
    """ModifiedResNet-50: width 64, 3 / 4 / 6 / 3 bottlenecks, pool of 7 x 7 positions."""
    for i, (read, written) in enumerate(((3, 32), (32, 32), (32, 64)), start=1):
        yield f"visual.conv{i}.weight", draw(written, read, 3, 3, spread=0.1).half()
        yield from batch_norm(f"visual.bn{i}", written, draw)
    read = 64
    for layer, (planes, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name = f"visual.layer{layer}.{block}"
            shapes = ((planes, read, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for i, shape in enumerate(shapes, start=1):
                yield f"{name}.conv{i}.weight", draw(*shape, spread=0.02).half()
                yield from batch_norm(f"{name}.bn{i}", shape[0], draw)
            if block == 0:
                yield (
                    f"{name}.downsample.0.weight",
                    draw(4 * planes, read, 1, 1, spread=0.02).half(),
                )
                yield from batch_norm(f"{name}.downsample.1", 4 * planes, draw)
            read = 4 * planes
    yield "visual.attnpool.positional_embedding", draw(50, 2048, spread=0.02)
    for part, width in (("k", 2048), ("q", 2048), ("v", 2048), ("c", 1024)):
        yield f"visual.attnpool.{part}_proj.weight", draw(width, 2048, spread=0.02).half()
        yield f"visual.attnpool.{part}_proj.bias", draw(width, spread=0.02).half()


def text_weights(draw: Draw) -> Iterator[tuple[str, Tensor]]:
    """A transformer of width 512 with 12 layers over 77 tokens of a vocabulary of 49,408."""
    yield "token_embedding.weight", draw(49408, 512, spread=0.02)
    yield "positional_embedding", draw(77, 512, spread=0.01)
    yield "text_projection", draw(512, 1024, spread=0.04).half()
    yield "logit_scale", torch.tensor(4.6)
    matrices = {"attn.in_proj": (1536, 512), "attn.out_proj": (512, 512)}
    matrices |= {"mlp.c_fc": (2048, 512), "mlp.c_proj": (512, 2048)}
    for i in range(12):
        for part, shape in matrices.items():
            joint = "_" if part == "attn.in_proj" else "."
            name = f"transformer.resblocks.{i}.{part}{joint}"
            yield f"{name}weight", draw(*shape, spread=0.03).half()
            yield f"{name}bias", draw(shape[0], spread=0.01).half()
        for part in ("ln_1", "ln_2"):
            yield f"transformer.resblocks.{i}.{part}.weight", torch.ones(512)
            yield f"transformer.resblocks.{i}.{part}.bias", draw(512, spread=0.1)
    yield "ln_final.weight", torch.ones(512)
    yield "ln_final.bias", draw(512, spread=0.1)


class Archive(nn.Module):
    """Holds tensors under the dotted names that a scripted model would have."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            place: nn.Module = self
            *folders, leaf = key.split(".")
            for folder in folders:
                if folder not in place._modules:
                    place.add_module(folder, nn.Module())
                place = place._modules[folder]
            place.register_buffer(leaf, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def rn50_weights(*, seed: int) -> dict[str, Tensor]:
    """A random state dict of the whole model; large tensors repeat their numbers."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(2**18 + 3, generator=generator)

    def draw(*shape: int, spread: float = 1.0) -> Tensor:
        number = int(torch.tensor(shape).prod())
        start = int(torch.randint(len(pool), (), generator=generator))
        numbers = pool.roll(start).repeat(number // len(pool) + 1)[:number]
        return spread * numbers.reshape(shape)

    return dict(image_weights(draw)) | dict(text_weights(draw))
