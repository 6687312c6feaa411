"""What learns of an encoder: low-rank changes, frozen patches, dropped branches; refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrize

from reid_core.models import backbones
from reid_core.models.adaptation import merge_low_rank
from reid_core.models.backbones import SMALL, SMALL_VIT
from reid_core.models.encoders import ImageEncoder
from reid_core.models.options import Options
from reid_core.types import Modality

PIXELS = torch.randint(
    0, 256, (2, 3, 96, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def encoder_of(name: str, **options: object) -> ImageEncoder:
    model = backbones.load(name, "bundled", options=Options(**options))  # type: ignore[arg-type]
    return ImageEncoder(model, height=96, width=48)


def test_low_rank_changes_start_at_nothing_learn_alone_and_merge_exactly() -> None:
    plain, low = encoder_of(SMALL_VIT).eval(), encoder_of(SMALL_VIT, lora_rank=2).eval()
    low.requires_grad_(True)  # as methods do; what is frozen stays so
    with torch.no_grad():
        torch.testing.assert_close(
            low.embed(PIXELS, Modality.VISIBLE), plain.embed(PIXELS, Modality.VISIBLE)
        )
    learnt = {name for name, p in low.named_parameters() if p.requires_grad}
    # attention's joint matrix and its output, both of the MLP, in four blocks: a and b of each
    inside = {name for name in learnt if ".parametrizations." in name}
    assert len(inside) == 4 * 4 * 2
    assert learnt - inside == {"attnpool.weight", "neck.weight", "neck.bias"}
    low.embed(PIXELS, Modality.VISIBLE)[:, 0].sum().backward()
    assert all(p.grad is None for n, p in low.named_parameters() if n not in learnt)
    with torch.no_grad():
        for name, p in low.named_parameters():
            if name in inside:
                p.add_(0.05)
        changed = low.embed(PIXELS, Modality.INFRARED)
        merge_low_rank(low)
        torch.testing.assert_close(low.embed(PIXELS, Modality.INFRARED), changed)
    assert not torch.allclose(changed, plain.embed(PIXELS, Modality.INFRARED), atol=1e-3)
    assert low.state_dict().keys() == plain.state_dict().keys()
    assert not any(parametrize.is_parametrized(m) for m in low.modules())


def test_frozen_patches_stay_frozen_whatever_a_method_asks_for() -> None:
    encoder = encoder_of(SMALL_VIT, freeze_patches=True)
    encoder.requires_grad_(False).requires_grad_(True)
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"visible_stem.conv1.weight", "infrared_stem.conv1.weight"}


def test_dropped_branches_change_training_alone() -> None:
    model = backbones.load("timm/vit_tiny_patch16_224", options=Options(drop_path=0.5))
    encoder = ImageEncoder(model, height=96, width=48)
    with torch.no_grad():
        encoder.eval()
        still = [encoder.embed(PIXELS, Modality.VISIBLE) for _ in range(2)]
        encoder.train()
        moving = [encoder(PIXELS, None).pooled for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*moving)


def test_a_projection_that_is_left_out_is_neither_computed_nor_learnt() -> None:
    encoder = encoder_of(SMALL)
    assert encoder(PIXELS, None).projected.shape == (2, 128)
    encoder.leave_projection()
    features = encoder(PIXELS, PIXELS)
    assert features.projected.shape == (4, 0)
    features.neck.sum().backward()
    assert all(p.grad is None for p in encoder.attnpool.parameters())
    assert encoder.project(PIXELS, Modality.VISIBLE).shape == (2, 128)


@pytest.mark.parametrize(
    ("name", "stride"),
    [(SMALL, 16), (SMALL_VIT, 8), ("timm/swin_tiny_patch4_window7_224", 32), ("timm/resnet18", 16)],
)
def test_sizes_that_the_strides_do_not_divide_are_refused(name, stride) -> None:
    with torch.device("meta"):
        model = backbones.load(name)
        for height, width in ((255, 128), (256, 100)):
            with pytest.raises(ValueError, match=rf"{height} x {width} do not fit.*of {stride},"):
                ImageEncoder(model, height=height, width=width)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (SMALL, {"lora_rank": 2}, "no attention"),
        (SMALL, {"freeze_patches": True}, "no patches"),
        (SMALL, {"stem_blocks": 1}, "stem_blocks=1: a ModifiedResNet has no such"),
        (SMALL, {"patch_stride": 12}, "patch_stride=12: a ModifiedResNet has no such"),
        (SMALL, {"pool": "class"}, "maps has gem and mean"),
        (SMALL, {"drop_path": 0.1}, "take a model of timm"),
        (SMALL_VIT, {"patch_stride": 9}, "would leave gaps"),
        ("transreid-ssl/vit_small_ics", {"patch_stride": 11}, "take an even one"),
        (SMALL_VIT, {"stem_blocks": 4}, "has 4 blocks or stages.*3 at most"),
        (SMALL_VIT, {"lora_rank": 129}, "one of 384 x 128 cannot have a higher rank than 128"),
        (SMALL_VIT, {"pool": "attention"}, "no attention pool"),
        ("timm/vit_base_patch16_siglip_224", {"pool": "class"}, "no class token"),
        ("timm/convnext_tiny", {}, "no encoder can be made of a ConvNeXt"),
        ("timm/deit_tiny_distilled_patch16_224", {}, "made of a VisionTransformerDistilled"),
        ("timm/efficientnet_b0", {}, "no encoder can be made of a EfficientNet"),
        ("timm/vit_small_patch16_rope_mixed_224", {}, "every block has of its own"),
    ],
)
def test_what_a_family_does_not_have_is_refused(name, options, message) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        ImageEncoder(backbones.load(name, options=Options(**options)), height=96, width=48)
