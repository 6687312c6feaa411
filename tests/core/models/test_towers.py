"""A transformer of timm is read as it was trained to be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from reid_core.attribution import heat_maps
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.options import Options
from reid_core.models.pooling import TokenPool, resize_positions
from reid_core.types import Modality


def opened(name: str, **options: Any) -> tuple[nn.Module, ImageEncoder]:
    """A model and the encoder that is made of it, for images of the model's own size."""
    backbone = backbones.load(f"timm/{name}", seed=1, options=Options(**options))
    height, width = backbone.model.patch_embed.img_size
    encoder = ImageEncoder(backbone, height=height, width=width)
    return backbone.model.eval(), encoder.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("test_vit", "class"),
        pytest.param("vit_wee_patch16_reg1_gap_256", "mean", marks=pytest.mark.slow),
        pytest.param("eva02_tiny_patch14_224", "mean", marks=pytest.mark.slow),
        ("test_vit3", "attention"),
        pytest.param("vit_pe_core_tiny_patch16_384", "attention", marks=pytest.mark.slow),
    ],
)
def test_the_pooled_row_is_that_of_timm(name: str, kind: str) -> None:
    """Of register tokens without a class token, of a norm behind the mean, of all tokens."""
    model, encoder = opened(name)
    assert isinstance(encoder.gem, TokenPool)
    assert encoder.gem.kind == kind
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        own = encoder.gem(encoder.trunk(encoder.visible_stem(images)))
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_overlapping_patches_are_cut_every_twelve_pixels() -> None:
    """Of 64 x 32 pixels five rows of two, their positions resized, through timm's own blocks."""
    backbone = backbones.load("timm/vit_tiny_patch16_224", seed=1, options=Options(patch_stride=12))
    encoder, model = ImageEncoder(backbone, height=64, width=32).eval(), backbone.model
    images = torch.randn(2, 3, 64, 32)
    projection = model.patch_embed.proj
    with torch.no_grad():
        cut = functional.unfold(images, 16, stride=12).transpose(1, 2)
        tokens = cut @ projection.weight.flatten(1).T + projection.bias
        tokens = torch.cat([model.cls_token.expand(2, 1, -1), tokens], dim=1)
        x = tokens + resize_positions(model.pos_embed[0], (5, 2))
        expected = model.norm(model.blocks(model.norm_pre(x)))
        result = encoder.trunk(encoder.visible_stem(images))
    assert result.shape == (2, 1 + 5 * 2, 192)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_registers_are_no_class_token() -> None:
    with pytest.raises(ValueError, match="has no class token; take mean or gem"):
        opened("vit_wee_patch16_reg1_gap_256", pool="class")


def test_an_attention_pool_has_maps_whichever_tokens_it_asks() -> None:
    model, encoder = opened("test_vit3")
    pixels = torch.randint(0, 256, (2, 3, *model.patch_embed.img_size), dtype=torch.uint8)
    targets = encoder.embed(pixels.flip(0), Modality.INFRARED)
    heat = heat_maps(encoder, pixels, Modality.INFRARED, targets)
    assert heat.shape == (2, *model.patch_embed.img_size)
    assert heat.amax(dim=(1, 2)).tolist() == [1.0, 1.0]


def test_of_an_attention_pool_too_only_matrices_of_low_rank_learn() -> None:
    backbone = backbones.load("timm/test_vit3", options=Options(lora_rank=2))
    encoder = ImageEncoder(backbone, height=160, width=160)
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert any(name.startswith("gem.attention.") for name in learning)
    assert all(name.endswith((".a", ".b")) for name in learning - {"neck.weight"})
