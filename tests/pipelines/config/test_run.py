"""Configurations: a typo must not train for a night."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pipelines.config import run as configuration
from pipelines.errors import UserError
from reid_core.methods import METHODS
from reid_core.methods.cclnet.settings import Config

RECIPES = sorted((Path(configuration.__file__).parents[2] / "tune_configs").glob("*.yaml"))
RECIPES = [path for path in RECIPES if not path.name.startswith("search_")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("data: {root: /somewhere}\ncclnet: {align: {epochs: 3}}\n")
    return path


def test_file_overrides_defaults_and_arguments_override_the_file(file: Path) -> None:
    config: Any = configuration.load(
        file, ["cclnet.align.lr=0.5", "cclnet.align.lr=0.25", "seed=7"]
    )
    assert config.cclnet.align.epochs == 3
    assert config.cclnet.align.lr == 0.25
    assert config.cclnet.prepare.epochs == 120
    assert config.seed == 7


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cclnet.align.epoch=3", "did you mean epochs"),
        ("cclnet.swap.kept=0.5", "valid keys here: keep, order, start_epoch, when"),
        ("trainer.workers=2", "unknown key trainer.workers"),
        ("cclnet.swap.when=sometimes", "cclnet.swap.when"),
        ("seed=minus", "seed"),
        ("seed", "section.key=value"),
        ("augmentation.erase_fill=[true,1,1]", "erase_fill: must be a number, got true"),
        ("cclnet.align.betas=[0.9]", r"align.betas: must hold 2 values or more, got \[0\.9\]"),
        # of a shell's variable that is not set
        ("model.pretrained=", "names nothing; write null for random weights"),
        ("model.name=", "names nothing"),
        ("start_from=", "names nothing; write null for a beginning without"),
        ("ray.address= ", "names nothing; write null for the default"),
        ("ray.namespace=", "names nothing"),
        ("data.root=", "names nothing"),
        ('data.extra_roots=[""]', "names nothing"),
        ("seed.x=1", "unknown key|seed"),
        ("cclnet.align.milestones=[50, 30]", "milestones: epochs must not fall"),
        ("cclnet.align.milestones=[true]", "milestones.0: must be a valid integer, got True"),
    ],
)
def test_mistake_is_named(file: Path, override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        configuration.load(file, [override])


def test_null_is_said_with_null(file: Path) -> None:
    nothing = ["model.pretrained=null", "start_from=null", "ray.address=null"]
    config = configuration.load(file, nothing)
    assert config == configuration.load(file, dict.fromkeys(n[:-5] for n in nothing))
    assert (config.model.pretrained, config.start_from, config.ray.address) == (None, None, None)


@pytest.mark.parametrize(
    ("override", "lost"),
    [
        ("cclnet.align={lr: 0.5}", "epochs"),
        ("cclnet={align: {lr: 0.5}, flip: true}", "align.epochs"),
        ("data={kind: sysu, root: /x}", None),
        ("cclnet.align={epochs: 4}", None),
        ("cclnet.views={visible: 2}", None),
        ("cclnet={}", None),  # says that all of it is to go
    ],
)
def test_a_mapping_that_makes_a_recipes_settings_forgotten_says_so(
    file: Path, caplog: pytest.LogCaptureFixture, override: str, lost: str | None
) -> None:
    config: Any = configuration.load(file, [override])
    key, _, value = override.partition("=")
    assert configuration.load(file, {key: yaml.safe_load(value)}) == config
    said = [f"{key}={{...}} stands in place of the whole section: {lost} of {file} are forgotten"]
    assert [line[: len(said[0])] for line in caplog.messages] == (said * 2 if lost else [])
    expected = 3 if override.startswith("data") or "views" in override else 120
    assert config.cclnet.align.epochs == (4 if "epochs" in override else expected)


def test_every_mistake_is_listed_at_once(file: Path) -> None:
    with pytest.raises(UserError) as caught:
        configuration.load(file, ["sed=1", "cclnet.memory.momentum=2"])
    assert "sed" in str(caught.value)
    assert "cclnet.memory.momentum" in str(caught.value)


def test_missing_root_says_how_to_give_it(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1")
    with pytest.raises(UserError, match=r"missing key data.*pass data"):
        configuration.load(path)


def test_unknown_file_names_the_recipes() -> None:
    with pytest.raises(UserError, match="demo"):
        configuration.load(Path("no_such_recipe.yaml"))


def test_files_are_found_from_every_working_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives each worker a directory of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit.pth").touch()
    (tmp_path / "openai").touch()
    config = configuration.load(file, ["model.pretrained=vit.pth", "start_from=runs/a/stages/b"])
    assert config.model.pretrained == str(tmp_path / "vit.pth")
    assert config.start_from == tmp_path / "runs/a/stages/b"
    for name in ("openai", "lost.pth", "hf-hub:owner/name"):
        assert configuration.load(file, [f"model.pretrained={name}"]).model.pretrained == name


def sections(model: BaseModel, path: str = "") -> Iterator[tuple[str, BaseModel]]:
    """All sections below one, by their keys."""
    for name, value in model:
        if isinstance(value, BaseModel):
            yield f"{path}{name}", value
            yield from sections(value, f"{path}{name}.")


def test_one_key_of_a_section_leaves_its_others_as_they_are() -> None:
    """Keys that are not given come from the section's class: no default may say otherwise."""
    whole = configuration.validate({"data": {"root": "/somewhere"}}, source="test")
    checked = dict(sections(whole))
    assert {"bmil.views", "cclnet.refine", "trainer", "model"} <= checked.keys()
    for path, section in checked.items():
        assert path == "data" or section == type(section)(), path


