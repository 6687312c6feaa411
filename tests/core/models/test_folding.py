"""Folded encoders compute what the given ones do, and leave them alone."""

from __future__ import annotations

import torch
from torch import nn

from reid_core.models import backbones
from reid_core.models.activation_checkpointing import checkpoint_blocks
from reid_core.models.encoders import ImageEncoder
from reid_core.models.folding import folded
from reid_core.types import Modality


def test_folding_changes_features_by_rounding_alone() -> None:
    encoder = ImageEncoder(backbones.load(backbones.SMALL, "bundled"), height=64, width=32)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 64, 32), dtype=torch.uint8, generator=generator)
    checkpoint_blocks(encoder)
    encoder(images, images)  # statistics that are not the initial ones
    encoder.eval()
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    copy = folded(encoder)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in copy.modules())
    for modality in (Modality.VISIBLE, Modality.INFRARED):
        with torch.no_grad():
            torch.testing.assert_close(
                copy.embed(images, modality), encoder.embed(images, modality), rtol=0, atol=2e-6
            )
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.modules())
