"""Recipes of transformers at their own architecture and size, random weights, two steps each."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from pipelines import evaluate, load_config, train
from pipelines.config.files import find_recipe
from reid_core.datasets import synthetic

pytestmark = pytest.mark.slow
MEMORY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "memory.py"))
VITB, CCLNET = "bmil_sysu_vitb.yaml", "cclnet_sysu_vitb16.yaml"
CLIP = {"name": "ViT-B-16", "drop_path": 0}
SHORT = {
    "bmil": {
        "bmil.labels": "identities",  # random features have no clusters
        "bmil.intra.epochs": 0,
        "bmil.joint": {
            "epochs": 1,
            "clusters_per_batch": 2,
            "instances": 2,
            "batches_per_epoch": 1,  # a step on separate and one on joint labels
            "evaluate_every": 0,
        },
    },
    "cclnet": {
        "cclnet.labels": "identities",
        "cclnet.image_to_text": 0,
        "cclnet.align": {
            "epochs": 1,
            "clusters_per_batch": 2,
            "instances": 2,
            "batches_per_epoch": 2,
            "evaluate_every": 0,
        },
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few identities in the layout of SYSU-MM01, of whom the first frames are kept."""
    identities = tmp_path_factory.mktemp("identities") / "sysu"
    synthetic.write(identities, num_identities=10, seed=0)
    for folder in identities.glob("cam*/*"):
        for image in sorted(folder.iterdir())[1:]:
            image.unlink()
    return identities


@pytest.mark.parametrize(
    ("recipe", "model", "dim"),
    [
        pytest.param(VITB, {}, 768, id="TransReID-SSL", marks=pytest.mark.night),
        pytest.param(VITB, CLIP, 768, id="CLIP", marks=pytest.mark.night),  # 3 minutes
        pytest.param(
            VITB,
            CLIP | {"name": "ViT-B-16-SigLIP2"},
            768,
            id="SigLIP 2",
            marks=pytest.mark.night,
        ),
        pytest.param("bmil_sysu_dinov3.yaml", {}, 384, id="DINOv3"),
        pytest.param(CCLNET, {}, 768, id="CCLNet on CLIP", marks=pytest.mark.night),
    ],
)
def test_two_steps_and_every_protocol(
    recipe: str, model: dict[str, object], dim: int, root: Path, tmp_path: Path
) -> None:
    given = {f"model.{key}": value for key, value in model.items()}
    given |= {"model.pretrained": None, "data.root": str(root), "trainer.embed_batch": 16}
    given |= {"evaluation.start": False} | SHORT[recipe.partition("_")[0]]
    config = load_config(recipe, given)
    assert (config.model.height, config.model.width) == (256, 128)
    summary = train(config, out=tmp_path / "run", backend="local")
    assert 0 <= summary["rows"]["final"]["mAP"] <= 100
    scores = evaluate(tmp_path / "run")
    assert {"all", "indoor"} <= {part for name in scores for part in re.split("[/_-]", name)}
    from pipelines import open_encoder

    assert open_encoder(tmp_path / "run").encoder.feature_dim == dim


@pytest.mark.parametrize("recipe", MEMORY["RECIPES"])
def test_the_header_states_the_memory_that_is_counted(recipe: str) -> None:
    config = load_config(recipe, {"data.root": "unused"})
    result, precision = MEMORY["count"](config), config.trainer.precision
    header = " ".join(find_recipe(Path(recipe)).read_text().replace("\n#", " ").split())
    stated = re.search(
        r"(\d+) MiB of activations (?:an|per) image[^:]*: (?:about )?(\d+) GiB", header
    )
    assert stated is not None
    assert (round(result.mib[precision]), round(result.gib[precision])) == tuple(
        int(number) for number in stated.groups()
    )
    assert f"{result.images} images" in header
