"""Exported models give torch's vectors, say how to feed them, and need nothing of this package."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import UserError
from pipelines.evaluation.encoder import open_encoder
from pipelines.retrieval import deepstream, smaller
from pipelines.retrieval.export import MAX_DIFFERENCE, _OneModality, compare, example, export
from pipelines.retrieval.model_file import Exported, Form, prepared
from reid_core.images import DECODING, decode
from reid_core.types import Dataset, Modality, Sample, Split
from tests.pipelines.trained import draw_folder, save_run

onnxruntime = pytest.importorskip("onnxruntime")
EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx_inference.py"


@pytest.fixture(scope="module", params=["crossreid-small", "crossreid-small-vit"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("trained"), model=request.param)


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    written = export(checkpoint, tmp_path_factory.mktemp("models"))
    assert [model.modality for model in written] == [Modality.VISIBLE, Modality.INFRARED]
    assert all(model.difference < MAX_DIFFERENCE for model in written)
    return {str(model.modality): model.path for model in written}


@pytest.mark.parametrize("modality", ["visible", "infrared"])
@pytest.mark.slow
def test_batches_of_any_size_agree_with_torch(
    checkpoint: Path, models: dict[str, Path], modality: str
) -> None:
    loaded = open_encoder(checkpoint)
    session = onnxruntime.InferenceSession(models[modality])
    for size in (1, 2, 7):
        images = example(loaded, Modality(modality), size)
        (result,) = session.run(["vector"], {"input": images.numpy()})
        expected = loaded.encoder.embed(images, Modality(modality)).numpy()
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.slow
def test_modalities_are_different_models(models: dict[str, Path]) -> None:
    assert models["visible"].read_bytes() != models["infrared"].read_bytes()


@pytest.mark.slow
def test_metadata_says_how_to_feed_it(models: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(models["infrared"])
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["modality"] == "infrared"
    assert (facts["height"], facts["width"], facts["resize"]) == ("64", "32", "lanczos")
    assert facts["mean"] == "[0.485, 0.456, 0.406]"
    assert facts["std"] == "[0.229, 0.224, 0.225]"
    assert facts["normalized_inside"] == "true"
    (given,) = session.get_inputs()
    assert given.type == "tensor(uint8)"
    assert given.shape[1:] == [3, 64, 32]
    assert isinstance(given.shape[0], str), "the batch has no fixed size"


@pytest.mark.slow
def test_example_runs_without_this_package(models: dict[str, Path], tmp_path: Path) -> None:
    """In an empty folder, isolated, so that the package cannot be imported by chance."""
    images = draw_folder(tmp_path / "i", visible=2, infrared=0)
    assert len(EXAMPLE.read_text().split('"""')[2].strip().splitlines()) <= 20
    assert "pipelines" not in EXAMPLE.read_text()
    command = [sys.executable, "-I", str(EXAMPLE), str(models["visible"])]
    frames = [str(images / "visible" / f"{i}.png") for i in (0, 1, 0)]
    done = subprocess.run([*command, *frames], capture_output=True, text=True, check=True)
    result = np.array([float(word) for word in done.stdout.translate({91: " ", 93: " "}).split()])
    result = result.reshape(3, 3)
    np.testing.assert_allclose(np.diag(result), 1, atol=2e-3)
    assert result[0, 2] == pytest.approx(1, abs=2e-3)
    assert result[0, 1] < 0.999


@pytest.mark.slow
@pytest.mark.parametrize("form", [Form("float"), Form(target="deepstream"), Form("float", "fp16")])
def test_numbers_instead_of_bytes_give_the_same_vectors(
    checkpoint: Path, tmp_path: Path, form: Form
) -> None:
    written = export(checkpoint, tmp_path, form=form)
    loaded = open_encoder(checkpoint)
    for model in written:
        session = onnxruntime.InferenceSession(model.path)
        (given,), (answer,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.type, answer.name) == ("images", "tensor(float)", "features")
        images = example(loaded, model.modality, 3)
        fed = images.float() if form.target else prepared(images, loaded, form)
        expected = loaded.encoder.embed(images, model.modality).numpy()
        result = session.run(None, {"images": fed.numpy()})[0]
        assert (result * expected).sum(axis=1).min() > 0.999
        if form.precision == "fp32":
            np.testing.assert_allclose(result, expected, atol=1e-5)
        else:
            assert model.cosine > 0.999
            assert model.checked_on == "256 images of noise", "the run's data are not there"


