"""Weights from every kind of file, the opened attention pool, the shortened text tower."""

from __future__ import annotations

import json
import logging
from copy import deepcopy

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from reid_core.models import backbones, remarks, weight_files
from reid_core.models.hub import asked
from reid_core.models.pooling import AttentionPool, resize_positions
from reid_core.models.weight_files import Pixels
from tests.core.openai_layout import Archive


@pytest.fixture(scope="module")
def small() -> backbones.Backbone:
    return backbones.load(backbones.SMALL, seed=3)


@pytest.fixture(scope="module")
def tiny_openai(small):
    """A state dict as OpenAI ships it: half precision, three marks beside the weights."""
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in small.model.state_dict().items()
    }
    marks = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
    return state | {key: torch.tensor(value) for key, value in marks.items()}


def same_weights(a: backbones.Backbone, b: backbones.Backbone, *, atol: float = 0.0) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return all(torch.allclose(first[k], second[k], rtol=0, atol=atol) for k in first)


def activation(clip: backbones.Backbone) -> str:
    return type(clip.text.transformer.resblocks[0].mlp.gelu).__name__


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone(small):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    again = backbones.load(backbones.SMALL, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(small, again)
    assert not same_weights(small, backbones.load(backbones.SMALL, seed=4))


def test_bundled_weights_load_as_float32_through_the_ordinary_path(small):
    bundled = backbones.load(backbones.SMALL, "bundled")
    assert {p.dtype for p in bundled.model.parameters()} == {torch.float32}
    assert not same_weights(small, bundled)
    by_path = backbones.load(backbones.SMALL, str(backbones.ASSETS / f"{backbones.SMALL}.pt"))
    assert same_weights(bundled, by_path)
    assert (backbones.ASSETS / f"{backbones.SMALL}.pt").stat().st_size < 15e6


@pytest.mark.parametrize("kind", ["plain", "open_clip", "safetensors", "openai", "jit"])
def test_every_kind_of_file_gives_the_same_weights(kind, small, tiny_openai, tmp_path):
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    state = small.model.state_dict()
    if kind == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif kind == "plain":
        torch.save(state, path)
    elif kind == "open_clip":
        wrapped = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, path)
    elif kind == "openai":
        torch.save(tiny_openai, path)
    else:
        torch.jit.script(Archive(tiny_openai)).save(str(path))
    loaded = backbones.load(backbones.SMALL, str(path), seed=9)
    half = kind in ("openai", "jit")
    assert same_weights(small, loaded, atol=2e-3 if half else 0.0)
    assert activation(loaded) == ("QuickGELU" if half else "GELU")
    assert not loaded.model.training


@pytest.mark.parametrize(
    "name", [backbones.SMALL, backbones.SMALL_VIT, "timm/vit_tiny_patch16_224", "timm/resnet18"]
)
def test_nothing_of_a_model_that_was_read_is_left_to_what_memory_held(name, tmp_path):
    drawn = backbones.load(name, seed=3).model
    torch.save(drawn.state_dict(), tmp_path / "weights.pth")
    read = backbones.load(name, str(tmp_path / "weights.pth")).model
    expected = dict([*drawn.named_parameters(), *drawn.named_buffers()])  # also those of no file
    own = dict([*read.named_parameters(), *read.named_buffers()])
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], value) for key, value in expected.items())


def test_names_with_quickgelu_build_it():
    config = backbones._clip_config("RN50-quickgelu")
    assert config["quick_gelu"]


@pytest.mark.parametrize("said", [True, False, None])
def test_notes_beside_a_file_say_its_activation_and_without_them_it_is_asked_for(
    small, tmp_path, monkeypatch, said
):
    """As in the hub's copies of OpenAI's weights, whose tensors do not tell."""
    twin = f"{backbones.SMALL}-quickgelu"
    names = [*open_clip.list_models(), twin]
    monkeypatch.setattr(open_clip, "list_models", lambda: names)
    path = tmp_path / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in small.model.state_dict().items()}, path)
    if said is not None:
        notes = {"model_cfg": {"quick_gelu": True} if said else {}, "preprocess_cfg": {}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(notes))
    loaded = backbones.load(backbones.SMALL, str(path))
    assert activation(loaded) == ("QuickGELU" if said else "GELU")
    asked = [r for r in remarks.of_weights(loaded, height=96, width=48) if "QuickGELU" in r]
    assert len(asked) == (said is None)
    assert all(f"model.name={twin}" in remark for remark in asked)


def test_a_clip_of_timm_takes_no_weights_of_the_other_activation(tmp_path):
    name, twin = "timm/vit_base_patch16_clip_224", "timm/vit_base_patch16_clip_quickgelu_224"
    with pytest.raises(ValueError, match=f"=openai was trained with QuickGELU: take .*={twin}"):
        backbones.load(name, "openai")
    torch.save({"visual.x": torch.zeros(1), "vocab_size": torch.tensor(1)}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match=rf"own\.pt was trained with QuickGELU: take .*={twin}"):
        backbones.load(name, str(tmp_path / "own.pt"))


