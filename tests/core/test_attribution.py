"""Heat maps light up where the evidence is; words are found by direction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core.attribution import heat_maps, near_words
from reid_core.models import clip
from reid_core.models.encoders import TwoStemEncoder
from reid_core.models.text_image import TextImageEncoder
from reid_core.types import Modality


class ColourEncoder(nn.Module):
    """Its descriptor is the mean colour: red, green and blue are the three directions."""

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


def test_the_places_that_speak_for_the_target_are_hot() -> None:
    red = torch.tensor([[1.0, 0.0, 0.0]])
    (heat,) = heat_maps(ColourEncoder(), red_above_blue(), Modality.VISIBLE, red)
    assert heat.shape == (16, 8)
    torch.testing.assert_close(heat[:7], torch.ones(7, 8))
    torch.testing.assert_close(heat[9:], torch.zeros(7, 8))


def test_another_target_is_found_elsewhere() -> None:
    blue = torch.tensor([[0.0, 0.0, 1.0]])
    (heat,) = heat_maps(ColourEncoder(), red_above_blue(), Modality.VISIBLE, blue)
    assert heat[9:].min() == 1
    assert heat[:7].max() == 0


def test_nothing_that_speaks_for_the_target_stays_cold() -> None:
    green = torch.tensor([[0.0, 1.0, 0.0]])
    image = torch.zeros(1, 3, 16, 8, dtype=torch.uint8)
    image[:, 0] = 90
    assert heat_maps(ColourEncoder(), image, Modality.VISIBLE, green).abs().max() == 0


def test_images_of_a_batch_do_not_mix() -> None:
    red = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    image = red_above_blue()
    both = heat_maps(ColourEncoder(), torch.cat([image, image.flip(2)]), Modality.VISIBLE, red)
    torch.testing.assert_close(both[1], both[0].flip(0))


@pytest.fixture(scope="module")
def small() -> clip.Clip:
    return clip.load(clip.SMALL, None)


def test_the_map_of_a_small_network_has_at_least_eight_rows(small: clip.Clip) -> None:
    """Its last maps have 4 x 2 cells at 64 x 32 pixels, layer2 has 8 x 4."""
    encoder = TwoStemEncoder(small, height=64, width=32).eval().requires_grad_(False)
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


def test_the_image_side_of_a_sentence(small: clip.Clip) -> None:
    encoder = TextImageEncoder(small, height=64, width=32).eval().requires_grad_(False)
    sentence = encoder.embed(small.text.tokenize(["a man in red"]), Modality.TEXT)
    images = torch.randint(0, 256, (1, 3, 64, 32), dtype=torch.uint8)
    heat = heat_maps(encoder, images, Modality.VISIBLE, sentence)
    assert heat.shape == (1, 64, 32)
    assert 0 <= float(heat.min()) <= float(heat.max()) <= 1


def test_an_image_cannot_resemble_itself_more() -> None:
    image = red_above_blue()
    own = ColourEncoder().embed(image, Modality.VISIBLE)
    assert heat_maps(ColourEncoder(), image, Modality.VISIBLE, own).max() < 1e-3


def test_the_mirrored_pass_of_an_encoder_does_not_mirror_the_map() -> None:
    class Mirrored(ColourEncoder):
        def embed(self, images: Tensor, modality: Modality) -> Tensor:
            both = [ColourEncoder.embed(self, x, modality) for x in (images, images.flip(3))]
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
    found = near_words(tokens, vocabulary, ["red", "blue", "purple"], count=2)
    assert [[near.word for near in token] for token in found[0]] == [
        ["red", "purple"],
        ["blue", "purple"],
    ]
    assert found[1][0][0].word == "purple"
    assert found[1][1][0].similarity == pytest.approx(0)
    assert found[0][0][0].similarity == pytest.approx(1)
