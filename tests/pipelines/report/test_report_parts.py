"""Parts of the report by themselves: choice of queries, images, charts, numbers as text."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipelines.commands import training
from pipelines.report import figures, panels, ranking_panels, ranklists, scores
from pipelines.report.templates import duration
from pipelines.report.terminal import summary_table
from tests.pipelines.fake_run import SUMMARY, Page, draw_identity, epoch_line


def test_images_outside_the_root_are_refused(tmp_path: Path) -> None:
    draw_identity(tmp_path / "secret.jpg", 1, infrared=False)
    draw_identity(tmp_path / "data" / "open.jpg", 1, infrared=False)
    root = tmp_path / "data"
    assert ranklists.thumbnail(root, "open.jpg") is not None
    assert ranklists.thumbnail(root, "../secret.jpg") is None
    assert ranklists.thumbnail(root, "sub/../../secret.jpg") is None
    assert ranklists.thumbnail(root, str(tmp_path / "secret.jpg")) is None


def test_truncated_image_is_no_image(tmp_path: Path) -> None:
    draw_identity(tmp_path / "a.jpg", 1, infrared=False)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    assert ranklists.thumbnail(tmp_path, "a.jpg") is None
    assert ranklists.thumbnail(tmp_path, "") is None


def test_sixteen_bit_gray_is_shown_as_training_sees_it(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 32), 0x8000, dtype=np.uint16)).save(tmp_path / "thermal.png")
    shown = ranklists.thumbnail(tmp_path, "thermal.png")
    assert shown is not None
    content = io.BytesIO(base64.b64decode(shown.partition(",")[2]))
    assert abs(int(np.asarray(Image.open(content).convert("L")).mean()) - 128) <= 1


def test_chosen_queries_are_best_middle_and_worst_of_different_identities() -> None:
    ap = np.array([0.9, 1.0, 1.0, np.nan, 0.5, 0.1, 0.4, 0.0])
    folders = ["a", "b", "b", "x", "c", "d", "e", "d"]
    images = np.array([f"cam/{name}/{i}.jpg" for i, name in enumerate(folders)])
    best, middle, worst = ranklists.choose(ap, images, num=2)
    assert best == [1, 0], "the second picture of b waits for the first of a"
    assert worst == [7, 6], "the second picture of d waits for the first of e"
    assert middle == [4, 2], "what is free around the median 0.5"


@pytest.mark.parametrize(("num_valid", "sizes"), [(0, (0, 0, 0)), (2, (2, 0, 0)), (4, (1, 1, 1))])
def test_few_queries_are_never_shown_twice(num_valid: int, sizes: tuple[int, ...]) -> None:
    ap = np.full(6, np.nan)
    ap[:num_valid] = np.linspace(1, 0, num_valid)
    chosen = ranklists.choose(ap, np.array(["a/b.jpg"] * 6), num=3)
    assert tuple(map(len, chosen)) == sizes
    assert len({*chosen[0], *chosen[1], *chosen[2]}) == sum(sizes)


@pytest.mark.parametrize(
    ("same", "different", "words"),
    [([0, 0, 4], [5, 5, 0], "share 0 %"), ([1, 2, 1], [2, 4, 2], "share 100 %")],
)
def test_overlap_of_similarities(same: list[int], different: list[int], words: str) -> None:
    arrays = {
        "pairs": np.array(["text visible", "text text"]),
        "same_hist": np.array([same, [0, 0, 0]]),
        "different_hist": np.array([different, [1, 1, 1]]),
        "bins": np.array([-1.0, 0.0, 0.5, 1.0]),
    }
    (panel,) = ranking_panels.similarities({"final": arrays})
    assert panel.title == "Text with visible, after training", "nobody has two sentences"
    assert words in panel.words


def test_lines_whose_colors_come_round_again_differ_in_their_dashes() -> None:
    epochs = [{"stage": "images", "epoch": 0, "losses": {f"loss {i}": 1.0 for i in range(8)}}]
    series = panels._by_key(epochs, lambda epoch: epoch["losses"])
    assert len({(one.color, one.dash) for one in series}) == 8


def test_chart_has_lines_of_each_stage_and_survives_gaps() -> None:
    stages = [("prepare", 0), ("prepare", 1), ("align", 0), ("align", 1)]
    series = figures.Series("a & b", "#123456", [1.0, None, float("nan"), 2.0], start=0.5)
    svg = figures.epochs_chart(stages, [series], alt="test", least=(0, 1))
    labels = Page(svg).text.split()
    assert labels.count("1") >= 2, "epochs are counted within each stage"
    assert "Stage 0 Stage 2" in " ".join(labels)
    assert svg.count("stroke: #123456") >= 3, "a line per stage and one for the start"


def test_epoch_that_paired_nothing_is_shown() -> None:
    epochs = [{"stage": "align", "epoch": i, "pairs": count} for i, count in enumerate((0, 3))]
    (panel,) = panels.groups(epochs)
    assert Page(panel.chart).text.split().count("2") >= 1, "two epochs on the axis"


def test_outliers_are_shown_before_and_after_mining() -> None:
    epoch = {
        "stage": "train",
        "epoch": 0,
        "rows": {"visible": 40, "text": 80},
        "visible_outliers_before_mining": 10,
        "visible_outliers_after_mining": 2,
        "text_outliers_before_mining": 20,
        "text_outliers_after_mining": 4,
    }
    (panel,) = panels.groups([epoch])
    for words in ("25.0 % visible before", "5.0 % visible after", "5.0 % text after"):
        assert words in panel.words


def test_chart_of_a_long_run_stays_small() -> None:
    stages = [(stage, i) for stage in ("prepare", "prompts", "align") for i in range(120)]
    phases = {name: [1.0] * len(stages) for name in ("embed", "cluster", "step", "other")}
    assert len(figures.phase_chart(stages, phases, alt="long")) < 200_000


def test_phases_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    epochs = [epoch_line("prompts", 0, 0.0, rng), epoch_line("align", 1, 1.0, rng)]
    _, phases = panels.times(epochs)
    assert sum(phase.share for phase in phases) == pytest.approx(100)
    assert sum(phase.seconds for phase in phases) == pytest.approx(
        sum(sum(epoch["seconds"].values()) for epoch in epochs)
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.71, "+5.7"), (-1.14, "−1.1"), (0.04, "±0.0"), (-0.04, "±0.0")],  # noqa: RUF001
)
def test_difference_has_its_sign(value: float, text: str) -> None:
    assert scores.signed(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.24, "8.2 s"), (59.97, "1 min 00 s"), (245, "4 min 05 s"), (7620, "2 h 07 min")],
)
def test_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_terminal_shows_the_same_table() -> None:
    console = Console(width=80, record=True, file=io.StringIO())  # what a pipe and a job log have
    console.print(summary_table({**SUMMARY, "protocol": "[red]SYSU-MM01[/red]"}))
    lines = console.export_text(clear=False).splitlines()
    final = next(line for line in lines if "Full method" in line)
    assert final.split()[:4] == ["Full", "method", "38.2", "+5.7"]
    assert "…" not in console.export_text(clear=False)
    assert any("[red]SYSU-MM01[/red]" in line for line in lines), "no markup from a summary"


def test_what_validation_identities_select_is_no_stage() -> None:
    """It stands after the last epoch's scores, which a run reports, unless it is that epoch."""
    selected = {**SUMMARY["rows"]["final"], "rank1": 39.0}
    summary = {**SUMMARY, "rows": {"selected": selected} | SUMMARY["rows"]}
    *_, full, last = scores.rows(summary)
    assert full.key == "final"
    assert (last.title, last.note) == (
        "Epoch best on validation identities",
        "not the last epoch",
    )
    assert last.cells[0].value == "39.0"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(summary))
    text = console.export_text()
    assert "After selected" not in text
    assert text.index("Full method") < text.index("Epoch best on") < text.index("39.0")
    same = {**SUMMARY, "rows": {"selected": SUMMARY["rows"]["final"]} | SUMMARY["rows"]}
    assert [row.key for row in scores.rows(same)] == ["chance", "start", "prepare", "final"]
    assert scores.rows(same)[-1].note == "after the last epoch, best on validation identities"


def test_the_terminal_says_that_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(training, "say", lines.append)
    training.show({"rows": {}, "chance": {"rank1": None}, "seconds": {"train": 1.0}}, tmp_path)
    assert lines[0].startswith("nothing was measured: ")
    assert len(lines) == 2, "no empty table"


def test_terminal_table_of_an_unfinished_run_is_empty() -> None:
    assert summary_table({}).row_count == 0
