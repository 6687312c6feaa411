"""The two-stem encoder against open_clip's own tower, its sizes, and its gradients."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch.nn import functional as F

from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.pooling import GeM
from reid_core.transforms import normalize
from reid_core.types import Modality


@pytest.fixture(scope="module")
def small() -> backbones.Backbone:
    loaded = backbones.load(backbones.SMALL, seed=1)
    # Residual branches start at zero and running statistics at 0 and 1: move both.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in loaded.visual.state_dict().items():
            if "bn" in name and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return loaded


@pytest.fixture(scope="session")
def resnet50() -> backbones.Backbone:
    return backbones.load("RN50", seed=0)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(number: int, height: int = 64, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_resnet50_has_the_published_parameter_counts(resnet50):
    encoder = ImageEncoder(resnet50, height=288, width=144)
    assert count(encoder.visible_stem) == count(encoder.infrared_stem) == 28_768
    assert count(encoder.trunk) == 23_498_496
    assert count(encoder.attnpool) == 15_021_056
    text = resnet50.text
    assert count(text) - count(text.token_embedding) == 38_393_344
    assert (encoder.feature_dim, encoder.embed_dim) == (2048, 1024)


def test_resnet50_maps_are_18_by_9_at_last_stride_1(resnet50):
    encoder = ImageEncoder(resnet50, height=288, width=144).eval()
    with torch.no_grad():
        stem = encoder.visible_stem(images(1, 288, 144))
        assert stem.shape == (1, 64, 72, 36)
        assert encoder.trunk(stem).shape == (1, 2048, 18, 9)


def test_square_stride_2_projection_is_open_clips_image_feature(small):
    encoder = ImageEncoder(small, height=192, width=192, last_stride=2).eval()
    square = images(2, 192, 192)
    with torch.no_grad():
        expected = small.model.encode_image(square)
        for modality in (Modality.VISIBLE, Modality.INFRARED):
            torch.testing.assert_close(
                encoder.project(square, modality), expected, rtol=1e-4, atol=1e-5
            )


def test_stride_1_changes_no_weight_and_quadruples_the_map(small):
    two = ImageEncoder(small, height=64, width=64, last_stride=2).eval()
    one = ImageEncoder(small, height=64, width=64, last_stride=1).eval()
    assert list(one.trunk.state_dict()) == list(two.trunk.state_dict())
    with torch.no_grad():
        stem = one.visible_stem(images(1, 64, 64))
        fine, coarse = one.trunk(stem), two.trunk(stem)
    assert fine.shape[2:] == (4, 4)
    assert coarse.shape[2:] == (2, 2)
    # In front of the last non-linearity stride 2 is an average of stride 1: rectified averages
    # never exceed averages of rectified values.
    assert bool((coarse <= F.avg_pool2d(fine, 2) + 1e-5).all())


def assert_gives_what_the_first_version_gave(encoder: ImageEncoder) -> None:
    """Its names, and its numbers of one image with the bundled weights at 96 x 48."""
    names = "\n".join(f"{k} {tuple(v.shape)}" for k, v in encoder.state_dict().items())
    assert hashlib.sha256(names.encode()).hexdigest().startswith("a3f9f01bef599107")
    pixels = (torch.arange(3 * 96 * 48).reshape(1, 3, 96, 48) * 7919 % 251).to(torch.uint8)
    with torch.no_grad():
        descriptor = encoder.embed(pixels, Modality.INFRARED)
        projected = encoder.project(pixels, Modality.INFRARED)[0, :3].tolist()
    assert descriptor.sum().item() == pytest.approx(5.817731857, rel=1e-5)
    assert projected == pytest.approx([0.57101470, -0.19467802, -0.00136573], abs=1e-5)


def test_names_and_numbers_are_those_of_the_first_version():
    """Its one family, CLIP's ResNets: checkpoints open, and what they give is what they gave."""
    encoder = ImageEncoder(backbones.load(backbones.SMALL, "bundled"), height=96, width=48)
    assert_gives_what_the_first_version_gave(encoder.eval())


