"""Heat maps light up where the evidence is; words are found by direction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core.attention import _shown, rolled_out
from reid_core.attribution import heat_maps, near_words
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.options import Options
from reid_core.models.text_image import TextImageEncoder
from reid_core.types import Modality


class ColorEncoder(nn.Module):
    """Its descriptor is the mean color: red, green and blue are the three directions."""

    feature_dim = 3

    def __init__(self, *, pool: int = 1) -> None:
        super().__init__()
        self.maps = nn.AvgPool2d(pool)

    def embed(self, images: Tensor, modality: Modality) -> Tensor:
        return functional.normalize(self.maps(images / 255).mean(dim=(2, 3)), dim=1)


def red_above_blue() -> Tensor:
    image = torch.zeros(1, 3, 16, 8, dtype=torch.uint8)
    image[:, 0, :8] = 200
    image[:, 2, 8:] = 200
    return image


class PatchEncoder(nn.Module):
    """Two blocks of attention over the colors of 4 x 4 patches, read at a class token."""

    feature_dim, grid = 3, (4, 2)

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.AvgPool2d(4)

    def embed(self, images: Tensor, modality: Modality) -> Tensor:
        tokens = self.maps(images / 255).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)[:, None]
        for _ in range(2):
            tokens = tokens + functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return functional.normalize(tokens[:, 0, 0], dim=1)


@pytest.mark.parametrize(("color", "rows"), [((1.0, 0, 0), slice(8)), ((0, 0, 1.0), slice(8, 16))])
def test_attention_is_rolled_out_to_the_patches_that_speak_for_the_target(color, rows) -> None:
    (heat,) = heat_maps(PatchEncoder(), red_above_blue(), Modality.VISIBLE, torch.tensor([color]))
    assert heat.shape == (16, 8)
    hot = torch.zeros(16, dtype=torch.bool)
    hot[rows] = True
    assert heat[hot].mean() > 4 * heat[~hot].mean()


@pytest.mark.parametrize("pool", ["class", "mean", "gem"])
def test_a_vision_transformer_has_maps_whichever_tokens_it_reads(pool) -> None:
    model = backbones.load(backbones.SMALL_VIT, options=Options(pool=pool, stem_blocks=1))
    encoder = ImageEncoder(model, height=96, width=48).eval().requires_grad_(False)
    pixels = torch.randint(0, 256, (2, 3, 96, 48), dtype=torch.uint8)
    targets = encoder.embed(pixels.flip(0), Modality.INFRARED)
    heat = heat_maps(encoder, pixels, Modality.INFRARED, targets)
    assert heat.shape == (2, 96, 48)
    assert heat.amax(dim=(1, 2)).tolist() == [1.0, 1.0]
    assert heat.std(dim=(1, 2)).min() > 0.05
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.slow
def test_rotary_positions_take_part_where_attention_is_rolled_out() -> None:
    """Every block's attention is noted, and the descriptor stays what it is without notes."""
    model = backbones.load("timm/eva02_tiny_patch14_224", seed=1)
    encoder = ImageEncoder(model, height=84, width=42).eval().requires_grad_(False)
    pixels = torch.randint(0, 256, (2, 3, 84, 42), dtype=torch.uint8)
    usual, caught = encoder.embed(pixels, Modality.VISIBLE), []
    with _shown(caught):
        shown = encoder.embed(pixels, Modality.VISIBLE)
    torch.testing.assert_close(shown.detach(), usual, rtol=1e-4, atol=1e-5)
    assert [x.shape for x in caught] == [(2, 3, 19, 19)] * 12
    torch.testing.assert_close(caught[0].detach().sum(dim=3), torch.ones(2, 3, 19))
    heat = rolled_out(encoder, pixels, Modality.VISIBLE, usual.flip(0))
    assert heat is not None
    assert heat.shape == (2, 6, 3)
    assert heat.std(dim=(1, 2)).min() > 0


def test_the_places_that_speak_for_the_target_are_hot() -> None:
    red = torch.tensor([[1.0, 0.0, 0.0]])
    (heat,) = heat_maps(ColorEncoder(), red_above_blue(), Modality.VISIBLE, red)
    assert heat.shape == (16, 8)
    torch.testing.assert_close(heat[:7], torch.ones(7, 8))
    torch.testing.assert_close(heat[9:], torch.zeros(7, 8))


