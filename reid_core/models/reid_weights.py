"""Models that others pre-trained on pedestrians, under the names of their publishers.

Each is an architecture of timm with what differs built in, and a translation of the published
names. Shapes: C, D channels of a Swin stage and of the next one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models.weight_files import Pixels, WeightFile, listed, unwrapped
from reid_core.transforms import IMAGENET_MEAN, IMAGENET_STD

TALL = (256, 128)
SEMANTIC_WEIGHT = 0.2
_SOFTPLUS_OF_ONE = math.log(math.e - 1)  # of which softplus is 1
# (height, width, stride of the patches) in the settings of TransReID, TransReID-SSL and CLIP-ReID
_USUAL = [(h, w, s) for h, w in ((256, 128), (384, 128), (288, 144)) for s in (16, 12)]
_CLIP_REID_HEADS = ("classifier", "bottleneck", "prompt_learner.", "text_encoder.")
_IMAGENET = Pixels(IMAGENET_MEAN, IMAGENET_STD, TALL)
_LUPERSON = Pixels((0.3525, 0.3106, 0.3140), (0.2660, 0.2522, 0.2505), TALL)


@dataclass(frozen=True)
class Source:
    """A published model.

    Attributes:
        origin: whose files it takes.
        build: drop path -> the model, with random weights.
        rename: a published file -> the model's own names.
        pixels: what it was trained on.
    """

    origin: str
    build: Callable[[float], nn.Module]
    rename: Callable[[WeightFile], WeightFile]
    pixels: Pixels


class ConvPatches(nn.Module):
    """Patches behind three convolutions, half of whose channels are normalized image by image.

    Stands in for timm's patch embedding and has the attributes that `fit_timm_patches` sets.

    Reference: TransReID-SSL, Luo et al., 2021, the "IBN-based convolution stem" (ICS).
    """

    front_stride = 2

    def __init__(
        self, dim: int, *, size: tuple[int, int], patch: int = 16, width: int = 64
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = size, (patch, patch)
        self.grid_size = (size[0] // patch, size[1] // patch)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

        def conv(channels: int, kernel: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)

        self.conv = nn.Sequential(
            conv(3, 7, self.front_stride), _HalfInstance(width), nn.ReLU(inplace=True),
            conv(width, 3, 1), _HalfInstance(width), nn.ReLU(inplace=True),
            conv(width, 3, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        )  # fmt: skip
        kernel = patch // self.front_stride
        self.proj = nn.Conv2d(width, dim, kernel, kernel)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, h w, D)."""
        maps: Tensor = self.proj(self.conv(images))
        return maps.flatten(2).transpose(1, 2)


class _HalfInstance(nn.Module):
    """Instance normalization of the first half of the channels, BatchNorm of the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split([self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


class PadsBeforeShift(SwinTransformerBlock):
    """A block of SOLIDER's Swin: maps are padded to whole windows first and shifted then.

    timm shifts first, so that the rows which wrap around meet others wherever a map is no multiple
    of the window: 384 x 128, not 224 x 224.

    Reference: SOLIDER, Chen et al., CVPR 2023; its public code has mmdetection's Swin.
    """

    def _attn(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same; the mask of a shift is one of whole windows already."""
        (height, width), (rows, columns) = x.shape[1:3], self.window_size
        padded = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        result: Tensor = super()._attn(padded)  # type: ignore[no-untyped-call]
        return result[:, :height, :width].contiguous()


def _vit(name: str, *, ics: bool) -> Callable[[float], nn.Module]:
    def build(drop_path: float) -> nn.Module:
        model = timm.create_model(name, num_classes=0, img_size=TALL, drop_path_rate=drop_path)
        if ics:
            assert isinstance(model, VisionTransformer)
            model.patch_embed = ConvPatches(model.embed_dim, size=TALL)
        return model

    return build


def _swin(name: str) -> Callable[[float], nn.Module]:
    def build(drop_path: float) -> nn.Module:
        model = timm.create_model(
            name,
            num_classes=0,
            img_size=TALL,
            window_size=7,
            always_partition=True,  # small maps are padded to a window, not windows cut to maps
            drop_path_rate=drop_path,
        )
        for layer in model.modules():
            if isinstance(layer, SwinTransformerBlock):
                layer.__class__ = PadsBeforeShift
            if isinstance(layer, PatchMerging):  # with a bias, which takes in the semantic shift
                old = layer.reduction
                layer.reduction = nn.Linear(old.in_features, old.out_features)
        return model

    return build


