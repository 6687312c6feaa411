"""The text-image encoder against open_clip's own towers, its positions, and its sizes."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.nn import functional as F

from reid_core.models import backbones
from reid_core.models.text_image import TextImageEncoder
from reid_core.models.text_tower import TextTower
from reid_core.models.towers import joint_tower
from reid_core.models.weight_files import Pixels
from reid_core.types import Modality

PIXELS = Pixels(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def transformer_clip(**vision: object) -> backbones.Backbone:
    """A small CLIP with a vision transformer: 4 x 4 patches of 8 pixels, width 64."""
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text_cfg = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=48, vision_cfg=vision_cfg | vision, text_cfg=text_cfg).eval()
    return backbones.Backbone(name="tiny", model=model, text_tower=TextTower(model), pixels=PIXELS)


@pytest.fixture(scope="module")
def transformer() -> backbones.Backbone:
    return transformer_clip()


def images(number: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_features_of_a_square_image_are_open_clips_own(transformer):
    encoder = TextImageEncoder(transformer, height=32, width=32).eval()
    ids = transformer.text.tokenize(["a woman in a red coat", "a tall man."])
    with torch.no_grad():
        image, text = encoder(images(2, 32, 32), ids)
        expected = transformer.model.encode_image(images(2, 32, 32), normalize=True)
        torch.testing.assert_close(image, expected)
        torch.testing.assert_close(text, transformer.model.encode_text(ids, normalize=True))
        torch.testing.assert_close(encoder.embed(ids, Modality.TEXT), text)
    assert encoder.feature_dim == 48


def test_an_upright_image_is_the_written_out_transformer_on_resized_positions(transformer):
    tower = joint_tower(transformer.visual, height=64, width=16)
    source = transformer.visual
    grid = source.positional_embedding[1:].T.reshape(1, 64, 4, 4)
    tall = F.interpolate(grid, size=(8, 2), mode="bilinear", align_corners=False)
    with torch.no_grad():
        patches = source.conv1(images(2, 64, 16)).flatten(2).transpose(1, 2)
        patches = patches + tall[0].flatten(1).T
        first = source.class_embedding + source.positional_embedding[0]
        tokens = torch.cat([first.expand(2, 1, -1), patches], dim=1)
        tokens = source.ln_post(source.transformer(source.ln_pre(tokens)))
        torch.testing.assert_close(tower(images(2, 64, 16)), tokens[:, 0] @ source.proj)


def test_vit_b_16_has_193_positions_and_all_of_clip_but_the_scale_learns():
    with torch.device("meta"):
        clip = backbones.load("ViT-B-16")
        encoder = TextImageEncoder(clip, height=384, width=128)
        features = encoder.visual(torch.empty(3, 3, 384, 128))
    assert clip.visual.positional_embedding.shape == (197, 768)
    assert encoder.visual.positional_embedding.shape == (193, 768)
    assert features.shape == (3, 512)
    whole = sum(p.numel() for p in clip.model.parameters())
    assert whole == 149_620_737  # OpenAI's ViT-B/16
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert trained == whole - 4 * 768 - 1


def test_a_resnet_tower_keeps_its_trunk_at_stride_16(small):
    encoder = TextImageEncoder(small, height=64, width=32).eval()
    assert encoder.visual.attnpool.positional_embedding.shape == (1 + 4 * 2, 384)
    with torch.no_grad():
        assert encoder.visual.trunk(encoder.visual.stem(images(1, 64, 32))).shape[2:] == (4, 2)
        rows = encoder.encode_image(images(2, 64, 32))
    assert rows.shape == (2, encoder.feature_dim) == (2, 128)


@pytest.mark.parametrize(
    ("name", "mean"), [("tiny", (0.48145466, 0.4578275, 0.40821073)), (backbones.SMALL, (0.485,))]
)
def test_bytes_are_normalized_as_the_weights_were_trained(name, mean, transformer, small):
    clip = small if name == backbones.SMALL else transformer
    encoder = TextImageEncoder(clip, height=32, width=32).eval()
    level = torch.tensor(mean[0]) * 255
    pixels = torch.full((1, 3, 32, 32), round(level.item()), dtype=torch.uint8)
    assert encoder.normalize(pixels)[0, 0].abs().max() < 0.5 / 255 / 0.22
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.embed(pixels, Modality.VISIBLE), encoder.encode_image(encoder.normalize(pixels))
        )


@pytest.mark.parametrize("kind", ["transformer", "small"])
def test_every_parameter_learns_and_the_clip_it_came_from_does_not(kind, request):
    clip = request.getfixturevalue(kind)
    clip.model.requires_grad_(False)
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    encoder = TextImageEncoder(clip, height=64, width=32).train()
    image, text = encoder(images(2, 64, 32), clip.text.tokenize(["a man", "a red bag"]))
    ((image * text).sum() + image[:, 0].sum() + text[:, 0].sum()).backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[key], value) for key, value in clip.model.state_dict().items())


def test_sizes_and_towers_that_do_not_fit_are_refused(transformer, small):
    with pytest.raises(ValueError, match="multiples of 8, the stride"):
        TextImageEncoder(transformer, height=32, width=20)
    with pytest.raises(ValueError, match="multiples of 16, the stride"):
        TextImageEncoder(small, height=64, width=20)
    with pytest.raises(ValueError, match="class token and projection; take ViT-B-16"):
        TextImageEncoder(transformer_clip(pool_type="avg"), height=32, width=32)
