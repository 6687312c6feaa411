"""Weights of pedestrian pre-training: files with the published names and shapes, drawn here."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core.models import backbones, reid_weights, remarks
from reid_core.models.encoders import ImageEncoder
from reid_core.models.options import Options
from reid_core.models.reid_weights import image_of
from reid_core.models.towers import Fit, open_tower
from reid_core.models.weight_files import Pixels, WeightFile
from reid_core.types import Modality
from tests.core.models.swin_oracle import solider_features


def drawn(shapes: dict[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def vit_names(dim: int, *, positions: int, ics: bool) -> dict[str, tuple[int, ...]]:
    """TransReID-SSL's ViT, as its training script saves the backbone."""
    result: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, positions, dim),
        "patch_embed.proj.weight": (dim, 64, 8, 8) if ics else (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    for i, shape in {0: (64, 3, 7, 7), 3: (64, 64, 3, 3), 6: (64, 64, 3, 3)}.items():
        result |= {f"patch_embed.conv.{i}.weight": shape} if ics else {}
    for layer in ("1.IN", "4.IN", "1.BN", "4.BN", "7") if ics else ():
        names = ("weight", "bias") if "IN" in layer else BATCH_NORM
        width = 64 if layer == "7" else 32
        result |= {f"patch_embed.conv.{layer}.{name}": (width,) for name in names}
    for i in range(12):
        for name, shape in {
            "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,),
            "norm2.bias": (dim,), "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,),
        }.items():  # fmt: skip
            result[f"blocks.{i}.{name}"] = shape
    return result


BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize(
    ("name", "wrapping"),
    [
        ("vit_small", "plain"),
        pytest.param("vit_small_ics", "dino", marks=pytest.mark.slow),
        ("vit_small_ics", "fine-tuned"),
    ],
)
def test_transreid_ssl_by_its_own_names(name, wrapping, tmp_path):
    dim, ics = 384, name.endswith("ics")
    state = drawn(vit_names(dim, positions=129, ics=ics))
    if wrapping == "dino":
        inside = {f"module.backbone.{k}": v for k, v in state.items()}
        content: dict = {"teacher": inside | {"module.head.mlp.0.weight": torch.zeros(2, 2)}}
        content["args"] = argparse.Namespace(arch="vit_small", drop_path_rate=0.1)
    elif wrapping == "fine-tuned":
        content = {f"base.{k}": v for k, v in state.items()} | drawn({"bottleneck.weight": (dim,)})
    else:
        content = state | drawn({"fc.weight": (1000, dim)})
    torch.save(content, tmp_path / "weights.pth")
    loaded = backbones.load(f"transreid-ssl/{name}", str(tmp_path / "weights.pth"))
    own = loaded.model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    assert loaded.pixels.size == (256, 128)


def test_positions_of_another_tall_image_are_kept_or_resized(tmp_path):
    state = drawn(vit_names(384, positions=1 + 24 * 8, ics=False))
    torch.save(state, tmp_path / "weights.pth")
    loaded = backbones.load("transreid-ssl/vit_small", str(tmp_path / "weights.pth"))
    same = ImageEncoder(loaded, height=384, width=128)
    assert torch.equal(same.visible_stem.pos_embed, state["pos_embed"])
    assert ImageEncoder(loaded, height=256, width=128).visible_stem.pos_embed.shape[1] == 129
    assert (image_of(128), image_of(192), image_of(210)) == (
        (256, 128, 16), (384, 128, 16), (256, 128, 12)
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"77 positions.*128 \(256 x 128, stride 16\)"):
        image_of(77)


def test_dinov2_with_registers_is_read_in_its_authors_names(tmp_path):
    """Their class token has a position, and timm's model has none for it."""
    name = "timm/vit_small_patch14_reg4_dinov2"
    model = backbones.load(name, seed=3).model
    state = model.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    positions = torch.cat([torch.ones(1, 1, 384), state["pos_embed"]], dim=1)
    theirs = state | {"pos_embed": positions, "mask_token": torch.zeros(1, 384)}
    torch.save(theirs, tmp_path / "dinov2.pth")
    loaded = backbones.load(name, str(tmp_path / "dinov2.pth")).model
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    assert torch.equal(loaded.reg_token, model.reg_token)
    assert torch.equal(loaded.cls_token, model.cls_token + 1)


def test_a_file_of_another_size_is_refused(tmp_path):
    torch.save(drawn(vit_names(384, positions=129, ics=True)), tmp_path / "ics.pth")
    with pytest.raises(ValueError, match=r"unexpected: patch_embed\.conv\.0.*TransReID-SSL"):
        backbones.load("transreid-ssl/vit_small", str(tmp_path / "ics.pth"))


def test_a_last_block_of_parts_and_inputs_of_cameras_are_refused(tmp_path):
    state = {"base.cls_token": torch.zeros(1, 1, 384)}
    for extra, message in (
        ("b1.0.norm1.weight", "a block for each part"),
        ("base.sie_embed", r"base\.sie_embed.*numbers of cameras"),
    ):
        with pytest.raises(ValueError, match=message):
            reid_weights.from_transreid_ssl(
                WeightFile(tmp_path, state | {extra: torch.zeros(3, 1, 384)})
            )
    with pytest.raises(ValueError, match=r"^cv_embed.*numbers of cameras"):
        reid_weights.from_clip_reid(
            {"image_encoder.proj": torch.zeros(1), "cv_embed": torch.zeros(1)}
        )


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "base."])
def test_names_of_timm_are_read_behind_those_of_a_training_script(prefix, tmp_path):
    state = backbones.load("timm/vit_tiny_patch16_224", seed=3).model.state_dict()
    heads = {"head.weight": torch.zeros(9, 192), "head.bias": torch.zeros(9)}
    if prefix.endswith(("backbone.", "base.")):
        heads = {"classifier.weight": torch.zeros(9, 192), "bottleneck.weight": torch.ones(192)}
    whole = {f"{prefix}{k}": v for k, v in state.items()} | heads
    torch.save({"state_dict": whole}, tmp_path / "weights.pth")
    loaded = backbones.load("timm/vit_tiny_patch16_224", str(tmp_path / "weights.pth"))
    assert all(torch.equal(loaded.model.state_dict()[k], v) for k, v in state.items())