def test_a_tag_brings_its_activation_and_a_failed_download_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda source: str(tmp_path / "RN50.pt"))
    assert backbones._locate("RN50", "openai") == (tmp_path / "RN50.pt", True)
    assert backbones._locate("RN50", "yfcc15m") == (tmp_path / "RN50.pt", True)
    assert backbones._locate("ViT-B-16", "laion2b_s34b_b88k") == (tmp_path / "RN50.pt", False)

    def offline(source):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(ValueError, match=r"'openai' of 'RN50': no route.*path of the file"):
        backbones.load("RN50", "openai")


def test_a_hub_that_does_not_answer_is_asked_once_and_without_its_warnings(
    monkeypatch, caplog, capfd, tmp_path
):
    urls = []

    class Session:
        def head(self, url, *, timeout):
            urls.append(url)
            raise OSError("no such host")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hidden = logging.getLogger("huggingface_hub").level
    for name, tag in (
        ("ViT-B-16", "laion2b_s34b_b88k"),
        ("timm/resnet18", "a1_in1k"),
        ("RN50", "hf-hub:owner/name"),
    ):
        with pytest.raises(ValueError, match=r"does not answer \(no such host\)\. Download them"):
            backbones.load(name, tag)
    assert len(urls) == 3
    assert not caplog.text
    assert capfd.readouterr().err == ""
    assert not constants.HF_HUB_OFFLINE
    assert logging.getLogger("huggingface_hub").level == hidden


def test_a_hub_that_answers_is_asked_as_ever(monkeypatch):
    class Session:
        def head(self, url, *, timeout):
            return None

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    with asked() as unreachable:
        assert unreachable == ""
        assert not constants.HF_HUB_OFFLINE


@pytest.fixture
def hub_folder(monkeypatch, tmp_path):
    """Stands for a hub that answers: what is asked for lies in this folder."""

    class Session:
        def head(self, url, *, timeout):
            return None

    def download(repo_id, filename, **_):
        asked_for.append(repo_id)
        if not (tmp_path / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    asked_for: list[str] = []
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    for client in (weight_files, timm.models._hub):
        monkeypatch.setattr(client, "hf_hub_download", download)
    yield tmp_path
    assert asked_for


def test_weights_of_a_repository_come_with_its_notes(hub_folder):
    state = backbones.load("timm/test_vit", seed=3).model.state_dict()
    save_file(state, hub_folder / "model.safetensors")
    notes = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 48]}
    (hub_folder / "config.json").write_text(json.dumps({"pretrained_cfg": notes}))
    loaded = backbones.load("timm/test_vit", "hf-hub:owner/name")
    assert all(torch.equal(loaded.model.state_dict()[k], v) for k, v in state.items())
    assert loaded.pixels == Pixels((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (96, 48))


def test_a_tag_of_timm_brings_weights_mean_and_deviation(hub_folder):
    whole = timm.create_model("test_vit").state_dict()  # with its classifier
    save_file(whole, hub_folder / "model.safetensors")
    loaded = backbones.load("timm/test_vit", "r160_in1k")
    own = loaded.model.state_dict()
    assert whole.keys() - own.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(value, whole[key]) for key, value in own.items())
    assert loaded.pixels == Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not loaded.guesses_pixels


def test_a_name_with_a_tag_still_opens_what_was_trained_with_it(tmp_path):
    name = "timm/vit_tiny_patch16_224"
    plain = backbones.load(name)
    torch.save(plain.model.state_dict(), tmp_path / "file.pt")
    for file in (None, str(tmp_path / "file.pt")):
        loaded = backbones.load(f"{name}.augreg_in21k", file, tagged=True)
        assert loaded.model.state_dict().keys() == plain.model.state_dict().keys()
    with torch.device("meta"):
        clip = backbones.load("timm/vit_base_patch16_clip_224.openai", tagged=True)
    assert clip.pixels.mean == open_clip.OPENAI_DATASET_MEAN


def test_mean_and_deviation_are_those_of_the_tag():
    half, openai = (0.5, 0.5, 0.5), open_clip.OPENAI_DATASET_MEAN
    assert backbones._clip_pixels("ViT-L-14", "laion2b_s32b_b82k").mean == half
    assert backbones._clip_pixels("ViT-L-14", "openai").mean == openai
    assert backbones._clip_pixels("ViT-L-14", "/weights.pt").mean == openai


def test_a_missing_file_names_the_path_and_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pt.*state dict.*openai"):
        backbones.load("RN50", str(tmp_path / "nowhere.pt"))


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.pt"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"broken\.pt is not a readable weight file"):
        backbones.load(backbones.SMALL, str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"broken\.pt holds no state dict"):
        backbones.load(backbones.SMALL, str(path))