def test_deepstream_gets_its_configuration_and_six_lines_to_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    deepstream.write(tmp_path, open_encoder(checkpoint), list(Modality)[:2], "fp16")
    config = (tmp_path / "nvinfer_infrared.txt").read_text()
    for line in (
        "onnx-file=infrared.onnx",
        "net-scale-factor=1.0",
        "offsets=0;0;0",
        "model-color-format=0",
        "infer-dims=3;64;32",
        "network-mode=2",
        "output-tensor-meta=1",
        "output-blob-names=features",
    ):
        assert line in config.splitlines()
    readme = (tmp_path / "README.md").read_text()
    assert len(readme.splitlines()) == 6
    assert "trtexec --onnx=visible.onnx" in readme
    assert "--optShapes=images:16x3x64x32" in readme


@pytest.mark.slow
def test_eight_bits_say_what_they_cost(tmp_path: Path, tree: Path) -> None:
    run = save_run(tmp_path / "run")
    (run / "data").symlink_to(tree)
    written = export(run, tmp_path / "models", form=Form(precision="int8"))
    for model in written:
        assert model.rank1 is not None
        assert abs(model.rank1[0] - model.rank1[1]) < 15, "a few of the tree's few queries"
        assert 0.9 < model.cosine < 1
        assert "Rank-1" in model.described()
        facts = onnxruntime.InferenceSession(model.path).get_modelmeta().custom_metadata_map
        assert facts["precision"] == "int8"
    assert not list((tmp_path / "models").glob("*.fp32.onnx"))


@pytest.mark.parametrize(
    ("kind", "test", "said"),
    [
        (
            "manifest",
            (Sample("a.jpg", Modality.TEXT, 1, caption="a"), Sample("a.jpg", Modality.VISIBLE, 1)),
            "compares text rows, the encoder embeds visible and infrared",
        ),
        ("folder", (Sample("a.jpg", Modality.VISIBLE, 1),), "needs infrared test images"),
        ("folder", (), "there are no identities"),
        (
            "folder",
            (Sample("a.jpg", Modality.VISIBLE, 1), Sample("b.jpg", Modality.INFRARED, 1)),
            "a.jpg: No such image",
        ),
    ],
)
def test_test_images_that_cannot_be_ranked_do_not_stop_an_export(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    test: tuple[Sample, ...],
    said: str,
) -> None:
    loaded, lines = open_encoder(checkpoint), list[str]()
    dataset = Dataset(kind, tmp_path, Split(()), Split(()), Split(test))
    monkeypatch.setattr(smaller, "read", lambda config: dataset)
    monkeypatch.setattr(smaller, "say", lines.append)
    monkeypatch.setattr(smaller, "_session", str)
    models = [Exported(tmp_path / f"{m}.onnx", m, 0.0) for m in loaded.modalities]
    assert smaller._scored(loaded, models, Form(precision="fp16")) == models
    assert len(lines) == 1
    assert "in Rank-1 is not measured: " in lines[0]
    assert said in lines[0]


def test_what_no_file_embeds_has_no_vector(checkpoint: Path, tmp_path: Path) -> None:
    split = Split((Sample("a.jpg", Modality.TEXT, 1, caption="a"),))
    rows = smaller._features(open_encoder(checkpoint), split, tmp_path, {}, Form())
    assert np.isnan(rows).all()


