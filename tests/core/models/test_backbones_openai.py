"""OpenAI's RN50 archive, rebuilt from the published layout with random weights.

open_clip's own loader of such archives is the reference for what one means.
"""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.types import Modality
from tests.core.openai_layout import Archive, rn50_weights

pytestmark = pytest.mark.slow  # four seconds: RN50 at its size


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return rn50_weights(seed=0)


@pytest.fixture(scope="module")
def archive(weights, tmp_path_factory) -> Path:
    marks = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    path = tmp_path_factory.mktemp("openai") / "RN50.pt"
    state = weights | {key: torch.tensor(value) for key, value in marks.items()}
    torch.jit.script(Archive(state)).save(str(path))
    return path


@pytest.fixture(scope="module")
def loaded(archive) -> backbones.Backbone:
    return backbones.load("RN50", str(archive))


def test_every_tensor_of_the_archive_arrives_in_float32(loaded, weights):
    learnt = [
        value.numel()
        for key, value in weights.items()
        if "running" not in key and "num_" not in key
    ]
    assert sum(learnt) == 102_007_137  # OpenAI's RN50
    state = loaded.model.state_dict()
    assert set(state) == set(weights)
    assert all(torch.equal(state[key], value.to(state[key])) for key, value in weights.items())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert type(loaded.text.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_the_visible_path_is_open_clips_encoder_of_the_same_archive(loaded, archive):
    reference = open_clip.load_openai_model(str(archive), precision="fp32", device="cpu").eval()
    encoder = ImageEncoder(loaded, height=224, width=224, last_stride=2).eval()
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ids = loaded.text.tokenize(["A visible photo of a X X X X person."])
    with torch.no_grad():
        expected = reference.encode_image(image)
        torch.testing.assert_close(
            encoder.project(image, Modality.VISIBLE), expected, rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(
            loaded.text.encode_text(ids), reference.encode_text(ids), rtol=1e-3, atol=1e-4
        )
    assert expected.std() > 1e-2


def test_an_archive_of_another_architecture_is_refused_by_name(archive):
    with pytest.raises(ValueError, match=r"RN50\.pt does not hold the weights of 'cross"):
        backbones.load(backbones.SMALL, str(archive))
