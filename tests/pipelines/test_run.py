"""The whole path on a real local Ray: train, evaluate, repeat, refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from pipelines.config.run import RunConfig
from pipelines.data import sound_settings
from pipelines.data.inputs import Inputs
from pipelines.data.unreadable import find_unreadable
from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.report import page
from pipelines.runs import checkpoint, recovery, runlog
from pipelines.runs.records import SpeedRecord
from pipelines.training import calibrating, driver, in_process
from pipelines.training.driver import train
from reid_core.types import Modality, Sample, Split
from tests.pipelines import small_runs


def read_everything(inputs: Inputs, modality: Modality) -> list[tuple[int, str]]:
    return find_unreadable(inputs, modality, range(inputs.num_rows(modality)))


@pytest.fixture(scope="module")
def finished(
    local_ray: None, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], RunConfig]:
    """A run of all three stages with two workers."""
    config = make_config("cclnet.align.epochs=2")
    run_dir = tmp_path_factory.mktemp("runs") / "two-workers"
    summary = train(config, run_dir, ["crossreid", "train"])
    return run_dir, summary, config


@pytest.mark.ray
class TestTrainingOnRay:
    def test_leaves_everything_that_a_run_should(self, finished: tuple) -> None:
        run_dir, summary, _ = finished
        stages = [(line["stage"], line["epoch"]) for line in runlog.read_metrics(run_dir)]
        assert stages == [("prepare", 0), ("prompts", 0), ("align", 0), ("align", 1)]
        assert list(summary["rows"]) == ["start", "prepare", "align", "final"]
        assert summary["rows"]["final"] == summary["rows"]["align"]
        assert json.loads((run_dir / runlog.SUMMARY).read_text()) == summary
        assert {"torch", "ray", "machine", "command"} <= json.loads(
            (run_dir / runlog.ENVIRONMENT).read_text()
        ).keys()
        assert (run_dir / "evaluation" / "final.npz").is_file()
        assert "is missing" not in page.write(run_dir).read_text()

    def test_epochs_tell_their_phases(self, finished: tuple) -> None:
        line = list(runlog.read_metrics(finished[0]))[-1]
        phases = {"embed", "cluster", "match", "plan", "input", "step", "checkpoint", "evaluate"}
        assert phases <= line["seconds"].keys()
        assert all(seconds >= 0 for seconds in line["seconds"].values())

    def test_epochs_tell_their_speed_of_both_workers(self, finished: tuple) -> None:
        lines = list(runlog.read_metrics(finished[0]))
        for line in lines:
            assert line["speed"].keys() == SpeedRecord.__annotations__.keys()
            assert sum(line["speed"]["share"].values()) == pytest.approx(1)
            assert line["speed"]["flops_per_step"] > 0
        # three batches of four clusters, four images of each, per modality
        seconds, speed = lines[-1]["seconds"], lines[-1]["speed"]
        images = speed["images_per_s"] * (seconds["input"] + seconds["step"])
        assert images == pytest.approx(3 * 4 * 4 * 2)
        assert speed["share"].keys() >= {"embed", "cluster", "input", "step"}
        assert lines[1]["stage"] == "prompts"  # on cached features
        assert lines[1]["speed"]["images_per_s"] is None

    @pytest.mark.slow
    def test_a_finished_run_without_rays_list_is_finished_still(
        self, finished: tuple, tmp_path: Path
    ) -> None:
        """As one process leaves it: no epoch is left, and the summary says what it said."""
        run_dir, summary, config = finished
        shutil.copytree(run_dir, tmp_path / run_dir.name)
        (tmp_path / run_dir.name / recovery.RECORD).unlink()
        again = train(config, tmp_path / run_dir.name, ["crossreid", "train"])
        for key in ("rows", "evaluation", "chance"):
            assert again[key] == summary[key]

    @pytest.mark.slow
    def test_two_workers_take_the_steps_of_a_single_process(
        self, finished: tuple, tmp_path: Path
    ) -> None:
        run_dir, _, config = finished
        prepared = small_runs.prepare_data(config, read_everything)
        here = tmp_path / "one"
        in_process.fit(config, prepared, here, device=torch.device("cpu"), readers=2)
        # Later epochs may cluster a borderline row differently; the first one may not.
        first, other = (next(runlog.read_metrics(one)) for one in (here, run_dir))
        assert {k: first[k] for k in ("rows", "clusters", "outliers")} == {
            k: other[k] for k in ("rows", "clusters", "outliers")
        }
        assert first["losses"] == pytest.approx(other["losses"], rel=1e-3)

    def test_checkpoint_measures_as_the_run_did(self, finished: tuple, tree: Path) -> None:
        run_dir, summary, _ = finished
        # other batches round otherwise: near-equal similarities may change places
        result = evaluate_checkpoint(run_dir, kind="sysu", root=tree, split="test")
        assert result.headline == pytest.approx(summary["rows"]["final"], abs=0.05)
        assert len(result.table) == 4

    @pytest.mark.slow
    def test_a_finished_run_is_not_trained_again(self, finished: tuple) -> None:
        run_dir, summary, config = finished
        before = checkpoint.content_hash(checkpoint.load(checkpoint.find(run_dir)))
        lines = list(runlog.read_metrics(run_dir))
        again = train(config, run_dir, ["crossreid", "train"])
        assert again["rows"] == summary["rows"]
        assert list(runlog.read_metrics(run_dir)) == lines
        assert checkpoint.content_hash(checkpoint.load(checkpoint.find(run_dir))) == before

    def test_a_used_name_with_another_configuration_is_refused(
        self, finished: tuple, make_config: Callable[..., RunConfig]
    ) -> None:
        with pytest.raises(UserError, match=r"cclnet\.memory\.momentum: 0\.1 -> 0\.5"):
            train(
                make_config("cclnet.align.epochs=2", "cclnet.memory.momentum=0.5"), finished[0], []
            )

    @pytest.mark.slow
    def test_it_is_calibrated_on_what_a_worker_had(
        self, finished: tuple, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_dir, _, config = finished
        evaluation = config.evaluation.model_copy(update={"calibrate": True})
        train(config.model_copy(update={"evaluation": evaluation}), run_dir, [])
        assert calibrated.load(run_dir) is not None
        monkeypatch.setattr(calibrating, "_LONGEST_WAIT_S", 1)
        (checkpoint.find(run_dir) / calibrated.FILE).unlink()
        large = config.trainer.model_copy(update={"cpus_per_worker": 500})
        said = driver._calibrated(config.model_copy(update={"trainer": large}), run_dir)
        assert said == "the cluster had no room for it within 1 s"

    @pytest.mark.slow
    def test_no_cluster_stops_with_the_remedy(
        self, local_ray: None, make_config: Callable[..., RunConfig], tmp_path: Path
    ) -> None:
        config = make_config(
            "cclnet.clustering.min_samples=500",
            "cclnet.image_to_text=0",
            "evaluation.start=false",
            "trainer.max_failures=2",
        )
        with pytest.raises(
            UserError, match=r"no cluster in the visible modality.*min_samples"
        ) as e:
            train(config, tmp_path / "run", [])
        path = tmp_path / "run/failures/rank-0-attempt-1.txt"
        assert str(e.value).splitlines()[-1].endswith(f"; all of it: {path}")
        text = path.read_text()
        assert "in align, epoch 1, step 0" in text
        assert "Traceback" in text
        assert not list(path.parent.glob("*-attempt-2.txt"))  # it would be the same again


class TestBadInput:
    def test_missing_folder(self, make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is not a folder"):
            small_runs.prepare_data(make_config(root=tmp_path / "nowhere"), read_everything)

    def test_folder_of_another_layout(
        self, make_config: Callable[..., RunConfig], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="no readable sysu"):
            small_runs.prepare_data(make_config(root=tmp_path), read_everything)

    def test_empty_modality(
        self, make_config: Callable[..., RunConfig], tree: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "sysu"
        shutil.copytree(tree, copy)
        for camera in ("cam3", "cam6"):
            for image in (copy / camera).rglob("*.jpg"):
                image.unlink()
        with pytest.raises(UserError, match="infrared"):
            small_runs.prepare_data(make_config(root=copy), read_everything)

    @pytest.mark.parametrize("allowed", [0.0, 0.01])
    def test_truncated_image(
        self,
        make_config: Callable[..., RunConfig],
        tree: Path,
        tmp_path: Path,
        allowed: float,
    ) -> None:
        copy = tmp_path / "sysu"
        shutil.copytree(tree, copy)
        whole = small_runs.prepare_data(make_config(root=copy), read_everything)
        victim = whole.train.samples[7].image
        (copy / victim).write_bytes((copy / victim).read_bytes()[:150])
        config = make_config(f"data.max_unreadable={allowed}", root=copy)
        if not allowed:
            with pytest.raises(UserError, match=victim):
                small_runs.prepare_data(config, read_everything)
            return
        left = small_runs.prepare_data(config, read_everything)
        assert len(left.train) == len(whole.train) - 1
        assert victim in left.unreadable[0]
        assert victim not in [sample.image for sample in left.train.samples]

    def test_batch_that_workers_cannot_share(self, make_config: Callable[..., RunConfig]) -> None:
        with pytest.raises(UserError, match=r"= 16 cannot be shared by trainer.num_workers=3"):
            sound_settings.check(make_config("trainer.num_workers=3"))

    @pytest.mark.parametrize(
        ("workers", "message"),
        [
            (("trainer.num_workers=2", "trainer.min_workers=4"), "min_workers=4 is more than"),
            (
                ("trainer.num_workers=4", "trainer.min_workers=2"),
                r"num_workers=3 \(min_workers=2 allows that\)",
            ),
            (
                ("trainer.num_workers=4", "trainer.min_workers=3", "trainer.strict=true"),
                r"shards=4 cannot be shared by trainer.num_workers=3",
            ),
        ],
    )
    def test_fewer_workers_must_share_the_batch_too(
        self, make_config: Callable[..., RunConfig], workers: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            sound_settings.check(make_config(*workers))
        sound_settings.check(make_config("trainer.num_workers=2", "trainer.min_workers=1"))

    def test_choosing_on_identities_that_are_trained_on(
        self, make_config: Callable[..., RunConfig]
    ) -> None:
        with pytest.raises(UserError, match=r"data\.fit=train"):
            sound_settings.check(make_config("evaluation.split=val"))

    def test_setting_without_effect_is_said(self, make_config: Callable[..., RunConfig]) -> None:
        said = sound_settings.check(make_config("cclnet.swap.start_epoch=60"))
        assert any("never coupled" in line for line in said)

    def test_full_disk_is_found_before_training(
        self, make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: Any
    ) -> None:
        from pipelines.data.room import check_disk

        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(UserError, match=r"GiB free.*lower trainer\.keep_checkpoints"):
            check_disk(make_config(), [tmp_path], 10**6)

    def test_a_run_that_fitted_fits_whatever_it_has_written(
        self, make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: Any
    ) -> None:
        from pipelines.data.room import check_disk

        # weights and two moments; 2 are kept, 3 stages, 3 while they are written
        config, room = make_config(), 3 * 10**6 * (2 + 3 + 3) + 64 * 2**20
        usage = SimpleNamespace(free=room)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        check_disk(config, [tmp_path / "run"], 10**6)
        for name in ("checkpoint_0/state.pt", "checkpoint_1/state.pt", "within_epoch.pt"):
            file = tmp_path / "run" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(10**6))
            usage.free -= 10**6
            check_disk(config, [tmp_path / "run"], 10**6)
        (tmp_path / "run" / "stages" / "prepare").mkdir(parents=True)  # and that is written
        usage.free -= 3 * 10**6
        check_disk(config, [tmp_path / "run"], 10**6)
        usage.free -= 10**6  # of somebody else
        with pytest.raises(UserError, match=r"GiB free, beside the .* of its own; the checkpoints"):
            check_disk(config, [tmp_path / "run"], 10**6)

    def test_runs_of_which_each_keeps_its_own_need_room_for_all(
        self, make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: Any
    ) -> None:
        from pipelines.data.room import check_disk

        usage = type("Usage", (), {"free": 3 * 10**6 * (2 * (2 + 3) + 3) + 64 * 2**20})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        check_disk(make_config(), [tmp_path / "a", tmp_path / "b"], 10**6)
        with pytest.raises(UserError, match="the checkpoints of 3 runs need"):
            check_disk(make_config(), [tmp_path / "a", tmp_path / "b", tmp_path / "c"], 10**6)

    def test_a_run_that_is_done_needs_no_room(
        self, make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: Any
    ) -> None:
        from pipelines.data.room import check_disk

        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        progress = {"stage": "prompts", "epoch": 0}
        checkpoint.save(tmp_path / "checkpoint_0", {"progress": progress})  # type: ignore[typeddict-item]
        with pytest.raises(UserError, match="GiB free"):
            check_disk(make_config(), [tmp_path], 10**6)
        progress = {"stage": "align", "epoch": 0}
        checkpoint.save(tmp_path / "checkpoint_1", {"progress": progress})  # type: ignore[typeddict-item]
        check_disk(make_config(), [tmp_path], 10**6)

    def test_unwritable_run_directory(
        self, make_config: Callable[..., RunConfig], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot write to .*file/run"):
            runlog.claim(tmp_path / "file" / "run", make_config(), [])

    def test_too_little_shared_memory(self, monkeypatch: Any) -> None:
        from pipelines.cluster import session

        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(UserError, match="crossreid doctor"):
            session._check_shared_memory()


def test_ray_that_does_not_start_stops_with_the_remedy(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.cluster import session

    def late(**_: Any) -> None:
        raise Exception("The current node timed out during startup")  # as Ray does

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    remedies = r"(?s)timed out.*per core.*GiB free.*`ray status`"
    with pytest.raises(UserError, match=remedies), session.session(make_config()):
        pass


@pytest.mark.slow
def test_identity_ids_change_nothing(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Every id of the training set permuted: bit-identical losses and weights."""
    config = make_config("evaluation.start=false")
    prepared = small_runs.prepare_data(config, read_everything)
    shuffled = np.random.default_rng(0).permutation(prepared.train.pids)
    identities = Split(
        tuple(
            Sample(sample.image, sample.modality, int(pid), sample.camera)
            for sample, pid in zip(prepared.train.samples, shuffled, strict=True)
        )
    )
    renamed = replace(prepared, train=identities)
    for name, given in (("one", prepared), ("other", renamed)):
        in_process.fit(config, given, tmp_path / name, device=torch.device("cpu"), readers=2)
    one, other = (list(runlog.read_metrics(tmp_path / name)) for name in ("one", "other"))
    assert [line["losses"] for line in one] == [line["losses"] for line in other]
    assert one[-1]["scores"] == other[-1]["scores"]