@pytest.mark.parametrize("name", ["16 bit", "alpha", "palette", "cmyk", "exif", "gray", "plain"])
def test_the_example_decodes_bit_for_bit_as_the_product(tmp_path: Path, name: str) -> None:
    path = tmp_path / ("image.jpg" if name in ("cmyk", "exif") else "image.png")
    rng = np.random.default_rng(7)
    color = Image.fromarray(rng.integers(0, 256, (50, 30, 3), dtype=np.uint8))
    if name == "16 bit":
        Image.fromarray(rng.integers(0, 2**16, (50, 30), dtype=np.uint16)).save(path)
    elif name == "alpha":
        color.putalpha(Image.fromarray(rng.integers(0, 256, (50, 30), dtype=np.uint8)))
        color.save(path)
    elif name == "palette":
        color.quantize(16).save(path, transparency=3)
    elif name == "cmyk":
        color.convert("CMYK").save(path, quality=95)
    elif name == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        color.save(path, quality=95, exif=exif)
    else:
        (color.convert("L") if name == "gray" else color).save(path)
    shown = runpy.run_path(str(EXAMPLE))["pixels"]
    facts = DECODING | {"height": "64", "width": "32"}
    expected = decode(path.read_bytes(), height=64, width=32)
    np.testing.assert_array_equal(shown(str(path), facts), expected)


@pytest.mark.slow
def test_sentences_are_exported_with_the_joint_space(checkpoint: Path, tmp_path: Path) -> None:
    written = export(checkpoint, tmp_path, space="joint")
    assert [str(model.modality) for model in written] == ["visible", "infrared", "text"]
    loaded = open_encoder(checkpoint, space="joint")
    session = onnxruntime.InferenceSession(written[-1].path)
    ids = example(loaded, Modality.TEXT, 3)
    (result,) = session.run(["vector"], {"input": ids.numpy()})
    np.testing.assert_allclose(result, loaded.encoder.embed(ids, Modality.TEXT).numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_file_that_differs_is_noticed(checkpoint: Path, models: dict[str, Path]) -> None:
    loaded = open_encoder(checkpoint)
    other = _OneModality(loaded.encoder, Modality.INFRARED)
    images = [example(loaded, Modality.VISIBLE, 2)]
    assert compare(other, models["visible"], images) > MAX_DIFFERENCE


class TestBadInput:
    def test_another_target(self) -> None:
        with pytest.raises(UserError, match="--for triton"):
            Form(target="triton")

    def test_no_images_to_calibrate_on(self, checkpoint: Path, tmp_path: Path) -> None:
        loaded = open_encoder(checkpoint)
        with pytest.raises(UserError, match="does not exist"):
            smaller.shrink(loaded, [], Form(precision="int8"), tmp_path / "nothing")
        only = draw_folder(tmp_path / "i", visible=2, infrared=0)
        with pytest.raises(UserError, match="no infrared image"):
            smaller.shrink(loaded, [], Form(precision="int8"), only)

    def test_another_format(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="only onnx"):
            export(checkpoint, tmp_path, file_format="tflite")

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no checkpoint"):
            export(tmp_path, tmp_path / "out")

    def test_onnx_that_is_not_installed(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(
            UserError, match=r"onnxruntime is not installed: pip install .*\[export\]"
        ):
            export(checkpoint, tmp_path)

    def test_a_checkpoint_without_an_encoder(self, tmp_path: Path) -> None:
        tokens = {"learners.visible.tokens": torch.zeros(2, 4, 8)}
        run = save_run(tmp_path / "run", stage="prompts", module=tokens)
        with pytest.raises(UserError, match="'prompts' and holds no trained encoder"):
            open_encoder(run)


@pytest.mark.slow
def test_images_of_another_size_are_resized_by_the_user(models: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(models["visible"])
    wrong = np.asarray(Image.new("RGB", (64, 128))).transpose(2, 0, 1)[None]
    with pytest.raises(Exception, match="input"):
        session.run(None, {"input": wrong})