def _resnet(name: str) -> Callable[[float], nn.Module]:
    return lambda drop_path: timm.create_model(name, num_classes=0, drop_path_rate=drop_path)


def image_of(num_patches: int, *, patch: int = 16) -> tuple[int, int, int]:
    """(height, width, stride of the patches) of the images that positions were learnt for.

    Raises:
        ValueError: a number that none of the usual sizes has.
    """
    usual = {rows * columns: key for key in _USUAL for rows, columns in [_grid(*key, patch=patch)]}
    if num_patches not in usual:
        known = ", ".join(f"{n} ({h} x {w}, stride {s})" for n, (h, w, s) in usual.items())
        raise ValueError(
            f"{num_patches} positions of patches: the size of their images is unknown; known are "
            f"{known}"
        )
    return usual[num_patches]


def match_positions(model: Any, state: dict[str, Tensor]) -> None:
    """Gives a transformer the grid of a file whose positions are of another one, in place.

    Raises:
        ValueError: see `image_of`.
    """
    positions, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if positions is None or own is None or positions.shape == own.shape:
        return
    if model.no_embed_class and positions.shape[1] == own.shape[1] + 1:
        return  # DINOv2's class token has a position, which timm's converter adds to the token
    length = positions.shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    side, patch = round(length**0.5), model.patch_embed.patch_size[0]
    square = side * side == length
    grid = (side, side) if square else _grid(*image_of(length, patch=patch), patch=patch)
    model.patch_embed.grid_size = grid
    model.pos_embed = nn.Parameter(torch.zeros(positions.shape))


def _grid(height: int, width: int, stride: int, *, patch: int) -> tuple[int, int]:
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def from_transreid_ssl(file: WeightFile) -> WeightFile:
    """DINO's teacher, or what its authors cut out of it; heads are left out.

    Raises:
        ValueError: descriptors that depend on the camera's number, or a last block for each part.
    """
    _refuse_camera_numbers(file.state)
    if any(k.startswith("b1.") for k in file.state):
        raise ValueError(
            "b1.*: these weights end in a block for each part of the image (TransReID's jigsaw "
            "patches); take the ones trained without"
        )
    return unwrapped(file, ("head.", "fc.", "gem."))


def from_luperson(file: WeightFile) -> WeightFile:
    """A ResNet of torchvision's names, or the query encoder of MoCo's checkpoint."""
    return unwrapped(file, ("fc.",))


def from_solider(file: WeightFile, *, semantic_weight: float = SEMANTIC_WEIGHT) -> WeightFile:
    """A Swin of mmdetection's names, its semantic controller folded into the weights.

    The controller multiplies what a stage hands on by softplus(w) and adds b, both linear in the
    weight: with a fixed weight that is a change of the matrix that merges patches.

    Raises:
        ValueError: names of another Swin, whose patches are merged in another order.

    Reference: SOLIDER, Chen et al., CVPR 2023; 0.2 is what its authors take for re-identification.
    """
    old = unwrapped(file, ("norm0.", "norm1.", "norm2.", "head.")).state
    if not any(k.startswith("stages.") for k in old):
        raise ValueError(
            f"{file.path} does not hold weights of SOLIDER: no name is stages.*; a Swin of timm "
            "is model.name=timm/swin_..."
        )
    state = {_swin_name(k): v for k, v in old.items() if "semantic" not in k}
    state = {k: v for k, v in state.items() if not k.endswith("relative_position_index")}
    for name in [k for k in state if ".downsample." in k]:
        state[name] = _timm_order(state[name])
    mixture = torch.tensor([semantic_weight, 1 - semantic_weight])

    def controlled(kind: str, stage: int, otherwise: Tensor) -> Tensor:
        weight, bias = (old.get(f"semantic_embed_{kind}.{stage}.{x}") for x in ("weight", "bias"))
        return otherwise if weight is None or bias is None else weight.float() @ mixture + bias

    for stage in range(3):
        name = f"layers.{stage + 1}.downsample.reduction"
        if f"{name}.weight" in state:
            matrix = state[f"{name}.weight"].float()
            scale = F.softplus(controlled("w", stage, torch.full([len(matrix)], _SOFTPLUS_OF_ONE)))
            state[f"{name}.weight"] = scale[:, None] * matrix
            state[f"{name}.bias"] = controlled("b", stage, torch.zeros(len(matrix)))
    return replace(file, state=state)


