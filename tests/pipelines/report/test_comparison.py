"""Groups of runs: who belongs together, what is averaged, what differs; the page of a sweep."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from pipelines.data import sample_list
from pipelines.errors import UserError
from pipelines.report import comparison, heatmaps, page
from pipelines.report.run import read as read_run
from pipelines.runs import learned_prompts
from pipelines.sweep import page as sweep_page
from reid_core.models import backbones
from reid_core.models.prompts import PromptLearner
from reid_core.types import Modality, Sample, Split
from tests.pipelines.fake_run import SUMMARY, Page, draw_identity, fake_run, small_run
from tests.pipelines.trained import save_run

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a finished run: name, seed, final Rank-1 and overrides of its configuration."""

    def write(name: str, seed: int, rank1: float, **settings: float) -> Path:
        run = small_run(tmp_path / name, {"stage": "align", "epoch": 0})
        final = {"rank1": rank1, "rank5": 70.0, "rank10": 80.0, "mAP": rank1 + 1, "mINP": 20.0}
        summary = {
            "rows": {"start": {**final, "rank1": 30.0}, "align": final, "final": final},
            "protocol": SUMMARY["protocol"],
            "seed": seed,
        }
        (run / "summary.json").write_text(json.dumps(summary))
        config = {
            "method": "cclnet",
            "seed": seed,
            "data": {"kind": "sysu", "root": f"/data/{seed}"},
            "cclnet": {"image_to_text": 1.0, "swap": {"keep": 0.1}} | settings,
            "csdn": {"lambda1": seed},
            "trainer": {"num_workers": seed + 1},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        return run

    return write


def test_seeds_are_one_group_with_mean_and_sample_deviation(save: Save) -> None:
    first, second = comparison.read(
        [save("a", 0, 40.0), save("b", 1, 44.0), save("c", 0, 45.0, image_to_text=0.0)]
    )
    score = first.rows["final"]["rank1"]
    assert (score.mean, score.values) == (42.0, (40.0, 44.0))
    assert score.std == pytest.approx(np.std([40, 44], ddof=1))
    assert first.seeds == ("0", "1")
    assert second.rows["final"]["rank1"].std is None, "one run has no deviation"
    assert second.name == "cclnet.image_to_text 1.0 -> 0.0"
    assert (first.settings, second.settings) == (
        {"cclnet.image_to_text": "1.0"},
        {"cclnet.image_to_text": "0.0"},
    )


def test_what_decides_a_result_tells_groups_apart_and_nothing_else_does(save: Save) -> None:
    """Precision does; a key that an older version did not know, and a cache's size, do not."""
    runs = [save(name, seed, 40.0) for seed, name in enumerate("abc")]
    for run, section, values in (
        (runs[1], "data", {"cache_bytes": 0}),
        (runs[1], "cclnet", {"flip": False}),
        (runs[2], "trainer", {"precision": "bf16"}),
    ):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config[section] |= values
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    first, second = comparison.read(runs)
    assert first.seeds == ("0", "1")
    assert second.name == "trainer.precision fp32 -> bf16"


def test_settings_that_this_version_cannot_read_are_compared_as_written(
    save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [save("a", 0, 40.0, gone_key=1.0), save("b", 1, 44.0, gone_key=1.0)]
    (group,) = comparison.read(runs)
    assert group.seeds == ("0", "1")
    assert "b is compared by its settings as they are written" in caplog.text


def test_runs_of_other_images_are_no_seeds_of_one_data_set(
    save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [save("a", 0, 40.0), save("b", 1, 44.0)]
    split = Split((Sample("a.jpg", Modality.VISIBLE), Sample("b.jpg", Modality.VISIBLE)))
    for run in runs:
        sample_list.remember(run, split)
    comparison.read(runs)
    assert not caplog.text, "another root may be a copy"
    sample_list.remember(runs[1], split.take([0]))
    comparison.read(runs)
    assert "other training rows" in caplog.text
    assert "/data/0 and /data/1" in caplog.text
    caplog.clear()
    again = save("again", 0, 41.0)
    config = yaml.safe_load((again / "config.yaml").read_text())
    config["data"]["root"] = "/data/elsewhere"
    (again / "config.yaml").write_text(yaml.safe_dump(config))
    comparison.read([runs[0], again])
    assert "their seeds do not): /data/0 and /data/elsewhere" in caplog.text
    caplog.clear()
    for run, count in zip(runs, (5, 4), strict=True):
        shutil.rmtree(run / "evaluation", ignore_errors=True)
        (run / "rows.json.gz").unlink()
        (run / "evaluation").mkdir()
        ap = np.r_[np.ones(count), np.full(5 - count, np.nan)]
        assert (
            comparison._data_of(replace(read_run(run), rankings={"final": {"ap": ap}}))[
                "other numbers of queries"
            ]
            == count
        )


def test_table_and_page_show_the_same(save: Save, tmp_path: Path) -> None:
    groups = comparison.read(
        [save("a", 0, 40.0), save("b", 1, 44.0), save("c", 0, 45.0, image_to_text=0.0)]
    )
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(comparison.table(groups))
    text = console.export_text()
    assert "42.0 ± 2.8" in text
    assert "45.0 (+3.0)" in text
    html = comparison.write(groups, tmp_path / "c.html").read_text(encoding="utf-8")
    result = Page(html)
    assert result.open == []
    assert "http" not in html
    rows = {row[0]: row[1] for row in result.rows if len(row) == 6}
    assert "After stage 2" not in result.text, "the last stage repeats the full method"
    assert any("42.0 ± 2.8" in value for row in result.rows for value in row)
    assert any("45.0 (+3.0)" in value for row in result.rows for value in row)
    assert rows["Group"] == "Rank-1"
    assert html.count("<svg") == 2


def test_epochs_that_validation_identities_select_are_compared_as_such(
    save: Save, tmp_path: Path
) -> None:
    runs = [save("a", 0, 40.0), save("b", 1, 44.0)]
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        rows = summary["rows"]
        rows |= {"selected": {**rows["final"], "rank1": rows["final"]["rank1"] + 2}}
        (run / "summary.json").write_text(json.dumps(summary))
    groups = comparison.read(runs)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison.table(groups))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    (line,) = (line for line in lines if "Epoch best on validation identities" in line)
    assert "44.0 ± 2.8" in line
    result = Page(comparison.write(groups, tmp_path / "c.html").read_text(encoding="utf-8"))
    assert result.says("Epoch best on validation identities not the last epoch")
    assert not result.says("After selected")
    assert result.text.index("Full method") < result.text.index("Epoch best")


def test_unlike_protocols_are_not_compared(save: Save) -> None:
    run = save("b", 1, 44.0)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"protocol": "RegDB"}))
    with pytest.raises(UserError, match="different protocols"):
        comparison.read([save("a", 0, 40.0), run])


