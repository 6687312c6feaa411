"""What is wrong is found before any work; what cannot be measured is said and trained without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pipelines import cli
from pipelines.config.run import RunConfig
from pipelines.data import gate, listed, prepare
from pipelines.data.measurable import measurable, why_unmeasured
from pipelines.data.sample_list import remember
from pipelines.errors import UserError
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.runs import runlog
from reid_core.datasets import folder, synthetic
from reid_core.models import backbones
from reid_core.types import Modality, Sample, Split
from tests.pipelines.trained import save_run

IMAGES = (Modality.VISIBLE, Modality.INFRARED)

Make = Callable[..., RunConfig]


def draw(root: Path, *images: str) -> Path:
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32)).save(root / image)
    return root


def pairs(split: str, *names: str) -> list[str]:
    return [f"{split}/{m}/{name}/1.jpg" for m in ("visible", "infrared") for name in names]


def test_a_sound_run_passes_and_says_what_it_would_measure(
    make_config: Make, tmp_path: Path
) -> None:
    lines = gate.describe({tmp_path / "run": make_config()})
    assert lines[0].startswith("train: ")
    assert any(
        line.startswith("sysu/all_single/infrared_to_visible: ") and line.endswith("have a match")
        for line in lines
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([*pairs("train", "a"), *pairs("test", "a")], "train and test share 1 identities"),
        (pairs("train", "a")[:1], "has no infrared rows to train on"),
        (pairs("test", "a"), "has no training rows"),
    ],
)
def test_a_data_set_that_cannot_be_trained_on_is_refused(
    make_config: Make, tmp_path: Path, images: list[str], message: str
) -> None:
    config = make_config("data.kind=folder", root=draw(tmp_path / "data", *images))
    with pytest.raises(UserError, match=message):
        gate.check(config, tmp_path / "run")


def test_shared_identities_are_allowed_by_a_setting(make_config: Make, tmp_path: Path) -> None:
    root = draw(tmp_path / "data", *pairs("train", "a"), *pairs("test", "a"))
    config = make_config("data.kind=folder", "data.allow_shared_identities=true", root=root)
    passed = gate.check(config, tmp_path / "run")
    assert set(passed.train.pids) == set(passed.dataset.test.pids)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (["test/visible/1.jpg", "test/infrared/1.jpg"], "pids of the queries"),
        (["test/visible/b/1.jpg", "test/infrared/c/1.jpg"], "has a match in the gallery"),
        (["test/visible/b/1.jpg"], "needs infrared test images"),
        ([], "there are no identities"),
    ],
)
def test_what_cannot_be_measured_is_said_and_does_not_stop_training(
    make_config: Make, tmp_path: Path, test: list[str], reason: str
) -> None:
    root = draw(tmp_path / "data", *pairs("train", "a"), *test)
    assert reason in why_unmeasured("folder", folder.read(root).test, IMAGES)
    run = {tmp_path / "run": make_config("data.kind=folder", root=root)}
    assert gate.describe(run)[-2].startswith("training without evaluation: of the test split")


def test_a_run_whose_image_is_gone_is_refused_before_any_machine_starts(
    make_config: Make, tmp_path: Path
) -> None:
    images = draw(tmp_path / "data", *pairs("train", "a", "b"), *pairs("test", "c"))
    config, run = make_config("data.kind=folder", root=images), tmp_path / "run"
    runlog.claim(run, config, [])
    remember(run, listed.fit_rows(listed.read(config), config))
    (run / "within_epoch.pt").touch()
    gate.check(config, run)
    (images / "train/visible/b/1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 are gone: train/visible/b/1\.jpg"):
        gate.check(config, run)


def test_a_broken_list_of_counts_is_refused_before_any_machine_starts(
    make_config: Make, tmp_path: Path
) -> None:
    root = tmp_path / "sysu"
    synthetic.write(root, num_identities=6, seed=1, height=32)
    (root / "expected.json").write_text("{")
    with pytest.raises(UserError, match=r"expected\.json"):
        gate.check(make_config(root=root), tmp_path / "run")


def test_what_an_encoder_does_not_embed_is_not_measured(tmp_path: Path) -> None:
    """Rows of sentences, and an encoder of images alone: a score would be of no features at all."""
    rows = [Sample("v", Modality.VISIBLE, 1), Sample("v", Modality.TEXT, 1, caption="a man")]
    split = Split(tuple(rows))
    assert "compares text rows, the encoder embeds" in why_unmeasured("cuhk", split, IMAGES)
    assert why_unmeasured("cuhk", split, tuple(Modality)) == ""
    synthetic.write(tmp_path / "d", num_identities=6, seed=1, height=32, layout="cuhk")
    with pytest.raises(UserError, match="compares text rows"):
        evaluate_checkpoint(save_run(tmp_path / "run"), kind="cuhk", root=tmp_path / "d")


def test_queries_without_a_match_are_counted() -> None:
    rows = [("v", Modality.VISIBLE, 1), ("i", Modality.INFRARED, 1), ("j", Modality.INFRARED, 2)]
    split = Split(tuple(Sample(*row) for row in rows))
    counts = measurable("folder", split, IMAGES)["folder/all/infrared_to_visible"]
    assert (counts.matched, counts.total) == (1, 2)


def test_selection_by_identities_that_cannot_be_judged_is_refused(
    make_config: Make, tmp_path: Path
) -> None:
    root = draw(
        tmp_path / "data", *pairs("train", "a"), "val/visible/b/1.jpg", "val/infrared/c/1.jpg"
    )
    config = make_config("data.kind=folder", "data.fit=train", "evaluation.select=val", root=root)
    with pytest.raises(UserError, match=r"evaluation\.select=val: of the validation split none of"):
        gate.check(config, tmp_path / "run")


def test_sentences_train_in_pairs_and_may_ask_without_an_image(
    make_config: Make, tmp_path: Path
) -> None:
    lines = ["image,modality,pid,caption,split"]
    lines += [f"{i}.png,visible,{i},a red coat,train" for i in range(3)]
    lines += ["9.png,visible,9,,gallery", ",text,9,a man in blue,query"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    chosen = "method=cpcl", "data.kind=manifest"
    config = make_config(*chosen, root=tmp_path)
    dataset = listed.read(config)
    gate.check(config, tmp_path / "run")
    asked, learned = (prepare.inputs_of(s, tmp_path, config) for s in (dataset.test, dataset.train))
    assert asked.num_rows(Modality.TEXT) == 1
    assert asked.owners is None
    assert learned.owners.tolist() == [0, 1, 2]
    (tmp_path / "manifest.csv").write_text("\n".join([*lines, "8.png,text,8,a hat,train"]))
    with pytest.raises(UserError, match=r"1 training captions describe no training image, as 8"):
        gate.check(config, tmp_path / "run")


def test_weights_that_are_not_finite_are_named(make_config: Make, tmp_path: Path) -> None:
    state = backbones.load("crossreid-small", None).model.state_dict()
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = state[name] * float("nan")
    torch.save(state, tmp_path / "bad.pt")
    config = make_config(f"model.pretrained={tmp_path / 'bad.pt'}")
    with pytest.raises(UserError, match="not finite"):
        gate.check(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=timm/vit_tiny_patch16_224.augreg_in21k"], "model.pretrained=augreg_in21k"),
        (["model.name=timm/convnext_atto"], "no encoder can be made of a ConvNeXt"),
        (["model.name=timm/resnetblur18"], "resnetblur18 cannot embed an image of 64 x 32"),
        (["model.height=255"], "multiples of 16"),
        (["model.name=crossreid-small-vit", "model.lora_rank=999"], "cannot have a higher rank"),
        (["model.name=crossreid-small-vit", "model.pretrained=here.pth"], "here.pth: no such file"),
        (["model.name=timm/resnet18"], "cclnet.image_to_text=0 leaves the texts out"),
    ],
)
def test_an_encoder_that_cannot_be_made_stops_a_run_before_it_begins(
    make_config: Make, tmp_path: Path, overrides: list[str], message: str
) -> None:
    texts = [] if "texts" in message else ["cclnet.image_to_text=0"]
    with pytest.raises(UserError, match=message):
        gate.check(make_config(*overrides, *texts), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_under_a_name_with_a_tag_goes_on_under_it(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config(
        "model.name=timm/vit_tiny_patch16_224.augreg_in21k", "cclnet.image_to_text=0"
    )
    with pytest.raises(UserError, match="names weights too"):
        gate.check(config, tmp_path / "run")
    runlog.claim(tmp_path / "run", config, [])
    (tmp_path / "run" / "checkpoint_0").mkdir()
    gate.check(config, tmp_path / "run")


def test_a_transformer_does_not_start_from_a_resnet(make_config: Make, tmp_path: Path) -> None:
    start = save_run(tmp_path / "resnet")
    config = make_config(f"start_from={start}", "model.name=crossreid-small-vit")
    expected = r"(?s)must agree:.*model\.name: crossreid-small -> crossreid-small-vit"
    with pytest.raises(UserError, match=expected):
        gate.check(config, tmp_path / "run")


def test_random_weights_are_warned_of(
    make_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for pretrained, warned in (("null", True), ("bundled", False)):
        caplog.clear()
        gate.check(make_config(f"model.pretrained={pretrained}"), tmp_path / "run")
        assert ("begins with random weights" in caplog.text) is warned
    caplog.clear()
    random = make_config("model.pretrained=null")
    runlog.claim(tmp_path / "run", random, [])
    (tmp_path / "run" / "checkpoint_0").mkdir()
    gate.check(random, tmp_path / "run")
    assert "random weights" not in caplog.text  # it goes on with its own


def test_a_transform_that_no_view_does_is_warned_of(
    make_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate.check(make_config("augmentation.mix=0.5", "augmentation.grayscale=0.3"), tmp_path / "run")
    assert "no effect" not in caplog.text
    more = ("augmentation.grayscale=0.3", "augmentation.mix=0.5", "cclnet.views={visible: 2}")
    gate.check(make_config(*more), tmp_path / "run")
    assert "augmentation.grayscale=0.3: no effect with the views of method cclnet" in caplog.text
    assert "augmentation.mix" not in caplog.text


@pytest.mark.parametrize("std", [[0.5, 0.5, 0.5], [0.229, 0.224, 0.225]])
def test_what_the_weights_were_not_trained_on_is_warned_of(
    make_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, std: list[float]
) -> None:
    """Mean and deviation where either differs, and a size that is not the weights' own."""
    name = "timm/resnet18"
    torch.save(backbones.load(name).model.state_dict(), tmp_path / "model.pth")
    notes = {"mean": [0.485, 0.456, 0.406], "std": std, "input_size": [3, 64, 32]}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": notes}))
    given = [f"model.name={name}", f"model.pretrained={tmp_path / 'model.pth'}"]
    given += ["model.pixels=imagenet", "cclnet.image_to_text=0"]
    gate.check(make_config(*given), tmp_path / "run")
    assert ("model.pixels=imagenet: the weights" in caplog.text) == (std[0] == 0.5)
    assert "images of" not in caplog.text
    gate.check(make_config(*given, "model.height=96"), tmp_path / "run")
    assert "model.height=96, width=32" in caplog.text
    assert "trained on images of 64 x 32" in caplog.text


@pytest.mark.parametrize("method", ["csdn", "cpcl"])
def test_a_method_that_needs_texts_refuses_a_model_without(
    make_config: Make, tmp_path: Path, method: str
) -> None:
    layout = {"csdn": "sysu", "cpcl": "cuhk"}[method]
    given = [f"method={method}", f"data.kind={layout}", "model.name=timm/resnet18"]
    expected = rf"method {method} compares .*'timm/resnet18' has no text tower of CLIP's own kind"
    with pytest.raises(UserError, match=expected):
        gate.check(make_config(*given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_checks_and_trains_nothing(tree: Path, tmp_path: Path) -> None:
    command = [
        "train",
        "demo.yaml",
        f"data.root={tree}",
        "--out",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    assert "nothing stands in the way" in result.output
    assert not (tmp_path / "run").exists()