def test_weights_of_another_architecture_list_what_differs(small, tmp_path):
    state = dict(small.model.state_dict())
    state["extra.weight"] = state.pop("logit_scale")
    state["text_projection"] = state["text_projection"][:, :5]
    path = tmp_path / "other.pt"
    torch.save(state, path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        backbones.load(backbones.SMALL, str(path))
    message = str(caught.value)
    assert "missing: logit_scale" in message
    assert "unexpected: extra.weight" in message
    assert "text_projection (64, 5) instead of (64, 128)" in message


def test_unknown_and_unsuitable_names_are_refused():
    with pytest.raises(ValueError, match=r"RN5O.*RN50"):
        backbones.load("RN5O")
    with pytest.raises(ValueError, match=r"vit_bas_patch16.*close names: timm/vit_base_patch16"):
        backbones.load("timm/vit_bas_patch16_224")
    with pytest.raises(ValueError, match=r"unknown model 'dinov3'.*timm/vit_base_patch16_dinov3"):
        backbones.load("dinov3")
    with pytest.raises(ValueError, match="'bundled' for crossreid-small and crossreid-small-vit"):
        backbones.load("RN50", "bundled")


def test_a_name_of_timm_with_a_tag_is_told_apart() -> None:
    expected = r"model.name=timm/vit_small_patch16_dinov3 and model.pretrained=lvd1689m"
    for pretrained in (None, "lvd1689m", "/weights.pth"):
        with pytest.raises(ValueError, match=expected):
            backbones.load("timm/vit_small_patch16_dinov3.lvd1689m", pretrained)


def test_a_tag_of_timm_without_a_network_says_what_to_do(monkeypatch) -> None:
    def create(name: str, **settings: object) -> object:
        assert name == "vit_small_patch16_dinov3.lvd1689m"
        raise OSError("no route to host.")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        ValueError, match=r"'lvd1689m' of 'timm/\w+': no route to host\. Download th"
    ):
        backbones.load("timm/vit_small_patch16_dinov3", "lvd1689m")


def test_text_features_equal_open_clip_on_all_77_positions(small):
    texts = ["a man", "A visible photo of a tall person with a red coat and a bag.", "x"]
    ids = small.text.tokenize(texts)
    assert torch.equal(ids, open_clip.get_tokenizer(backbones.SMALL)(texts))
    with torch.no_grad():
        expected = small.model.encode_text(ids)
        embedded = small.text.token_embedding(ids)
        eot = ids.argmax(dim=1)
        torch.testing.assert_close(small.text.encode_text(ids), expected)
        for chunk in (1, 2, 256):
            torch.testing.assert_close(
                small.text.encode_prompts(embedded, eot, chunk=chunk), expected
            )
        one = small.text.encode_prompts(embedded[1:2], int(eot[1]))
    torch.testing.assert_close(one, expected[1:2])


def test_an_eot_behind_the_embeddings_is_refused(small):
    with pytest.raises(ValueError, match="position 9"):
        small.text.encode_prompts(torch.zeros(2, 5, small.text.width), 9)


def test_attention_pool_equals_the_full_attention_of_open_clip(small):
    attnpool = deepcopy(small.visual.attnpool)
    # Zero biases, as CLIP is initialized, would hide their misuse.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attnpool.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    pool = AttentionPool(attnpool, grid=(6, 6))
    maps = torch.randn(3, 384, 6, 6)
    torch.testing.assert_close(pool(maps), attnpool(maps), rtol=1e-4, atol=1e-4)
    pool(maps).square().sum().backward()
    assert all(p.grad is not None for p in pool.parameters())


def test_positions_keep_the_class_row_and_grow_bilinearly():
    positions = torch.tensor([[9.0], [0.0], [2.0], [4.0], [6.0]])
    assert torch.equal(resize_positions(positions, (2, 2)), positions)
    tall = resize_positions(positions, (4, 2))
    # Rows at -1/4, 1/4, 3/4, 5/4 of the old grid: 0, 1, 3, 4 in the first column.
    assert tall.flatten().tolist() == [9, 0, 2, 1, 3, 3, 5, 4, 6]


def test_a_model_without_clips_own_text_tower_says_so_when_asked_for_texts():
    assert not backbones.has_text("ViT-B-16-SigLIP2")
    assert not backbones.has_text("timm/resnet50")
    assert not backbones.has_text("ViT-L-14-worldwide"), "mT5 reads its sentences, not CLIP"
    assert backbones.has_text("ViT-B-16")
    with torch.device("meta"):
        siglip = backbones.load("ViT-B-16-SigLIP2")
    with pytest.raises(ValueError, match=r"no text tower of CLIP's own kind.*take RN50"):
        _ = siglip.text
