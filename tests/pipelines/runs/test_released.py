"""Weights of others become run folders; what they contradict is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pipelines.data.decode import read_image
from pipelines.errors import UserError
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.evaluation.encoder import open_encoder
from pipelines.retrieval.export import export
from pipelines.runs.released import import_released
from reid_core.datasets import synthetic
from reid_core.methods.csdn import images as csdn_images
from reid_core.methods.csdn.settings import Config as CSDNConfig
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.towers import Fit, open_tower
from reid_core.transforms import normalize
from reid_core.types import Modality
from tests.core.methods.test_csdn import as_released
from tests.core.models.swin_oracle import solider_features
from tests.core.models.test_reid_weights import drawn, swin_names, vit_names


def random_image(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    return folder / "one.png"


def assert_evaluated_and_exported(run: Path, folder: Path) -> None:
    """On five test identities, an image of each by a camera; export compares with torch."""
    pytest.importorskip("onnxruntime")
    synthetic.write(folder / "sysu", num_identities=10, seed=3, height=32)
    for images in (folder / "sysu").glob("cam*/*"):
        for image in sorted(images.iterdir())[1:]:
            image.unlink()
    scores = evaluate_checkpoint(run, kind="sysu", root=folder / "sysu").table
    assert all(0 < score["mean"]["mAP"] <= 100 for score in scores.values())
    written = export(run, folder / "models")
    assert [model.modality for model in written] == [Modality.VISIBLE, Modality.INFRARED]


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
    assert_evaluated_and_exported(run, tmp_path)


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
def test_a_solider_that_was_imported_is_evaluated_and_exported(tmp_path):
    heads = drawn({"bottleneck.weight": (768,), "classifier.weight": (9, 768)})
    saved = {f"base.{k}": v for k, v in drawn(swin_names()).items()} | heads
    torch.save(saved, tmp_path / "swin.pth")
    run = import_released(tmp_path / "swin.pth", tmp_path / "run", "solider")
    assert_evaluated_and_exported(run, tmp_path)


@pytest.mark.slow
def test_what_makes_another_descriptor_is_refused_and_unknown_names_are_said(tmp_path):
    vit = {f"base.{k}": v for k, v in drawn(vit_names(384, positions=129, ics=False)).items()}
    swin = {f"base.{k}": v for k, v in drawn(swin_names()).items()}
    for publisher, state, dim in (("transreid-ssl", vit, 384), ("solider", swin, 768)):
        torch.save(state | drawn({"fcneck.weight": (512, dim)}), tmp_path / "file.pth")
        with pytest.raises(UserError, match=r"fcneck\.weight.*REDUCE_FEAT_DIM.*trained without"):
            import_released(tmp_path / "file.pth", tmp_path / "run", publisher)
        torch.save(state | drawn({"part_neck.weight": (2,)}), tmp_path / "file.pth")
        with pytest.raises(UserError, match=r"nothing is known of part_neck\.weight"):
            import_released(tmp_path / "file.pth", tmp_path / "run", publisher)
    tower = {"image_encoder.positional_embedding": torch.zeros(129, 768)}
    torch.save(tower | drawn({"part_neck.weight": (2,)}), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"CLIP-ReID's public code: part_neck\.weight"):
        import_released(tmp_path / "file.pth", tmp_path / "run", "clip-reid")
    assert not (tmp_path / "run").exists()


# Whole files of CLIP's image tower: names and shapes as the public codes save them ---------------


@pytest.fixture(scope="module")
def resnet() -> backbones.Backbone:
    return backbones.load("RN50", seed=1, quick_gelu=True)


def zeros(shapes: Mapping[str, Iterable[int]], *, prefix: str = "") -> dict[str, torch.Tensor]:
    """What an import must not take, of any size in a few bytes."""
    return {
        f"{prefix}{name}": torch.zeros(()).expand(tuple(shape)) for name, shape in shapes.items()
    }


def text_encoder(clip: backbones.Backbone) -> dict[str, torch.Tensor]:
    """Both authors' TextEncoder: no table of words, which the prompts have."""
    parts = ("transformer.", "positional_embedding", "ln_final.", "text_projection")
    own = {k: v.shape for k, v in clip.model.state_dict().items() if k.startswith(parts)}
    return zeros(own, prefix="text_encoder.")


def neck(dim: int) -> dict[str, tuple[int, ...]]:
    rows = ("weight", "bias", "running_mean", "running_var")
    return dict.fromkeys(rows, (dim,)) | {"num_batches_tracked": ()}


def clip_reid_heads(clip: backbones.Backbone, dim: int) -> dict[str, torch.Tensor]:
    """All that its authors' build_transformer has beside the image encoder, nine identities."""
    words = {"cls_ctx": (9, 4, 512), "token_prefix": (1, 5, 512), "token_suffix": (1, 68, 512)}
    return {
        **zeros({"classifier.weight": (9, dim), "classifier_proj.weight": (9, clip.embed_dim)}),
        **zeros(neck(dim), prefix="bottleneck."),
        **zeros(neck(clip.embed_dim), prefix="bottleneck_proj."),
        **zeros(words, prefix="prompt_learner."),
        **text_encoder(clip),
    }