@pytest.mark.slow
def test_files_of_another_architecture_are_told_by_their_names(tmp_path):
    torch.save(drawn(swin_names()), tmp_path / "solider.pth")
    with pytest.raises(ValueError, match=r"missing: patch_embed\.proj.*solider/swin_tiny"):
        backbones.load("timm/swin_tiny_patch4_window7_224", str(tmp_path / "solider.pth"))
    torch.save({"layers.1.downsample.reduction.weight": torch.zeros(1)}, tmp_path / "timm.pth")
    with pytest.raises(ValueError, match=r"no name is stages\.\*.*timm/swin_"):
        backbones.load("solider/swin_tiny", str(tmp_path / "timm.pth"))
    save_file({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"missing: cls_token.*unexpected: layer1\.0\.conv1"):
        backbones.load("timm/vit_tiny_patch16_224", str(tmp_path / "resnet.safetensors"))


def test_the_convolutional_stem_is_the_written_formula():
    patches = reid_weights.ConvPatches(8, size=(32, 16)).eval()
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        x = images
        for i in (0, 3, 6):
            x = F.conv2d(
                x, patches.conv[i].weight, stride=2 if i == 0 else 1, padding=3 if i == 0 else 1
            )
            if i < 6:
                one, two = x[:, :32], x[:, 32:]
                mean, var = (
                    one.mean((2, 3), keepdim=True),
                    one.var((2, 3), keepdim=True, correction=0),
                )
                one = (one - mean) / (var + 1e-5).sqrt()
                x = torch.cat([one, two / (1 + 1e-5) ** 0.5], dim=1)
            else:
                x = x / (1 + 1e-5) ** 0.5
            x = x.relu()
        expected = F.conv2d(x, patches.proj.weight, patches.proj.bias, stride=8)
        torch.testing.assert_close(patches(images), expected.flatten(2).transpose(1, 2))


def swin_names() -> dict[str, tuple[int, ...]]:
    """SOLIDER's Swin-Tiny, in mmdetection's names, with its semantic controller."""
    result: dict[str, tuple[int, ...]] = {
        "patch_embed.projection.weight": (96, 3, 4, 4),
        "patch_embed.projection.bias": (96,),
        "patch_embed.norm.weight": (96,),
        "patch_embed.norm.bias": (96,),
    }
    for stage, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
        dim = 96 * 2**stage
        for block in range(depth):
            for name, shape in {
                "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,),
                "norm2.bias": (dim,), "attn.w_msa.relative_position_bias_table": (169, heads),
                "attn.w_msa.relative_position_index": (49, 49),
                "attn.w_msa.qkv.weight": (3 * dim, dim), "attn.w_msa.qkv.bias": (3 * dim,),
                "attn.w_msa.proj.weight": (dim, dim), "attn.w_msa.proj.bias": (dim,),
                "ffn.layers.0.0.weight": (4 * dim, dim), "ffn.layers.0.0.bias": (4 * dim,),
                "ffn.layers.1.weight": (dim, 4 * dim), "ffn.layers.1.bias": (dim,),
            }.items():  # fmt: skip
                result[f"stages.{stage}.blocks.{block}.{name}"] = shape
        if stage < 3:
            result[f"stages.{stage}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            result |= {
                f"stages.{stage}.downsample.norm.{x}": (4 * dim,) for x in ("weight", "bias")
            }
        result |= {f"norm{stage}.{x}": (dim,) for x in ("weight", "bias")}
        for kind in "wb":
            into = 96 * 2 ** min(stage + 1, 3)
            result |= {f"semantic_embed_{kind}.{stage}.weight": (into, 2)}
            result |= {f"semantic_embed_{kind}.{stage}.bias": (into,)}
    return result


@pytest.mark.slow
def test_solider_merges_patches_as_unfold_lays_them_and_folds_its_controller_in(tmp_path):
    state = drawn(swin_names())
    torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "tea.pth")
    loaded = backbones.load("solider/swin_tiny", str(tmp_path / "tea.pth"))
    maps = torch.randn(2, 8, 6, 96)
    merged = loaded.model.layers[1].downsample(maps)
    # the published code: unfold, norm, reduce, then the controller with the weight 0.2
    rows = nn.Unfold(2, stride=2)(maps.permute(0, 3, 1, 2)).transpose(1, 2)
    at = "stages.0.downsample."
    rows = F.layer_norm(rows, (384,), state[f"{at}norm.weight"], state[f"{at}norm.bias"])
    rows = rows @ state[f"{at}reduction.weight"].T
    mixture = torch.tensor([0.2, 0.8])
    scale, shift = (
        state[f"semantic_embed_{k}.0.weight"] @ mixture + state[f"semantic_embed_{k}.0.bias"]
        for k in "wb"
    )
    expected = rows * F.softplus(scale) + shift
    torch.testing.assert_close(merged.flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(384, 128), (256, 128), (224, 224)])