def test_runs_that_cannot_be_compared(save: Save, tmp_path: Path) -> None:
    run = save("a", 0, 40.0)
    with pytest.raises(UserError, match="two run directories"):
        comparison.read([run])
    with pytest.raises(UserError, match="given twice"):
        comparison.read([run, run])
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        comparison.read([run, tmp_path / "nothing"])
    unfinished = small_run(tmp_path / "u", {"stage": "align", "epoch": 0})
    with pytest.raises(UserError, match="has this run finished"):
        comparison.read([run, unfinished])


class TestSweep:
    def write(self, root: Path, count: int = 12) -> Path:
        """Score falls with |eps - .6|; `swap` says nothing; one trial failed."""
        root.mkdir()
        lines = []
        for number in range(count):
            eps = (0.4, 0.5, 0.6, 0.7)[number % 4]
            lines.append(
                {
                    "name": f"t{number}", "status": "finished", "seconds": 60.0,
                    "config": {"eps": eps, "swap": ("epoch", "step")[number // 4 % 2],
                               "weight": 10.0 ** (number / 4 - 1)},
                    "scores": {"rank1": 40.0, "mAP": 40 - 50 * abs(eps - 0.6)},
                }
            )  # fmt: skip
        lines.append({"name": "bad", "status": "failed", "config": lines[0]["config"],
                      "scores": {}, "seconds": 5.0, "error": "no cluster"})  # fmt: skip
        (root / "trials.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return root

    def test_the_setting_that_matters_most_comes_first(self, tmp_path: Path) -> None:
        html = sweep_page.write(self.write(tmp_path / "sweep")).read_text(encoding="utf-8")
        result = Page(html)
        assert result.open == []
        assert "http" not in html
        assert html.count("<svg") == 3
        assert result.text.index("eps") < result.text.index("swap")
        assert result.says("lie up to 10.0 points apart")
        assert result.says("no cluster")
        assert result.says("40.0 %")

    def test_is_told_from_a_run(self, tmp_path: Path) -> None:
        assert sweep_page.is_sweep(self.write(tmp_path / "sweep"))
        assert not sweep_page.is_sweep(small_run(tmp_path / "run", {"stage": "a", "epoch": 0}))

    def test_nothing_finished_is_said(self, tmp_path: Path) -> None:
        root = tmp_path / "s"
        root.mkdir()
        (root / "trials.jsonl").write_text("")
        with pytest.raises(ValueError, match="nothing to report"):
            sweep_page.write(root)
        (root / "trials.jsonl").write_text("{")
        with pytest.raises(UserError, match=r"trials\.jsonl, line 1, is no trial"):
            sweep_page.write(root)


@pytest.mark.slow
class TestWhatTheEncoderSees:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        run = fake_run(tmp_path / "run", tmp_path / "data")
        save_run(run)
        return run

    def test_page_shows_pairs_with_heat_maps(self, run: Path) -> None:
        result = Page(page.write(run).read_text(encoding="utf-8"))
        assert result.says("Where the encoder looks")
        shown = Counter(alt for alt in result.values("alt") if alt.startswith("Heat map"))
        assert shown == {
            f"Heat map of the {what}, {when}": 4
            for what in ("query", "answer")
            for when in ("start", "now")
        }, "two best and two worst queries, before and after training"
        assert result.open == []

    def test_without_a_checkpoint_they_are_left_out_with_the_reason(self, tmp_path: Path) -> None:
        run = fake_run(tmp_path / "run", tmp_path / "data")
        assert Page(page.write(run).read_text()).says("there is no checkpoint in this run")

    def test_a_damaged_checkpoint_does_not_cost_the_report(self, run: Path) -> None:
        (run / "checkpoint_0" / "state.pt").write_bytes(b"?")
        assert Page(page.write(run).read_text()).says("heat maps could not be made")

    def test_heat_colors_gray_images_where_it_is_hot(self, tmp_path: Path) -> None:
        from PIL import Image

        draw_identity(tmp_path / "a.jpg", 3, infrared=False)
        heat = np.zeros((64, 32))
        heat[:32] = 1
        with Image.open(tmp_path / "a.jpg") as image:
            shown = np.asarray(heatmaps.overlay(image.convert("RGB"), heat)).astype(int)
        assert np.ptp(shown[40:], axis=2).max() == 0, "cold stays gray"
        assert np.ptp(shown[:20], axis=2).min() > 20, "hot does not"


@pytest.mark.slow
def test_recorded_words_are_shown(tmp_path: Path) -> None:
    text = backbones.load(backbones.SMALL, "bundled").text
    ids = text.tokenize(["red woman bag trousers"])[0, 1:5]
    learner = PromptLearner(text, num_classes=9, seed=0)
    with torch.no_grad():
        learner.tokens.copy_(text.token_embedding(ids))
    run = fake_run(tmp_path / "run", tmp_path / "data")
    assert not learned_prompts.record(run, text, text), "nothing was learned there"
    assert learned_prompts.record(run, torch.nn.ModuleDict({"visible": learner}), text)
    result = Page(page.write(run).read_text(encoding="utf-8"))
    assert result.says("red 1.00 · woman 1.00 · bag 1.00 · trousers 1.00")
    assert " ".join(result.text.split()).count("trousers 1.00") == learned_prompts.NUM_SHOWN
    (run / "prompts.json").write_text("{")
    assert "learned words resemble" not in page.write(run).read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_chromium_opens_the_pages(tmp_path: Path, save: Save) -> None:
    """Wide and on a phone: nothing is reported missing, nothing is wider than the screen."""
    run = fake_run(tmp_path / "run", tmp_path / "data")
    save_run(run)
    groups = comparison.read([save("a", 0, 40.0), save("b", 1, 44.0)])
    probe = (
        "<script>document.title='W'+document.documentElement.scrollWidth+' of '+innerWidth+"
        "' broken '+[...document.images].filter(i=>!i.naturalWidth).length</script></body>"
    )
    for path in (page.write(run), comparison.write(groups, tmp_path / "c.html")):
        path.write_text(path.read_text(encoding="utf-8").replace("</body>", probe))
        for width in (1100, 500):
            command = [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
                "--virtual-time-budget=4000", "--dump-dom", path.as_uri(),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
            title = done.stdout.split("<title>")[1].split("</title>")[0]
            wide, _, rest = title.removeprefix("W").partition(" of ")
            inner, _, broken = rest.partition(" broken ")
            assert broken == "0"
            assert int(wide) <= int(inner), f"{path.name} is wider than a screen of {width}"