def test_rows_are_visible_first_and_every_path_agrees(small):
    encoder = ImageEncoder(small, height=64, width=32).eval()
    with torch.no_grad():  # stems that differ, or their order could not be seen
        encoder.infrared_stem.conv1.weight.mul_(-1.0)
    visible, infrared = images(2), images(3, seed=1)
    with torch.no_grad():
        both = encoder(visible, infrared)
        alone = encoder(None, infrared)
        torch.testing.assert_close(both.pooled[2:], alone.pooled)
        torch.testing.assert_close(both.projected[:2], encoder.project(visible, Modality.VISIBLE))
        torch.testing.assert_close(
            F.normalize(both.neck, dim=1)[2:], encoder.embed(infrared, Modality.INFRARED)
        )
    assert both.pooled.shape == both.neck.shape == (5, 384)
    assert both.projected.shape == (5, 128)


def test_the_trunk_normalizes_the_mixed_batch_and_each_stem_its_own(small):
    encoder = ImageEncoder(small, height=64, width=32).train()
    visible, infrared = images(4), 3 + images(4, seed=1)
    mixed = encoder(visible, infrared).pooled
    apart = torch.cat([encoder(visible, None).pooled, encoder(None, infrared).pooled])
    assert not torch.allclose(mixed, apart, atol=1e-3)
    encoder.visible_stem.bn1.reset_running_stats()
    encoder(None, infrared)
    assert encoder.visible_stem.bn1.num_batches_tracked == 0


def test_gem_is_the_written_formula():
    maps = torch.tensor([1.0, 2.0, 0.0, 3.0]).reshape(1, 1, 2, 2)
    expected = ((1 + 8 + 0 + 27) / 4 + 1e-12) ** (1 / 3)
    assert GeM()(maps).item() == pytest.approx(expected, rel=1e-6)
    zeros = torch.zeros(1, 2, 2, 2, requires_grad=True)
    GeM()(zeros).sum().backward()
    assert bool(torch.isfinite(zeros.grad).all())


def test_gem_learns_its_exponent_where_asked():
    gem = GeM(learnable=True)
    maps = torch.tensor([1.0, 2.0, 0.0, 3.0]).reshape(1, 1, 2, 2)
    # d/dp log of (mean x^p)^(1/p) at p = 3, from finite differences of the written formula
    log = [
        torch.tensor([1.0, 2.0, 3.0]).double().pow(p).sum().div(4).log() / p for p in (2.999, 3.001)
    ]
    gem(maps).log().sum().backward()
    assert gem.p.grad.item() == pytest.approx(float(log[1] - log[0]) / 0.002, rel=1e-4)
    assert gem(torch.zeros(1, 1, 2, 2)).item() == pytest.approx(1e-6, rel=1e-3)
    assert [name for name, _ in gem.named_parameters()] == ["p"]


def test_the_last_rectifier_alone_is_csdns_stem(small):
    every = ImageEncoder(small, height=64, width=32).eval()
    last = ImageEncoder(small, height=64, width=32, stem_relu="last", learnable_gem=True).eval()
    assert set(last.state_dict()) == set(every.state_dict()) | {"gem.p"}
    stem, x = last.infrared_stem, images(2)
    with torch.no_grad():
        for i in (1, 2, 3):
            x = getattr(stem, f"bn{i}")(getattr(stem, f"conv{i}")(x))
        torch.testing.assert_close(stem(images(2)), F.avg_pool2d(x.relu(), 2))
        assert not torch.allclose(stem(images(2)), every.infrared_stem(images(2)))


def test_bytes_are_normalized_and_floats_are_taken_as_they_are(small):
    encoder = ImageEncoder(small, height=64, width=32).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    with torch.no_grad():
        for head in (encoder.embed, encoder.project):
            torch.testing.assert_close(
                head(pixels, Modality.VISIBLE), head(normalize(pixels), Modality.VISIBLE)
            )
        torch.testing.assert_close(
            encoder(pixels, pixels).neck, encoder(normalize(pixels), normalize(pixels)).neck
        )


def test_every_part_learns_but_the_necks_bias(small):
    encoder = ImageEncoder(small, height=64, width=32).train()
    features = encoder(images(3), images(3, seed=1))
    (features.neck.square().sum() + features.projected.sum() + features.pooled.sum()).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert without == ["neck.bias"]


def test_the_clip_it_came_from_is_not_touched(small):
    before = {key: value.clone() for key, value in small.visual.state_dict().items()}
    encoder = ImageEncoder(small, height=64, width=32).train()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    encoder(images(2), images(2))
    assert all(torch.equal(before[k], v) for k, v in small.visual.state_dict().items())


def test_a_size_that_only_the_last_stride_divides_is_refused(small):
    with pytest.raises(ValueError, match="multiples of 32"):
        ImageEncoder(small, height=64, width=48, last_stride=2)
