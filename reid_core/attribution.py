"""Where an encoder looks, and what learned words resemble.

Shapes: B images of H x W pixels, C classes, n learned tokens per class, V words, W token width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core.attention import rolled_out
from reid_core.types import Modality

MIN_ROWS = 8  # fewer rows of cells cannot tell a head from a shoulder


@dataclass(frozen=True)
class NearWord:
    """A word of a vocabulary and its cosine to a learned token."""

    word: str
    similarity: float


def heat_maps(encoder: nn.Module, images: Tensor, modality: Modality, targets: Tensor) -> Tensor:
    """Which places of an image make its descriptor resemble a target.

    Gradient-based: relu(gradient) x activation, summed over the channels of a feature map, where
    the gradient is that of cos(descriptor, target). The map is the last one of the forward pass
    that has `MIN_ROWS` rows, or the last one of all. Small networks shrink their last maps to a few
    cells, which is why it need not be the last.

    Of a vision transformer relu(gradient x attention), mean over the heads, is rolled out from the
    descriptor back to the patches, block by block.

    Args:
        encoder: `reid_core.stage.Encoder` and a module, in eval mode; its parameters get no
            gradients.
        images: (B, 3, H, W) uint8, on the encoder's device.
        modality: of the images.
        targets: (B, D) unit rows, e.g. the descriptors of the right answers. An image's own
            descriptor is no target: nothing could resemble it more.

    Returns:
        (B, H, W) float32 in [0, 1], the largest place of each image 1; 0 everywhere where nothing
        speaks for the target.

    Raises:
        ValueError: the encoder has no feature map.

    Reference: LayerCAM, Jiang et al., TIP 2021, equation 5; Chefer, Gur, Wolf, "Generic
    Attention-model Explainability", ICCV 2021, equations 5 and 6, which is the attention rollout
    of Abnar and Zuidema, ACL 2020, weighted by gradients.
    """
    heat = rolled_out(encoder, images, modality, targets)
    if heat is None:
        heat = _layer_cam(encoder, images, modality, targets)
    heat = functional.interpolate(heat[:, None], size=images.shape[2:], mode="bilinear")[:, 0]
    largest = heat.flatten(1).max(dim=1).values[:, None, None]
    return heat / largest.clamp(min=torch.finfo(heat.dtype).tiny)


def _layer_cam(encoder: nn.Module, images: Tensor, modality: Modality, targets: Tensor) -> Tensor:
    """(B, h, w), not negative."""
    layer = _finest_late_layer(encoder, images, modality)
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        # parameters are frozen, so the graph begins here
        output = output.detach().requires_grad_()
        caught.append(output)
        return output

    hook = layer.register_forward_hook(catch)
    try:
        with torch.enable_grad():
            result = encoder.embed(images, modality)  # type: ignore[operator]
            (result * targets.to(result)).sum().backward()
    finally:
        hook.remove()
        encoder.zero_grad(set_to_none=True)
    maps = caught[0]  # an encoder that looks at the mirrored image too does so afterwards
    assert maps.grad is not None
    return (maps.grad.clamp(min=0) * maps.detach()).sum(dim=1).clamp(min=0).float()


def near_words(
    tokens: Tensor, vocabulary: Tensor, words: Sequence[str], *, count: int = 3
) -> list[list[list[NearWord]]]:
    """The words whose token embeddings point where learned tokens point.

    A learned token need not mean anything: read the similarity beside the word.

    Args:
        tokens: (C, n, W) learned token embeddings.
        vocabulary: (V, W) token embeddings of the words.
        words: V of them.
        count: words per token.

    Returns:
        Per class and token the nearest words, by cosine, best first.

    Reference: CoOp, Zhou et al., IJCV 2022, table "nearest words"; cosine instead of Euclid, which
    would find the shortest embeddings.
    """
    flat = functional.normalize(tokens.detach().flatten(0, 1).float(), dim=1)
    similarity = flat @ functional.normalize(vocabulary.detach().float(), dim=1).T
    best, places = similarity.topk(min(count, len(words)), dim=1)
    result = [
        [NearWord(words[place], value) for place, value in zip(row, values, strict=True)]
        for row, values in zip(places.tolist(), best.tolist(), strict=True)
    ]
    num_tokens = tokens.shape[1]
    return [result[i : i + num_tokens] for i in range(0, len(result), num_tokens)]


def _finest_late_layer(encoder: nn.Module, images: Tensor, modality: Modality) -> nn.Module:
    """The last block whose output is a map of enough rows, or of any rows.

    Blocks, modules made of others, come before single layers: a layer inside a residual branch does
    not see what the shortcut carries past it.
    """
    seen: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1:
            seen.append((module, output.shape[2]))

    inside = tuple(
        f"{name}." for name, m in encoder.named_modules() if hasattr(m, "channels_last_inside")
    )
    hooks = [
        module.register_forward_hook(note)
        for name, module in encoder.named_modules()
        if not name.startswith(inside)
    ]
    try:
        with torch.no_grad():
            encoder.embed(images[:1], modality)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError(
            f"{type(encoder).__name__} has no feature map, so there is no place to look at"
        )
    blocks = [one for one in seen if next(one[0].children(), None) is not None] or seen
    fine = [module for module, rows in blocks if rows >= MIN_ROWS]
    return fine[-1] if fine else blocks[-1][0]