@pytest.mark.parametrize("epochs", [[50, 30], [-3], [True]])
def test_a_rate_falls_at_rising_epochs_in_every_method(epochs: list[int]) -> None:
    """Any other order gives a schedule that nobody asked for (`reid_core.optim.warmup_steps`)."""
    whole = configuration.validate({"data": {"root": "/somewhere"}}, source="test")
    falling: dict[str, Any]
    falling = {path: one for path, one in sections(whole) if hasattr(one, "milestones")}
    assert {"cclnet.align", "bmil.joint", "csdn.images"} <= falling.keys()
    for path, section in falling.items():
        with pytest.raises(ValidationError, match=r"milestones"):
            type(section)(milestones=epochs)
        assert type(section)(milestones=[]).model_dump()["milestones"] == (), path


def test_dump_reads_back_equal(file: Path, tmp_path: Path) -> None:
    config = configuration.load(file, ["seed=3"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(configuration.dump(config))
    assert configuration.load(copy) == config


def test_differences_name_the_leaf(file: Path) -> None:
    old = configuration.load(file).identity()
    new = configuration.load(file, ["cclnet.memory.momentum=0.5"]).identity()
    assert configuration.differences(old, new) == ["cclnet.memory.momentum: 0.1 -> 0.5"]


def test_number_of_workers_is_not_part_of_a_runs_identity(file: Path) -> None:
    one = configuration.load(file, ["trainer.num_workers=1"]).identity()
    assert one == configuration.load(file, ["trainer.num_workers=4"]).identity()


def test_places_and_permissions_are_not_part_of_a_runs_identity(file: Path) -> None:
    before = configuration.load(file).identity()
    moved = ["data.root=/elsewhere", "data.extra_roots=/mnt"]
    allowed = ["data.allow_http=true", "data.max_unreadable=0.5"]
    assert configuration.load(file, [*moved, *allowed]).identity() == before
    for decides in ("data.max_megapixels=1", "data.fit=train", "data.kind=llcm"):
        assert configuration.load(file, [decides]).identity() != before


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["cclnet.align.schedule=cosine", "cclnet.align.warmup_epochs=5"], "align.warmup_epochs"),
        (["cclnet.align.schedule=coupled", "cclnet.align.milestones=[1]"], "align.milestones"),
        (["cclnet.prepare.coupled_share=0.1"], "prepare.coupled_share"),
        (["cclnet.align.optimizer=sgd", "cclnet.align.betas=[0.1, 0.1]"], "align.betas"),
        (["cclnet.align.optimizer=adamw", "cclnet.align.bias_lr_factor=9"], "bias_lr_factor"),
        (["cclnet.image_to_text=0", "cclnet.smoothing=0"], "cclnet.smoothing"),
        (["cclnet.matching.temperature=1"], "matching.temperature"),
        (["cclnet.matching.method=joint", "cclnet.matching.min_similarity=0.5"], "min_similarity"),
        (["cclnet.matching.method=transport", "cclnet.matching.joint_eps=0.5"], "joint_eps"),
        (["cclnet.matching.exclusion_from=3"], "matching.exclusion_from"),
        (["cclnet.swap.when=never", "cclnet.swap.keep=0.7"], "swap.keep"),
        (["method=bmil", "bmil.joint.schedule=cosine", "bmil.joint.milestones=[]"], "milestones"),
        (["method=csdn", "csdn.images.optimizer=sgd", "csdn.images.head_lr_factor=1"], "head_lr"),
        (["cclnet.refine.sharpness=3"], "refine.sharpness"),
        (["cclnet.refine.labels=voted", "cclnet.refine.sharpness=3"], "refine.sharpness"),
        (["cclnet.refine.weights=true", "cclnet.refine.hard_share=0.1"], "refine.hard_share"),
        (
            ["method=bmil", "bmil.clustering.order=alternating", "bmil.clustering.balanced=false"],
            "order",
        ),
        (
            ["method=bmil", "bmil.clustering.together=assigned", "bmil.clustering.joint_eps=0.5"],
            "joint_eps",
        ),
        (["method=bmil", "bmil.memory.banks=hard", "bmil.memory.margin=0.1"], "memory.margin"),
        (["trainer.shards=7"], "trainer.shards"),
    ],
    ids=str,
)
def test_a_setting_that_a_choice_leaves_unread_is_named_where_it_was_changed(
    tmp_path: Path, overrides: list[str], idle: str
) -> None:
    from pipelines.data import sound_settings

    path = tmp_path / "run.yaml"
    path.write_text("data: {root: /somewhere}\n")
    said = [
        line
        for line in sound_settings.check(configuration.load(path, overrides))
        if ": no effect with " in line
    ]
    assert len(said) == 1
    assert idle in said[0]
    unchanged = [override for override in overrides if override.startswith("method")]
    assert not sound_settings.check(configuration.load(path, unchanged))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_nothing_that_is_not_read(recipe: Path) -> None:
    from pipelines.data import sound_settings

    assert not sound_settings.check(configuration.load(recipe, ["data.root=/data"]))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    assert configuration.load(recipe, ["data.root=/data"]).method in METHODS


