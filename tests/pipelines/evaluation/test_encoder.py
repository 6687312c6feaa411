"""A trained checkpoint, opened for use, is what was evaluated: embedded, asked and exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config.run import RunConfig
from pipelines.data.decode import read_image
from pipelines.data.listed import read
from pipelines.errors import UserError
from pipelines.evaluation.encoder import open_encoder, open_start
from pipelines.evaluation.evaluate import evaluate
from pipelines.retrieval.export import export
from pipelines.retrieval.fill import add_vectors
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter, Match
from pipelines.retrieval.search import ask, search
from pipelines.retrieval.sources import Source, record_id
from pipelines.runs import checkpoint
from pipelines.training import deterministic
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.text_image import TextImageEncoder
from reid_core.models.weight_files import Pixels
from reid_core.types import Modality
from tests.pipelines import small_runs
from tests.pipelines.trained import draw_folder, embed_alone, save_run, with_data

SENTENCE = "a woman in a striped dress with a backpack"


@dataclass(frozen=True)
class Trained:
    """A finished small run and its test images in a gallery."""

    config: RunConfig
    run_dir: Path
    scores: dict[str, float]
    gallery: Gallery


@pytest.fixture(
    scope="module",
    params=[
        ("cclnet",),
        ("csdn", "csdn.variant=head"),
        ("cpcl",),
        ("cpcl", "quick_gelu"),
        ("cclnet-vit", "model.lora_rank=2"),
        ("bmil-vit", "notes"),
        ("bmil-vit", "model.patch_stride=4", "model.pool=mean", "model.stem_blocks=1"),
        ("csdn-vit", "csdn.variant=head"),
        ("cpcl-vit",),
    ],
    ids=lambda names: " ".join(names),
)
def trained(
    request: pytest.FixtureRequest, trees: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    method, *overrides = request.param
    if overrides == ["quick_gelu"]:
        overrides = [f"model.pretrained={_of_openai(folder / 'weights.pt')}"]
    if overrides == ["notes"]:
        overrides = [f"model.pretrained={_with_notes(folder / 'hub')}"]
    config = small_runs.make_config(method, trees, *overrides)
    run = small_runs.open_run(config, folder / "run")
    remaining = small_runs.Kept(folder / "run" / "checkpoint_0")
    progress = deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
    scores = progress.scores[progress.stage]
    return Trained(config, folder / "run", scores, _filled(config, folder))


def _with_notes(folder: Path) -> Path:
    """The small transformer's weights, with a mean and a deviation of their own beside them."""
    folder.mkdir()
    notes = {"preprocess_cfg": {"mean": [0.2, 0.4, 0.6], "std": [0.5, 0.1, 0.9]}}
    (folder / "open_clip_config.json").write_text(json.dumps(notes))
    return shutil.copy(backbones.ASSETS / f"{backbones.SMALL_VIT}.pt", folder / "weights.pt")


def _of_openai(path: Path) -> Path:
    """The bundled weights in a file of OpenAI's, which says that it needs QuickGELU."""
    state = backbones.load(backbones.SMALL, "bundled").model.state_dict()
    torch.save(state | {"input_resolution": torch.tensor(64)}, path)
    return path


def _filled(config: RunConfig, folder: Path) -> Gallery:
    source = Source(Path(config.data.root), config.data.kind, "test")
    add_vectors(folder / "gallery", embed_alone(folder / "run", source, folder / "vectors"))
    return Gallery.open(folder / "gallery")


def _some(gallery: Gallery, modality: Modality, count: int) -> list[Match]:
    """A few rows of a modality with their vectors."""
    zero = np.eye(1, gallery.facts.dim, dtype=np.float32)[0]
    return gallery.search(zero, count, where=Filter(modality=modality), vectors=True)


@pytest.mark.slow
def test_what_is_embedded_scores_what_training_reported(trained: Trained) -> None:
    """CSDN's two parts and their mirror images, CPCL's captions and activation included."""
    dataset = read(trained.config)
    rows = [trained.gallery.get(record_id(sample)) for sample in dataset.test.samples]
    result = np.stack([row.vector for row in rows if row is not None and row.vector is not None])
    assert evaluate(dataset.kind, dataset.test, result).headline == pytest.approx(
        trained.scores, abs=1e-6
    )


@pytest.mark.slow
def test_images_of_every_modality_and_sentences_ask(trained: Trained) -> None:
    gallery, loaded = trained.gallery, open_encoder(trained.run_dir)
    for modality in loaded.modalities:
        if modality == Modality.TEXT:
            continue
        row = _some(gallery, modality, 1)[0]
        asked = ask(gallery, image=str(row.file), text=None, seen_as=modality)
        np.testing.assert_allclose(asked.vector, row.vector, atol=1e-5)
        assert search(gallery, asked, top=1)[0].id == row.id
    if Modality.TEXT in loaded.modalities:
        hits = search(
            gallery,
            ask(gallery, image=None, text=SENTENCE, seen_as=None),
            top=3,
            where=Filter(modality=Modality.VISIBLE),
        )
        assert [hit.modality for hit in hits] == ["visible"] * 3