def test_soliders_features_are_those_of_a_slow_swin_that_pads_and_then_shifts(size, tmp_path):
    """Of 384 x 128 the maps have 96 x 32, 48 x 16, 24 x 8 and 12 x 4 places: no window fits."""
    state = drawn(swin_names())
    torch.save(state, tmp_path / "swin.pth")
    tower = open_tower(
        backbones.load("solider/swin_tiny", str(tmp_path / "swin.pth")).visual, Fit(*size)
    )
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        maps = tower.trunk(tower.stem(images))
    expected = solider_features(state, images)
    torch.testing.assert_close(maps[0].permute(1, 2, 0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_swin_of_timm_stays_timms():
    model = backbones.load("timm/swin_tiny_patch4_window7_224").model
    tower = open_tower(model, Fit(256, 128))
    model.set_input_size((256, 128), window_size=7)
    images = torch.randn(1, 3, 256, 128)
    with torch.no_grad():
        maps = tower.trunk(tower.stem(images)).permute(0, 2, 3, 1)
        torch.testing.assert_close(maps, model.forward_features(images))


def test_lupersons_mean_and_deviation_are_those_of_its_authors_code():
    """lup_moco/libs/transform.py, "lup"; what MoCo was trained with."""
    expected = Pixels((0.3525, 0.3106, 0.3140), (0.2660, 0.2522, 0.2505), (256, 128))
    sources = {name: s for name, s in reid_weights.MODELS.items() if name.startswith("luperson/")}
    assert len(sources) == 3
    assert all(source.pixels == expected for source in sources.values())


@pytest.mark.slow
def test_luperson_and_torchvision_share_their_names(tmp_path):
    model = backbones.load("luperson/resnet50", seed=3).model
    state = model.state_dict()
    query = {f"module.encoder_q.{k}": v for k, v in state.items()}
    query |= {"module.encoder_q.fc.0.weight": torch.zeros(2, 2), "module.queue": torch.zeros(2)}
    torch.save({"state_dict": query}, tmp_path / "moco.pth")
    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(state | classifier, tmp_path / "torchvision.pth")
    for name, file in (("luperson/resnet50", "moco"), ("timm/resnet50", "torchvision")):
        loaded = backbones.load(name, str(tmp_path / f"{file}.pth"))
        assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
    assert loaded.pixels.mean == (0.485, 0.456, 0.406)
    encoder = ImageEncoder(loaded, height=64, width=32).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 32), dtype=torch.uint8)
    with pytest.raises(ValueError, match="no text tower beside it"):
        encoder.project(pixels, Modality.VISIBLE)


def test_a_configuration_beside_the_weights_says_what_they_were_trained_on(tmp_path):
    torch.save(backbones.load("timm/resnet18").model.state_dict(), tmp_path / "model.pth")
    notes = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 32]}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": notes}))
    loaded = backbones.load("timm/resnet18", str(tmp_path / "model.pth"))
    assert loaded.pixels == Pixels((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (64, 32))
    assert remarks.of_weights(loaded, height=64, width=32) == []
    (size,) = remarks.of_weights(loaded, height=128, width=64)
    assert "trained on images of 64 x 32" in size
    wrong = backbones.load("timm/resnet18", options=Options(pixels="half"))
    (remark,) = remarks.of_weights(wrong, height=64, width=32)
    assert "model.pixels=half" in remark
    assert WeightFile(tmp_path, {}).pixels is None


@pytest.mark.slow
def test_a_file_that_says_nothing_is_told_of_where_the_weights_of_a_name_differ(tmp_path):
    torch.save(backbones.load("timm/vit_base_patch16_224").model.state_dict(), tmp_path / "mae.pth")
    loaded = backbones.load("timm/vit_base_patch16_224", str(tmp_path / "mae.pth"))
    (remark,) = remarks.of_weights(loaded, height=256, width=128)
    assert "nothing says what the file" in remark
    assert "model.pixels" in remark
    for chosen in ("imagenet", "weights"):
        loaded = replace(loaded, options=Options(pixels=chosen))
        assert remarks.of_weights(loaded, height=256, width=128) == []
