"""Weights of others become run folders; what they contradict is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pipelines.data.decode import read_image
from pipelines.errors import UserError
from pipelines.evaluation.encoder import open_encoder
from pipelines.runs.released import import_released
from reid_core.methods.csdn import images as csdn_images
from reid_core.methods.csdn.settings import Config as CSDNConfig
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.towers import Fit, open_tower
from tests.core.methods.test_csdn import as_released
from tests.core.models.swin_oracle import solider_features
from tests.core.models.test_reid_weights import drawn, swin_names, vit_names


def random_image(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    return folder / "one.png"


@pytest.mark.slow
def test_a_fine_tuned_transreid_ssl_embeds_both_modalities_alike(tmp_path):
    state = drawn(vit_names(384, positions=129, ics=False))
    heads = drawn({"bottleneck.weight": (384,), "classifier.weight": (9, 384)})
    torch.save({f"base.{k}": v for k, v in state.items()} | heads, tmp_path / "vit.pth")
    run = import_released(tmp_path / "vit.pth", tmp_path / "run", "transreid-ssl")
    loaded = open_encoder(run)
    model = loaded.config.model
    assert (model.name, model.height, model.width, model.pixels) == (
        "transreid-ssl/vit_small", 256, 128, "half"
    )  # fmt: skip
    vectors = [
        loaded.embed_images([random_image(tmp_path)], modality=m) for m in ("visible", "infrared")
    ]
    np.testing.assert_array_equal(*vectors)
    # the class token behind the last norm, of pixels in [-1, 1], as its authors test
    backbone = backbones.load(model.name, str(tmp_path / "vit.pth"))
    tower = open_tower(backbone.visual, Fit(256, 128))
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "one.png"))).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = tower.trunk.eval()(tower.stem.eval()(pixels / 127.5 - 1))[:, 0]
    np.testing.assert_allclose(vectors[0], F.normalize(expected).numpy(), atol=1e-5)


@pytest.mark.slow
def test_what_the_weights_were_trained_with_cannot_be_changed(tmp_path):
    torch.save(drawn(vit_names(384, positions=129, ics=False)), tmp_path / "vit.pth")
    arguments = tmp_path / "vit.pth", tmp_path / "run", "transreid-ssl"
    with pytest.raises(UserError, match=r"model\.height: 256 -> 384"):
        import_released(*arguments, ["model.height=384"])
    with pytest.raises(UserError, match="choose one of cclnet, csdn"):
        import_released(*arguments[:2], "nobody")
    run = import_released(*arguments, ["data.kind=regdb", "data.root=/data/RegDB"])
    assert open_encoder(run).config.data.kind == "regdb"
    with pytest.raises(UserError, match="not empty"):
        import_released(*arguments)


@pytest.mark.slow
def test_files_of_other_publishers_and_incomplete_ones_are_refused(tmp_path):
    state = drawn(vit_names(384, positions=129, ics=False))
    torch.save(state, tmp_path / "vit.pth")
    for publisher in ("csdn", "cclnet", "clip-reid", "solider"):
        with pytest.raises(UserError, match=rf"vit\.pth, --from {publisher}"):
            import_released(tmp_path / "vit.pth", tmp_path / "run", publisher)
    del state["blocks.7.mlp.fc1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"missing: blocks\.7\.mlp\.fc1\.weight"):
        import_released(tmp_path / "part.pth", tmp_path / "run", "transreid-ssl")
    torch.save({"image_encoder1.0.weight": torch.zeros(1)}, tmp_path / "csdn.pth")
    with pytest.raises(UserError, match="an incomplete checkpoint of CSDN's public code"):
        import_released(tmp_path / "csdn.pth", tmp_path / "run", "csdn")
    torch.save({"bottleneck.weight": torch.ones(2048)}, tmp_path / "cclnet.pth")
    with pytest.raises(UserError, match=r"lacks visible_module\.visible\., thermal_module"):
        import_released(tmp_path / "cclnet.pth", tmp_path / "run", "cclnet")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_solider_at_the_size_of_its_authors(tmp_path):
    state = drawn(swin_names())
    torch.save({f"base.{k}": v for k, v in state.items()}, tmp_path / "swin.pth")
    loaded = open_encoder(import_released(tmp_path / "swin.pth", tmp_path / "run", "solider"))
    assert (loaded.config.model.height, loaded.encoder.feature_dim) == (384, 768)
    vectors = loaded.embed_images([random_image(tmp_path)], modality="infrared")
    # the mean of the last maps, of pixels in [-1, 1], as its authors test
    pixels = torch.from_numpy(read_image(tmp_path / "one.png", height=384, width=128)[None])
    expected = F.normalize(solider_features(state, pixels / 127.5 - 1).mean(dim=(0, 1)), dim=0)
    np.testing.assert_allclose(vectors[0], expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_cclnet_csdn_and_clip_reid_give_the_descriptors_of_the_encoder_they_were_saved_from(
    tmp_path,
):
    def of(run: Path) -> np.ndarray:
        return open_encoder(run).embed_images([random_image(tmp_path)], modality="infrared")

    resnet = backbones.load("RN50", seed=1, quick_gelu=True)
    cclnet = ImageEncoder(resnet, height=288, width=144).eval()
    with torch.no_grad():
        cclnet.infrared_stem.conv1.weight.mul_(-1)
    places = {
        "visible_stem.": "visible_module.visible.",
        "infrared_stem.": "thermal_module.thermal.",
        "trunk.": "base_resnet.base.",
        "attnpool.": "base_resnet.base.attnpool.",
        "neck.": "bottleneck.",
    }
    saved = {}
    for name, value in cclnet.state_dict().items():
        ours = next(place for place in places if name.startswith(place))
        saved[f"module.{places[ours]}{name.removeprefix(ours)}"] = value
    saved["module.visible_module.visible.layer1.0.conv1.weight"] = torch.zeros(1)  # not used
    torch.save({"state_dict": saved}, tmp_path / "cclnet.pth")
    first = of(import_released(tmp_path / "cclnet.pth", tmp_path / "cclnet", "cclnet"))

    config = CSDNConfig(profile="reference", variant="head")
    encoder = csdn_images.build_encoder(config, resnet, height=288, width=144)
    model = csdn_images.ImageModel(encoder, 7, seed=3).eval()
    torch.save({as_released(k): v for k, v in model.state_dict().items()}, tmp_path / "csdn.pth")
    second = of(import_released(tmp_path / "csdn.pth", tmp_path / "csdn", "csdn"))

    vit = backbones.load("ViT-B-16", seed=1, quick_gelu=True).visual
    vit.positional_embedding = torch.nn.Parameter(torch.randn(129, 768))
    torch.save({f"image_encoder.{k}": v for k, v in vit.state_dict().items()}, tmp_path / "cr.pth")
    third = of(import_released(tmp_path / "cr.pth", tmp_path / "cr", "clip-reid"))
    assert (first.shape, second.shape, third.shape) == ((1, 2048), (1, 6144), (1, 768))

    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "one.png"))).permute(2, 0, 1)[None]
    with torch.no_grad():
        tokens = vit.conv1(pixels / 127.5 - 1).flatten(2).transpose(1, 2)
        tokens = torch.cat([vit.class_embedding.expand(1, 1, -1), tokens], dim=1)
        tokens = vit.ln_pre(tokens + vit.positional_embedding)
        expected = F.normalize(vit.ln_post(vit.transformer(tokens))[:, 0])
    np.testing.assert_allclose(third, expected.numpy(), atol=1e-4)
    for run, name in (("cclnet", "RN50"), ("csdn", "RN50"), ("cr", "ViT-B-16")):
        model = open_encoder(tmp_path / run).config.model
        assert (model.name, model.pretrained) == (name, "openai"), "whose texts --space joint asks"

    tall = torch.from_numpy(read_image(tmp_path / "one.png", height=288, width=144)[None])
    with torch.no_grad():
        np.testing.assert_allclose(first, cclnet.embed(tall, "infrared").numpy(), atol=1e-4)
        own = csdn_images.Descriptor(encoder.eval(), flip=True).embed(tall, "infrared")
    np.testing.assert_allclose(second, own.numpy(), atol=1e-4)