def cclnet_heads(clip: backbones.Backbone) -> dict[str, torch.Tensor]:
    """Words of both modalities, and the parts of its three whole towers that it does not use."""
    words = {
        f"{name}_{modality}": shape
        for modality in ("rgb", "ir")
        for name, shape in {
            "cls_ctx": (7, 4, 512), "token_prefix": (1, 6, 512), "token_suffix": (1, 67, 512)
        }.items()
    }  # fmt: skip
    tower = {k: v.shape for k, v in clip.visual.state_dict().items()}
    tower["attnpool.positional_embedding"] = torch.Size((163, 2048))
    modules = ("visible_module.visible.", "thermal_module.thermal.", "base_resnet.base.")
    return {
        **{name: x for module in modules for name, x in zeros(tower, prefix=module).items()},
        **zeros(words, prefix="prompt_learner."),
        **text_encoder(clip),
    }


def descriptor(run: Path, folder: Path, *, name: str) -> np.ndarray:
    loaded = open_encoder(run)
    model = loaded.config.model
    assert (model.name, model.pretrained) == (name, "openai"), "whose texts --space joint asks"
    return loaded.embed_images([random_image(folder)], modality="infrared")


def tall_image(folder: Path) -> torch.Tensor:
    return torch.from_numpy(read_image(folder / "one.png", height=288, width=144)[None])


@pytest.mark.slow
def test_a_whole_file_of_cclnet_gives_the_descriptor_of_the_encoder_in_it(resnet, tmp_path):
    encoder = ImageEncoder(resnet, height=288, width=144).eval()
    with torch.no_grad():
        encoder.infrared_stem.conv1.weight.mul_(-1)
    places = {
        "visible_stem.": "visible_module.visible.",
        "infrared_stem.": "thermal_module.thermal.",
        "trunk.": "base_resnet.base.",
        "attnpool.": "base_resnet.base.attnpool.",
        "neck.": "bottleneck.",
    }
    used = {}
    for name, value in encoder.state_dict().items():
        ours = next(place for place in places if name.startswith(place))
        used[f"{places[ours]}{name.removeprefix(ours)}"] = value
    heads = cclnet_heads(resnet)
    assert {k: heads[k].shape for k in used if not k.startswith("bottleneck.")} == {
        k: v.shape for k, v in used.items() if not k.startswith("bottleneck.")
    }
    whole = {f"module.{k}": v for k, v in (heads | used).items()}
    torch.save({"state_dict": whole}, tmp_path / "cclnet.pth")
    run = import_released(tmp_path / "cclnet.pth", tmp_path / "run", "cclnet")
    result = descriptor(run, tmp_path, name="RN50")
    with torch.no_grad():
        expected = encoder.embed(tall_image(tmp_path), "infrared").numpy()
    np.testing.assert_allclose(result, expected, atol=1e-4)
    assert_evaluated_and_exported(run, tmp_path)


@pytest.mark.slow
def test_a_file_of_csdn_gives_the_descriptor_of_the_model_in_it(resnet, tmp_path):
    config = CSDNConfig(profile="reference", variant="head")
    encoder = csdn_images.build_encoder(config, resnet, height=288, width=144)
    model = csdn_images.ImageModel(encoder, 7, seed=3).eval()
    torch.save({as_released(k): v for k, v in model.state_dict().items()}, tmp_path / "csdn.pth")
    run = import_released(tmp_path / "csdn.pth", tmp_path / "run", "csdn")
    result = descriptor(run, tmp_path, name="RN50")
    with torch.no_grad():
        own = csdn_images.Descriptor(encoder.eval(), flip=True)
        expected = own.embed(tall_image(tmp_path), "infrared")
    assert result.shape == (1, 6144)
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)
    with pytest.raises(UserError, match=r"csdn\.profile: reference -> clean"):
        import_released(tmp_path / "csdn.pth", tmp_path / "clean", "csdn", ["csdn.profile=clean"])
    assert_evaluated_and_exported(run, tmp_path)


def feature_of_vit(visual: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The class token behind the last norm, of pixels in [-1, 1]: vit_clipreid.yml."""
    tokens = visual.conv1(pixels / 127.5 - 1).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), tokens], dim=1)
    tokens = visual.ln_pre(tokens + visual.positional_embedding)
    return visual.ln_post(visual.transformer(tokens))[:, 0]


def feature_of_resnet(visual: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The mean of the last maps at stride 1, of ImageNet's mean and deviation: cnn_clipreid.yml."""
    block = visual.layer4[0]
    block.avgpool, block.downsample[0] = torch.nn.Identity(), torch.nn.Identity()
    maps = visual.stem(normalize(pixels))
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        maps = layer(maps)
    return maps.mean(dim=(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim", "feature"),
    [
        pytest.param("ViT-B-16", 768, feature_of_vit, marks=pytest.mark.night),
        ("RN50", 2048, feature_of_resnet),
    ],
)
def test_a_whole_file_of_clip_reid_gives_the_feature_that_its_authors_test(
    name, dim, feature, tmp_path
):
    clip = backbones.load(name, seed=1, quick_gelu=True)
    place = clip.visual if name == "ViT-B-16" else clip.visual.attnpool
    place.positional_embedding = torch.nn.Parameter(torch.randn(129, dim))
    tower = {f"image_encoder.{k}": v for k, v in clip.visual.state_dict().items()}
    torch.save(tower | clip_reid_heads(clip, dim), tmp_path / "file.pth")
    run = import_released(tmp_path / "file.pth", tmp_path / "run", "clip-reid")
    result = descriptor(run, tmp_path, name=name)
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "one.png"))).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = F.normalize(feature(clip.visual, pixels))
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)
    assert_evaluated_and_exported(run, tmp_path)