def test_another_target_is_found_elsewhere() -> None:
    blue = torch.tensor([[0.0, 0.0, 1.0]])
    (heat,) = heat_maps(ColorEncoder(), red_above_blue(), Modality.VISIBLE, blue)
    assert heat[9:].min() == 1
    assert heat[:7].max() == 0


def test_nothing_that_speaks_for_the_target_stays_cold() -> None:
    green = torch.tensor([[0.0, 1.0, 0.0]])
    image = torch.zeros(1, 3, 16, 8, dtype=torch.uint8)
    image[:, 0] = 90
    assert heat_maps(ColorEncoder(), image, Modality.VISIBLE, green).abs().max() == 0


def test_images_of_a_batch_do_not_mix() -> None:
    red = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    image = red_above_blue()
    both = heat_maps(ColorEncoder(), torch.cat([image, image.flip(2)]), Modality.VISIBLE, red)
    torch.testing.assert_close(both[1], both[0].flip(0))


@pytest.fixture(scope="module")
def small() -> backbones.Backbone:
    return backbones.load(backbones.SMALL, None)


def test_the_map_of_a_small_network_has_at_least_eight_rows(small: backbones.Backbone) -> None:
    """Its last maps have 4 x 2 cells at 64 x 32 pixels, layer2 has 8 x 4."""
    encoder = ImageEncoder(small, height=64, width=32).eval().requires_grad_(False)
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    shapes = []
    encoder.trunk.layer2.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[2:])))
    targets = encoder.embed(images.flip(0), Modality.INFRARED)
    heat = heat_maps(encoder, images, Modality.INFRARED, targets)
    assert shapes[0] == (8, 4)
    assert heat.shape == (2, 64, 32)
    assert heat.flatten(1).max(dim=1).values.tolist() == pytest.approx([1, 1])
    assert all(p.grad is None for p in encoder.parameters())
    assert len(encoder.trunk.layer2._forward_hooks) == 1, "only that of this test is left"


def test_the_image_side_of_a_sentence(small: backbones.Backbone) -> None:
    encoder = TextImageEncoder(small, height=64, width=32).eval().requires_grad_(False)
    sentence = encoder.embed(small.text.tokenize(["a man in red"]), Modality.TEXT)
    images = torch.randint(0, 256, (1, 3, 64, 32), dtype=torch.uint8)
    heat = heat_maps(encoder, images, Modality.VISIBLE, sentence)
    assert heat.shape == (1, 64, 32)
    assert 0 <= float(heat.min()) <= float(heat.max()) <= 1


def test_an_image_cannot_resemble_itself_more() -> None:
    image = red_above_blue()
    own = ColorEncoder().embed(image, Modality.VISIBLE)
    assert heat_maps(ColorEncoder(), image, Modality.VISIBLE, own).max() < 1e-3


def test_the_mirrored_pass_of_an_encoder_does_not_mirror_the_map() -> None:
    class Mirrored(ColorEncoder):
        def embed(self, images: Tensor, modality: Modality) -> Tensor:
            both = [ColorEncoder.embed(self, x, modality) for x in (images, images.flip(3))]
            return functional.normalize(sum(both), dim=1)

    image = red_above_blue().transpose(2, 3)  # red on the left
    red = torch.tensor([[1.0, 0.0, 0.0]])
    (heat,) = heat_maps(Mirrored(), image, Modality.VISIBLE, red)
    assert heat[:, :7].min() == 1
    assert heat[:, 9:].max() == 0


def test_encoder_without_maps_is_refused() -> None:
    class Flat(nn.Module):
        def embed(self, images: Tensor, modality: Modality) -> Tensor:
            return images.flatten(1).float()

    with pytest.raises(ValueError, match="no feature map"):
        heat_maps(Flat(), red_above_blue(), Modality.VISIBLE, torch.zeros(1, 384))


def test_near_words_are_found_by_direction_not_by_length() -> None:
    vocabulary = torch.tensor([[0.1, 0.0], [0.0, 9.0], [5.0, 5.0]])
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 0.2]], [[1.0, 1.1], [-1.0, 0.0]]])
    result = near_words(tokens, vocabulary, ["red", "blue", "purple"], count=2)
    assert [[near.word for near in token] for token in result[0]] == [
        ["red", "purple"],
        ["blue", "purple"],
    ]
    assert result[1][0][0].word == "purple"
    assert result[1][1][0].similarity == pytest.approx(0)
    assert result[0][0][0].similarity == pytest.approx(1)