def test_the_recipe_for_eight_gpus_scales_the_papers_adam_by_the_square_root_rule() -> None:
    """Malladi et al. 2022: at k times the batch sqrt(k) lr, and 1 - beta times k."""
    paper, eight = (
        cast(Config, configuration.load(Path(recipe), ["data.root=/data"]).settings)
        for recipe in ("cclnet_sysu.yaml", "cclnet_sysu_8gpu.yaml")
    )
    for one, large in ((paper.prepare, eight.prepare), (paper.align, eight.align)):
        k = large.clusters_per_batch * large.instances / (one.clusters_per_batch * one.instances)
        assert k == 8
        assert large.optimizer == "adam"
        assert large.lr == pytest.approx(math.sqrt(k) * one.lr, rel=1e-3), "rounded to 9.9e-4"
        assert [1 - beta for beta in large.betas] == pytest.approx(
            [k * (1 - beta) for beta in one.betas]
        )
        scaled = {key: getattr(large, key) for key in ("clusters_per_batch", "lr", "betas")}
        assert large == one.model_copy(update=scaled), "and nothing else of the stage"
    stages = {"prepare": eight.prepare, "align": eight.align}
    assert eight == paper.model_copy(update=stages), (
        "the bank's momentum and stage 1 are as they were"
    )
