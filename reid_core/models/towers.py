"""Image towers opened up: stem, trunk, pool and projection of any family, for images of any shape.

Knows how open_clip and timm build an image tower; one function per family. Shapes: B images,
D trunk channels, E joint embedding, h x w positions of the last map or patches, P tokens in front.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as ClipTransformer
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from reid_core.models.options import PLAIN, Options, PoolKind
from reid_core.models.patches import (
    Blocks,
    ChannelsFirst,
    ClipPatches,
    MeanPool,
    fit_clip_patches,
    fit_timm_patches,
)
from reid_core.models.pooling import AttentionPool, ClassProjection, GeM, Projection, TokenPool


@dataclass(frozen=True)
class Fit:
    """How a tower is fitted to its images.

    Attributes:
        height, width: of the images, in pixels.
        options: of the encoder, of which the tower follows pool, patch_stride and stem_blocks.
        last_stride: of a ResNet's layer4. It was trained with 2; re-identification takes 1.
        stem_relu: "all" three rectifiers of the stem of CLIP's ResNets, or the "last" alone, which
            is how CSDN's public code rebuilds it (its released weights need it).
        learnable_gem: whether GeM learns its exponent.
    """

    height: int
    width: int
    options: Options = PLAIN
    last_stride: int = 1
    stem_relu: Literal["all", "last"] = "all"
    learnable_gem: bool = False


@dataclass(frozen=True)
class Tower:
    """An image tower in the order in which an image passes it; a copy that shares nothing.

    Attributes:
        stem: normalized images (B, 3, H, W) -> what the trunk takes.
        trunk: -> last features: maps (B, D, h, w) or tokens (B, P + h w, D).
        pool: last features -> (B, D).
        projection: last features -> (B, E) of the joint space; None where no text tower shares it.
        dim: D.
    """

    stem: nn.Module
    trunk: nn.Module
    pool: nn.Module
    projection: Projection | None
    dim: int


def open_tower(visual: nn.Module, fit: Fit) -> Tower:
    """The parts of an image tower.

    Raises:
        ValueError: a family that is not known here, or a setting or a size that does not fit it.
    """
    visual = visual.trunk if isinstance(visual, TimmModel) else visual  # open_clip's wrapper
    for kinds, opener, settings in _FAMILIES:
        if type(visual) in kinds:  # what a family's heirs do otherwise is not known here
            _refuse_others(fit, settings, type(visual).__name__)
            return opener(deepcopy(visual), fit)
    raise ValueError(
        f"no encoder can be made of a {type(visual).__name__}: it takes CLIP's ResNets (RN50, "
        "crossreid-small), vision transformers (ViT-B-16, ViT-B-16-SigLIP2, "
        "timm/vit_base_patch16_224, timm/vit_small_patch16_dinov3), timm/swin_* and timm/resnet*"
    )


def joint_tower(visual: Any, *, height: int, width: int) -> nn.Module:
    """A copy of a CLIP's image tower for images of one size, (B, 3, H, W) -> (B, E).

    Args:
        visual: open_clip's ModifiedResNet, which gets last stride 1, or its VisionTransformer.
        height, width: of the images, in pixels.

    Raises:
        ValueError: a tower that does not end in CLIP's joint space, or a size that does not fit.
    """
    fit = Fit(height, width)
    if isinstance(visual, ClipTransformer):
        copied: nn.Module = deepcopy(visual)
        _check_ends_like_clip(copied)
        fit_clip_patches(copied, **_patches(fit, visual.patch_size))
        return copied
    tower = open_tower(visual, fit)
    if tower.projection is None:
        raise ValueError(f"a {type(visual).__name__} does not end in a space shared with texts")
    return nn.Sequential(OrderedDict(stem=tower.stem, trunk=tower.trunk, attnpool=tower.projection))


def _clip_resnet(visual: Any, fit: Fit) -> Tower:
    grid = _grid(fit, 16 * fit.last_stride)
    names = [f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "bn", "act")] + ["avgpool"]
    if fit.stem_relu == "last":
        names = [name for name in names if name not in ("act1", "act2")]
    # CLIP strides by average pools: one behind the second convolution of the first block, one in
    # front of its shortcut.
    block = visual.layer4[0]
    block.avgpool = nn.AvgPool2d(fit.last_stride) if fit.last_stride > 1 else nn.Identity()
    block.downsample[0] = nn.AvgPool2d(fit.last_stride)
    return Tower(
        stem=_pieces(visual, names),
        trunk=_pieces(visual, _LAYERS),
        pool=_map_pool(fit),
        projection=AttentionPool(visual.attnpool, grid=grid),
        dim=visual.attnpool.q_proj.in_features,
    )


def _resnet(visual: Any, fit: Fit) -> Tower:
    _grid(fit, 16 * fit.last_stride)
    for layer in visual.layer4[0].modules() if fit.last_stride == 1 else ():
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            layer.stride = (1, 1)
        elif isinstance(layer, nn.AvgPool2d):
            layer.kernel_size = layer.stride = 1
    return Tower(
        stem=_pieces(visual, ["conv1", "bn1", "act1", "maxpool"]),
        trunk=_pieces(visual, _LAYERS),
        pool=_map_pool(fit),
        projection=None,
        dim=visual.num_features,
    )


def _swin(visual: Any, fit: Fit) -> Tower:
    _grid(fit, 32)
    # windows keep their size: the table of relative positions was learnt for it
    block = visual.layers[0].blocks[0]
    visual.set_input_size(
        (fit.height, fit.width),
        window_size=block.window_size,
        always_partition=block.always_partition,
    )
    own, shared = _split([ChannelsFirst(stage) for stage in visual.layers], fit)
    patches = ChannelsFirst(visual.patch_embed, images=True)
    return Tower(
        stem=nn.Sequential(OrderedDict(patches=patches, layers=nn.Sequential(*own))),
        trunk=nn.Sequential(
            OrderedDict(layers=nn.Sequential(*shared), norm=ChannelsFirst(visual.norm))
        ),
        pool=_map_pool(fit),
        projection=None,
        dim=visual.num_features,
    )


def _clip_transformer(visual: Any, fit: Fit) -> Tower:
    _check_ends_like_clip(visual)
    patches = _patches(fit, visual.patch_size)
    fit_clip_patches(visual, **patches)
    own, shared = _split(visual.transformer.resblocks, fit)
    return Tower(
        stem=ClipPatches(visual, own),
        trunk=Blocks(shared, visual.ln_post, grid=patches["grid"]),
        pool=TokenPool(fit.options.pool or "class", left_out=1, norm=nn.Identity()),
        projection=ClassProjection(visual.proj),
        dim=visual.proj.shape[0],
    )


def _transformer(visual: Any, fit: Fit) -> Tower:
    if getattr(visual, "rope_mixed", False):
        raise ValueError(
            "rotary positions that every block has of its own are not handled; DINOv3 and EVA-02 "
            "share theirs"
        )
    patches = _patches(fit, visual.patch_embed.patch_size)
    fit_timm_patches(visual, **patches, size=(fit.height, fit.width))
    pool, rope = _token_pool(visual, fit), deepcopy(getattr(visual, "rope", None))
    _, shared = _split(visual.blocks, fit)
    trunk = Blocks(shared, visual.norm, rope=rope, grid=patches["grid"])
    visual.reset_classifier(0, "")  # from here on it ends with its tokens
    visual.blocks = visual.blocks[: fit.options.stem_blocks]
    visual.norm = visual.fc_norm = visual.head_drop = nn.Identity()
    return Tower(stem=visual, trunk=trunk, pool=pool, projection=None, dim=visual.embed_dim)


def _token_pool(visual: Any, fit: Fit) -> TokenPool:
    """The row that a transformer of timm was trained to be read by, or the one that was chosen."""
    has_class, attention = visual.cls_token is not None, visual.attn_pool
    # where a norm of the pooled row was learnt, that row was the mean
    reads_class = has_class and isinstance(visual.fc_norm, nn.Identity)
    own: PoolKind = "attention" if attention is not None else "class" if reads_class else "mean"
    kind = fit.options.pool or own
    if kind == "class" and not has_class:
        raise ValueError("model.pool=class: this image tower has no class token; take mean or gem")
    # timm's Eva asks all tokens, and so do some others
    asks_all = kind == "attention" and (isinstance(visual, Eva) or visual.pool_include_prefix)
    left_out = 0 if asks_all else visual.num_prefix_tokens
    return TokenPool(kind, left_out=left_out, norm=visual.fc_norm, attention=attention)


_LAYERS = ["layer1", "layer2", "layer3", "layer4"]
_TOKENS = frozenset({"patch_stride", "stem_blocks"})
_FAMILIES: tuple[
    tuple[tuple[type[nn.Module], ...], Callable[[Any, Fit], Tower], frozenset[str]], ...
] = (
    ((ModifiedResNet,), _clip_resnet, frozenset({"last_stride", "stem_relu"})),
    ((ResNet,), _resnet, frozenset({"last_stride"})),
    ((SwinTransformer,), _swin, frozenset({"stem_blocks"})),
    ((ClipTransformer,), _clip_transformer, _TOKENS),
    ((VisionTransformer, Eva), _transformer, _TOKENS),
)


def _refuse_others(fit: Fit, settings: frozenset[str], family: str) -> None:
    """Raises where a setting was changed that this family does not have."""
    given = {"last_stride": fit.last_stride, "stem_relu": fit.stem_relu, **vars(fit.options)}
    usual = {"last_stride": 1, "stem_relu": "all", "patch_stride": None, "stem_blocks": 0}
    for name in usual.keys() - settings:
        if given[name] != usual[name]:
            raise ValueError(f"model.{name}={given[name]}: a {family} has no such thing")


def _check_ends_like_clip(visual: Any) -> None:
    if visual.pool_type != "tok" or visual.attn_pool is not None or visual.proj is None:
        raise ValueError(
            "this vision transformer does not end with CLIP's own class token and projection; "
            "take ViT-B-16, ViT-B-32, ViT-L-14 or another plain CLIP"
        )


def _split(blocks: Iterable[nn.Module], fit: Fit) -> tuple[list[nn.Module], list[nn.Module]]:
    """Blocks that each modality has of its own, and those that both share."""
    blocks, own = list(blocks), fit.options.stem_blocks
    if own >= len(blocks):
        raise ValueError(
            f"model.stem_blocks={own}: this image tower has {len(blocks)} blocks or "
            f"stages, and the modalities must share one; {len(blocks) - 1} at most"
        )
    return blocks[:own], blocks[own:]


def _map_pool(fit: Fit) -> nn.Module:
    if (pool := fit.options.pool) not in (None, "gem", "mean"):
        raise ValueError(f"model.pool={pool}: an image tower of maps has gem and mean")
    return MeanPool() if pool == "mean" else GeM(learnable=fit.learnable_gem)


def _pieces(tower: Any, names: list[str]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, getattr(tower, name)) for name in names))


def _grid(fit: Fit, stride: int) -> tuple[int, int]:
    """Positions (h, w) of the last map, or patches."""
    if fit.height % stride or fit.width % stride:
        raise ValueError(
            f"images of {fit.height} x {fit.width} do not fit: height and width must be multiples "
            f"of {stride}, the stride of this image tower"
        )
    return fit.height // stride, fit.width // stride


def _patches(fit: Fit, size: tuple[int, int]) -> dict[str, Any]:
    """Stride and grid of the patches; overlapping ones need not reach the border."""
    stride = fit.options.patch_stride or size[0]
    if stride == size[0]:
        return {"stride": stride, "grid": _grid(fit, stride)}
    if stride > size[0]:
        raise ValueError(
            f"model.patch_stride={stride}: patches of {size[0]} pixels would leave gaps"
        )
    grid = tuple((side - size[0]) // stride + 1 for side in (fit.height, fit.width))
    if min(grid) < 1:
        raise ValueError(f"images of {fit.height} x {fit.width} are smaller than a patch")
    return {"stride": stride, "grid": grid}
