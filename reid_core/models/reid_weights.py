"""Models that others pre-trained on pedestrians, under the names of their publishers.

Each is an architecture of timm with what differs built in, and a translation of the published
names. Shapes: C, D channels of a Swin stage and of the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models.weight_files import Pixels, WeightFile
from reid_core.transforms import IMAGENET_MEAN, IMAGENET_STD

TALL = (256, 128)
SEMANTIC_WEIGHT = 0.2
_IMAGENET = Pixels(IMAGENET_MEAN, IMAGENET_STD, TALL)
_LUPERSON = Pixels((0.3525, 0.3106, 0.3140), (0.2505, 0.2522, 0.2504), TALL)


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
        return self.proj(self.conv(images)).flatten(2).transpose(1, 2)


class _HalfInstance(nn.Module):
    """Instance normalization of the first half of the channels, BatchNorm of the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split([self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


def _vit(name: str, *, ics: bool) -> Callable[[float], nn.Module]:
    def build(drop_path: float) -> nn.Module:
        model: Any = timm.create_model(name, num_classes=0, img_size=TALL, drop_path_rate=drop_path)
        if ics:
            model.patch_embed = ConvPatches(model.embed_dim, size=TALL)
        return model

    return build


def _swin(name: str) -> Callable[[float], nn.Module]:
    def build(drop_path: float) -> nn.Module:
        model: Any = timm.create_model(
            name, num_classes=0, img_size=TALL, window_size=7, drop_path_rate=drop_path
        )
        for stage in model.layers[1:]:  # with a bias, which takes in the semantic shift
            old = stage.downsample.reduction
            stage.downsample.reduction = nn.Linear(old.in_features, old.out_features)
        return model

    return build


def _resnet(name: str) -> Callable[[float], nn.Module]:
    return lambda drop_path: timm.create_model(name, num_classes=0, drop_path_rate=drop_path)


def from_transreid_ssl(file: WeightFile) -> WeightFile:
    """DINO's teacher, or what its authors cut out of it; heads are left out."""
    return _kept(file, ("head.", "fc.", "gem.", "sie_embed"))


def from_luperson(file: WeightFile) -> WeightFile:
    """A ResNet of torchvision's names, or the query encoder of MoCo's checkpoint."""
    query = {k.removeprefix("encoder_q."): v for k, v in file.state.items() if "encoder_q." in k}
    return _kept(replace(file, state=query) if query else file, ("fc.",))


def from_solider(file: WeightFile, *, semantic_weight: float = SEMANTIC_WEIGHT) -> WeightFile:
    """A Swin of mmdetection's names, its semantic controller folded into the weights.

    The controller multiplies what a stage hands on by softplus(w) and adds b, both linear in the
    weight: with a fixed weight that is a change of the matrix that merges patches.

    Reference: SOLIDER, Chen et al., CVPR 2023; 0.2 is what its authors take for re-identification.
    """
    old = _kept(file, ("norm0.", "norm1.", "norm2.", "head.")).state
    state = {_swin_name(k): v for k, v in old.items() if "semantic" not in k}
    state = {k: v for k, v in state.items() if not k.endswith("relative_position_index")}
    for name in [k for k in state if ".downsample." in k]:
        state[name] = _timm_order(state[name])
    mixture = torch.tensor([semantic_weight, 1 - semantic_weight])
    for stage in range(1, 4):
        weight = f"layers.{stage}.downsample.reduction.weight"
        scale, shift = (
            mixture @ old[f"semantic_embed_{kind}.{stage - 1}.weight"].float().T
            + old[f"semantic_embed_{kind}.{stage - 1}.bias"].float()
            if f"semantic_embed_{kind}.{stage - 1}.weight" in old
            else None
            for kind in ("w", "b")
        )
        if weight not in state:
            continue
        rows = len(state[weight])
        factor = torch.ones(rows) if scale is None else F.softplus(scale)
        state[weight] = factor[:, None] * state[weight].float()
        bias = torch.zeros(rows) if shift is None else shift
        state[weight.replace("weight", "bias")] = bias
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
    """Four neighbouring patches, channel by channel as `nn.Unfold` lays them, to timm's order."""
    by_patch = x.unflatten(-1, (-1, 4)).transpose(-1, -2)
    return by_patch[..., [0, 2, 1, 3], :].flatten(-2)


def _kept(file: WeightFile, left_out: tuple[str, ...]) -> WeightFile:
    """The backbone's names without prefix; what other parts of a training script hold goes."""
    state = file.state
    for prefix in ("backbone.", "base."):
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state = inside or state
    return replace(file, state={k: v for k, v in state.items() if not k.startswith(left_out)})


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