def _swin_name(name: str) -> str:
    name = re.sub(
        r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name
    )
    for pattern, ours in (
        (r"^stages\.", "layers."),
        (r"^patch_embed\.projection", "patch_embed.proj"),
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"^norm3\.", "norm."),
    ):
        name = re.sub(pattern, ours, name)
    return name


def _timm_order(x: Tensor) -> Tensor:
    """Four neighboring patches, channel by channel as `nn.Unfold` lays them, to timm's order."""
    by_patch = x.unflatten(-1, (-1, 4)).transpose(-1, -2)
    return torch.flatten(by_patch[..., [0, 2, 1, 3], :], -2)


def from_clip_reid(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP-ReID's state dict -> that of an `ImageEncoder`, both stems alike, without its neck.

    Its authors test what comes before the neck, without it. Texts, classifiers and both necks of
    the file are left out.

    Raises:
        ValueError: not such a file, or one whose descriptors depend on the number of the camera.
    """
    _refuse_camera_numbers(state)
    inside = "image_encoder."
    tower = {k.removeprefix(inside): v for k, v in state.items() if k.startswith(inside)}
    if not tower:
        raise ValueError("not a checkpoint of CLIP-ReID's public code: no name is image_encoder.*")
    if others := [k for k in state if not k.startswith((inside, *_CLIP_REID_HEADS))]:
        raise ValueError(f"not a checkpoint of CLIP-ReID's public code: {listed(others)}")
    result: dict[str, Tensor] = {}
    for name, x in tower.items():
        if name.startswith("layer"):
            result[f"trunk.{name}"] = x
        elif name.startswith("transformer.resblocks."):
            result[f"trunk.blocks.{name.removeprefix('transformer.resblocks.')}"] = x
        elif name.startswith("ln_post."):
            result[name.replace("ln_post", "trunk.norm")] = x
        elif name.startswith("attnpool."):
            result[name] = x
        elif name == "proj":
            result["attnpool.weight"] = x
        else:
            result |= {f"{stem}.{name}": x for stem in ("visible_stem", "infrared_stem")}
    return result


def _refuse_camera_numbers(state: dict[str, Tensor]) -> None:
    if name := next((k for k in state if k.endswith(("cv_embed", "sie_embed"))), None):
        raise ValueError(
            f"{name}: these weights were trained with the numbers of cameras or views as inputs "
            "(SIE), which no encoder here takes"
        )


_VIT = "the authors of TransReID-SSL (vit_*_lup.pth, or DINO's checkpoint)"
_SWIN = "SOLIDER's authors (swin_*_tea.pth)"
_RESNET = "LUPerson's authors (lup_moco_r*.pth)"
MODELS: dict[str, Source] = {
    "transreid-ssl/vit_small": Source(
        _VIT, _vit("vit_small_patch16_224", ics=False), from_transreid_ssl, _IMAGENET
    ),
    "transreid-ssl/vit_small_ics": Source(
        _VIT, _vit("vit_small_patch16_224", ics=True), from_transreid_ssl, _IMAGENET
    ),
    "transreid-ssl/vit_base_ics": Source(
        _VIT, _vit("vit_base_patch16_224", ics=True), from_transreid_ssl, _IMAGENET
    ),
    **{
        f"solider/swin_{size}": Source(
            _SWIN, _swin(f"swin_{size}_patch4_window7_224"), from_solider, _IMAGENET
        )
        for size in ("tiny", "small", "base")
    },
    **{
        f"luperson/resnet{depth}": Source(
            _RESNET, _resnet(f"resnet{depth}"), from_luperson, _LUPERSON
        )
        for depth in (50, 101, 152)
    },
}