@pytest.mark.slow
def test_exported_models_give_what_was_evaluated(trained: Trained, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    size = trained.config.model
    for model in export(trained.run_dir, tmp_path):
        if model.modality == Modality.TEXT:
            continue  # checked against torch by `export`
        rows = _some(trained.gallery, model.modality, 5)
        images = [read_image(row.file, height=size.height, width=size.width) for row in rows]
        session = onnxruntime.InferenceSession(model.path)
        (result,) = session.run(["vector"], {"input": np.stack(images)})
        np.testing.assert_allclose(result, np.stack([row.vector for row in rows]), atol=1e-5)


@pytest.mark.slow
def test_the_start_is_what_training_began_with(trained: Trained) -> None:
    loaded, size = open_encoder(trained.run_dir), trained.config.model
    start = open_start(loaded)
    assert start.feature_dim == loaded.encoder.feature_dim
    image = torch.randint(0, 256, (1, 3, size.height, size.width), dtype=torch.uint8)
    before, after = (one.embed(image, Modality.VISIBLE) for one in (start, loaded.encoder))
    assert not torch.allclose(before, after)


def test_a_checkpoint_brings_the_mean_and_deviation_of_its_weights(tmp_path: Path) -> None:
    """What is opened later reads no pre-trained weights, and so not what stood beside them."""
    path = _with_notes(tmp_path / "hub")
    config = small_runs.make_config("bmil-vit", tmp_path, f"model.pretrained={path}")
    weights = backbones.load(backbones.SMALL_VIT, str(path))
    encoder = ImageEncoder(weights, height=small_runs.HEIGHT, width=small_runs.WIDTH).eval()
    state = {
        "module": encoder.state_dict(),
        "pixels": (weights.pixels.mean, weights.pixels.std),
        "config": config.used(),
        "progress": {"stage": "joint", "epoch": 0},
    }
    checkpoint.save(tmp_path / "checkpoint_0", state, {})
    opened = open_encoder(tmp_path).encoder
    assert isinstance(opened, torch.nn.Module)
    (inside,) = (part for part in opened.modules() if isinstance(part, ImageEncoder))
    assert inside.pixels == Pixels((0.2, 0.4, 0.6), (0.5, 0.1, 0.9))


def test_a_run_of_a_name_with_a_tag_opens_and_one_that_does_not_says_why(tmp_path: Path) -> None:
    name = "timm/resnet18.a1_in1k"
    encoder = ImageEncoder(backbones.load(name, tagged=True), height=64, width=32)
    folder = checkpoint.find(save_run(tmp_path / "run", module=encoder.state_dict()))
    state = checkpoint.load(folder)
    state["config"]["model"] |= {"name": name, "pretrained": None}
    del state["format"]
    checkpoint.save(folder, state, {})
    assert open_encoder(folder).encoder.feature_dim == encoder.feature_dim
    state["config"]["model"]["name"] = "timm/resnet18x"
    checkpoint.save(folder, state, {})
    with pytest.raises(UserError, match=r"wait for a later stage.*unknown model 'timm/resnet18x'"):
        open_encoder(folder)


def test_a_checkpoint_brings_its_activation(tmp_path: Path) -> None:
    """No weight tells it: opened as another network, every caption would be another vector."""
    config = small_runs.make_config("cpcl", tmp_path)
    weights = backbones.load(backbones.SMALL, str(_of_openai(tmp_path / "weights.pt")))
    assert weights.quick_gelu
    size = config.model
    encoder = TextImageEncoder(weights, height=size.height, width=size.width).eval()
    state = {
        "module": encoder.state_dict(),
        "quick_gelu": weights.quick_gelu,
        "config": config.used(),
        "progress": {"stage": "train", "epoch": 0},
    }
    checkpoint.save(tmp_path / "checkpoint_0", state, {})
    loaded = open_encoder(tmp_path)
    assert loaded.tokenize is not None
    ids = loaded.tokenize([SENTENCE])
    with torch.inference_mode():
        result, expected = (one.embed(ids, Modality.TEXT) for one in (loaded.encoder, encoder))
        plain = TextImageEncoder(
            backbones.load(backbones.SMALL), height=size.height, width=size.width
        )
        plain.load_state_dict(encoder.state_dict())
        assert not torch.allclose(plain.eval().embed(ids, Modality.TEXT), expected, atol=1e-3)
    torch.testing.assert_close(result, expected)


def test_the_joint_space_of_a_run_without_texts_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = save_run(tmp_path / "run")
    open_encoder(run, space="joint")
    assert not caplog.records
    state = checkpoint.load(run / "checkpoint_0")
    state["config"]["cclnet"]["image_to_text"] = 0
    checkpoint.save(tmp_path / "without" / "checkpoint_0", state, {})
    open_encoder(tmp_path / "without")
    assert not caplog.records
    open_encoder(tmp_path / "without", space="joint")
    assert "trained its images without texts" in caplog.text


def test_mirrored_descriptors_have_a_joint_space_too(tmp_path: Path) -> None:
    """It is the same for an image and its mirror image, as the descriptor is."""
    run = save_run(tmp_path / "run")
    state = checkpoint.load(run / "checkpoint_0")
    state["config"]["cclnet"]["flip"] = True
    checkpoint.save(run / "checkpoint_0", state, {})
    encoder = open_encoder(run, space="joint", device=torch.device("cpu")).encoder
    images = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8)
    rows = encoder.embed(images, Modality.INFRARED)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(encoder.embed(images.flip(-1), Modality.INFRARED), rows)


def test_an_encoder_takes_images_as_large_as_its_run_allows(tmp_path: Path) -> None:
    """Of thousands of pixels here, so that the test is quick."""
    image = draw_folder(tmp_path, visible=1, infrared=0) / "visible" / "0.png"
    run = save_run(tmp_path / "run")
    for limit in (0.003, 0.002):
        with_data(run, run, max_megapixels=limit)
        loaded = open_encoder(run, device=torch.device("cpu"))
        if limit == 0.003:
            assert len(loaded.embed_images([image], "visible")) == 1
            continue
        with pytest.raises(ValueError, match=r"0\.png.*data\.max_megapixels=0\.002"):
            loaded.embed_images([image], "visible")
