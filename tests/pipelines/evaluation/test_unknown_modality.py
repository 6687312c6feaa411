"""An unknown modality is an error at every door; it never takes another one's stem."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.config import run as configuration
from pipelines.evaluation.encoder import JointSpace, LoadedEncoder
from pipelines.runs.learned import Learned
from reid_core.datasets import LAYOUTS
from reid_core.methods import METHODS
from reid_core.methods.mirror_mean import MirrorMean
from reid_core.methods.teacher import MeanTeacher
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.types import Modality

SIZE = (32, 16)
WRONG = ["rgb", "ir", "VISIBLE", "thermal", "", Modality.TEXT]


@pytest.fixture(scope="module")
def clip() -> backbones.Backbone:
    return backbones.load(backbones.SMALL, "bundled")


def doors(clip: backbones.Backbone) -> dict[str, nn.Module]:
    images = ImageEncoder(clip, height=SIZE[0], width=SIZE[1])
    methods = {
        name: method.load_encoder(method.config(), clip, *SIZE, None)
        for name, method in METHODS.items()
        if Modality.TEXT not in method.inputs
    }
    inner = {"images": images, "teacher": MeanTeacher(images, momentum=0.5), **methods}
    return inner | {"mirrors": MirrorMean(images)}


@pytest.mark.parametrize("modality", WRONG)
def test_no_image_encoder_embeds_it(clip: backbones.Backbone, modality: str) -> None:
    pixels = torch.zeros(2, 3, *SIZE, dtype=torch.uint8)
    for encoder in doors(clip).values():
        for act in ("embed", "project"):
            if hasattr(encoder, act):
                with pytest.raises(ValueError, match="no stem for"):
                    getattr(encoder.eval(), act)(pixels, modality)


@pytest.mark.parametrize("modality", ["rgb", "infrared", "TEXT", ""])
def test_no_text_image_encoder_embeds_it(clip: backbones.Backbone, modality: str) -> None:
    encoder = METHODS["cpcl"].load_encoder(METHODS["cpcl"].config(), clip, *SIZE, None)
    with pytest.raises(ValueError, match="no tower for"):
        encoder.embed(torch.zeros(2, 3, *SIZE, dtype=torch.uint8), modality)


def test_the_joint_space_does_not_take_it(clip: backbones.Backbone) -> None:
    space = JointSpace(ImageEncoder(clip, height=SIZE[0], width=SIZE[1]), clip.text)
    with pytest.raises(ValueError, match="no stem for"):
        space.embed(torch.zeros(2, 3, *SIZE, dtype=torch.uint8), "rgb")


@pytest.mark.parametrize("modality", ["rgb", "ir", "text"])
def test_files_are_not_embedded_as_it(clip: backbones.Backbone, modality: str) -> None:
    config = configuration.validate({"data": {"root": "/data"}}, source="test")
    encoder = ImageEncoder(clip, height=SIZE[0], width=SIZE[1])
    inputs = METHODS["cclnet"].inputs
    loaded = LoadedEncoder(encoder, inputs, None, config, torch.device("cpu"), "", Learned())
    with pytest.raises(ValueError, match=modality):
        loaded.embed_images([], modality)


def test_a_plain_word_is_as_good_as_the_constant(clip: backbones.Backbone) -> None:
    pixels = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    for name, encoder in doors(clip).items():
        with torch.no_grad():
            for m in METHODS["cclnet"].inputs:
                both = [encoder.eval().embed(pixels, as_) for as_ in (m, str(m))]
                assert torch.equal(*both), name


@pytest.mark.parametrize("word", ["rgb", "ir", "nir", "thermal"])
def test_a_manifest_does_not_take_it(tmp_path: Path, word: str) -> None:
    (tmp_path / "manifest.csv").write_text(f"image,modality,pid,split\na.jpg,{word},1,train\n")
    with pytest.raises(ValueError, match=word):
        LAYOUTS["manifest"].read(tmp_path)
