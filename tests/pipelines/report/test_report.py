"""The report says what the run recorded, in one file that loads nothing."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from pipelines.report import ranking_panels, ranklists, run_warnings
from pipelines.report.run import read
from pipelines.runs import warned
from tests.pipelines.fake_run import Page, html_of, small_run


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return html_of(run_dir)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_page_is_one_file_that_loads_nothing(html: str, page: Page) -> None:
    assert "http" not in html
    assert "@import" not in html
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.values("src"))
    assert all(target.startswith("#") for target in page.values("href"))


def test_elements_are_closed_and_ids_unique_and_found(html: str, page: Page) -> None:
    assert page.open == []
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1
    used = {piece.split(")")[0] for piece in html.split("url(#")[1:]}
    used |= {target.removeprefix("#") for target in page.values("href")}
    assert used <= set(ids)


def test_main_table_shows_scores_and_differences_to_the_start(page: Page) -> None:
    table = {row[0]: row[1:] for row in page.rows if len(row) == 6}
    assert table["Chance guessing"] == ["1.2", "–", "–", "–", "–"]  # noqa: RUF001
    assert table["Start before training"] == ["32.5", "60.1", "72.3", "29.6", "15.2"]
    assert table["After stage 0 prepare alone"][0] == "31.4 −1.1"  # noqa: RUF001
    assert table["Full method after the last epoch"] == [
        "38.2 +5.7", "68.2 +8.1", "79.4 +7.1", "37.7 +8.1", "22.9 +7.7",
    ]  # fmt: skip
    assert "After stage 2 align alone" not in table, "equals the full method: shown once"


def test_page_tells_protocol_stages_counts_and_how_to_repeat(page: Page) -> None:
    assert page.says("the first answer is right for 38.2 % of the queries; before training it was")
    assert page.says("each camera contributes one picture per person")
    assert page.says("4,800 visible pictures and 3,600 infrared pictures")
    assert page.says("Training went through three stages.")
    assert page.says("no identity labels, no pairs")
    assert page.says("known because these people are generated; never used in training")
    assert page.says("crossreid demo --out runs/demo --seed 7")
    assert page.says("Peak memory of a GPU: 5.0 GiB")
    assert page.says("align.swap.when epoch")
    assert page.says("stems [visible, infrared]"), "as on a command line"
    assert page.says("trial null")
    assert page.says("extra_roots []")
    assert page.says("which is of the first gallery that is drawn")
    assert page.says("38.2 ± 1.3")
    assert page.says("4 March 2026, 09:05 UTC")
    assert page.classes()["left-out"] == 2, "heat maps and calibration"
    assert page.says("heat maps need the trained encoder, and there is no checkpoint in this run")


def test_what_precedes_training_is_called_what_it_is(page: Page) -> None:
    """It is the gate, the wait for machines and reading; the start is scored while it trains."""
    assert page.says(
        "The whole run Draw the people 41.2 s Check and prepare 6.0 s Train 5 min 13 s"
    )


def test_every_quantity_has_its_chart(page: Page) -> None:
    charts = page.values("aria-label")
    assert charts == [
        "Loss by epoch, Stage 0 prepare",
        "Loss by epoch, Stage 1 prompts",
        "Loss by epoch, Stage 2 align",
        "Groups found by epoch",
        "Pictures left out, % by epoch",
        "Paired groups by epoch",
        "Mutual nearest groups by epoch",
        "Agreement with the people (ARI) by epoch",
        "Purity of the groups by epoch",
        "Matching accuracy by epoch",
        "Pictures drawn together rightly by epoch",
        "Scores by epoch",
        "CMC",
        "Similarities, Infrared with visible, at the start",
        "Similarities, Infrared with visible, after training",
        "Seconds per phase and epoch",
    ]


def test_rank_lists_mark_right_and_wrong_by_symbol_as_well(run_dir: Path, page: Page) -> None:
    classes = page.classes()
    num_answers = 3 * ranklists.NUM_QUERIES_PER_GROUP * ranklists.NUM_ANSWERS
    frames = Counter(attrs.get("class") for tag, attrs in page.elements if tag == "li")
    assert classes["rank-list"] == 3 * ranklists.NUM_QUERIES_PER_GROUP
    assert frames["right"] + frames["wrong"] == num_answers
    assert page.text.count("✓") == frames["right"] + 1, "one in the explanation"
    assert page.text.count("✗") == frames["wrong"] + 1
    final = read(run_dir).rankings["final"]
    best, middle, worst = ranklists.choose(final["ap"], final["query_images"], num=3)
    shown = final["top_correct"][best + middle + worst, : ranklists.NUM_ANSWERS]
    assert frames["right"] == shown.sum()


def test_same_run_gives_the_same_charts(run_dir: Path) -> None:
    rankings = read(run_dir).rankings
    assert ranking_panels.retrieval(rankings) == ranking_panels.retrieval(rankings)
    assert ranking_panels.similarities(rankings) == ranking_panels.similarities(rankings)


def test_a_finished_run_without_evaluation_says_so(tmp_path: Path) -> None:
    """Its summary has a place for the chance, and nothing in it."""
    run = small_run(tmp_path, {"stage": "train", "epoch": 0})
    summary = {"rows": {}, "chance": {"rank1": None}, "seconds": {"train": 1.0}, "evaluation": {}}
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(html_of(run))
    assert page.says("nothing was measured: the data set holds nothing that")
    assert not page.says("has not finished")
    assert not page.says("guessing")


def test_a_protocol_that_draws_no_gallery_has_no_deviation(tmp_path: Path) -> None:
    """As in the terminal: a deviation of zero in every score is none."""
    run = small_run(tmp_path, {"stage": "train", "epoch": 0})
    mean = {"rank1": 50.0, "mAP": 40.0}
    evaluation = {
        "cuhk/all/text->visible": {"mean": mean, "std": {"rank1": 0.0, "mAP": 0.0}},
        "sysu/all/infrared->visible": {"mean": mean, "std": {"rank1": 0.0, "mAP": 0.3}},
    }
    (run / "summary.json").write_text(json.dumps({"rows": {}, "evaluation": evaluation}))
    table = {row[0]: row[1:] for row in Page(html_of(run)).rows if len(row) == 8}
    assert table["cuhk/all/text->visible"] == ["50.0", "", "", "40.0", "", "", ""]
    assert table["sysu/all/infrared->visible"][:4] == ["50.0 ± 0.0", "", "", "40.0 ± 0.3"]


def test_a_number_and_its_percent_sign_stay_on_one_line(html: str) -> None:
    """Of what is said beside the charts and above the table."""
    assert "At the end precision 50\u00a0%, recall 50\u00a0%." in html
    assert "right for 38.2\u00a0% of the queries" in html


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("2026-03-04T01:05:00+02:00", "3 March 2026, 23:05 UTC"),
        ("2026-03-04T01:05:00", "4 March 2026, 01:05"),
        ("yesterday", "yesterday"),
    ],
)
def test_the_start_has_its_time_zone_where_it_is_known(
    tmp_path: Path, started: str, shown: str
) -> None:
    run = small_run(tmp_path, {"stage": "train", "epoch": 0})
    (run / "environment.json").write_text(json.dumps({"started": started}))
    page = Page(html_of(run))
    assert page.says(f"Started {shown} ")


def test_what_a_run_warned_of_stands_on_its_page_once(tmp_path: Path) -> None:
    epochs = [
        {"stage": "align", "epoch": number, "warnings": ["few clusters", f"lost {number}"]}
        for number in (0, 1)
    ]
    run = small_run(tmp_path, *epochs)
    assert "warnings" not in Page(html_of(small_run(tmp_path / "quiet"))).values("id")
    log = logging.getLogger("pipelines.data.prepare")
    with warned.kept(run):
        log.warning("left out: /data/a.jpg")
        log.warning("left out: <b>\n  and another")
        log.warning("left out: /data/a.jpg")
    page = Page(html_of(run))
    assert page.says("few clusters 2 times, last align epoch 2")
    assert page.says("lost 0 align epoch 1")
    assert page.says("left out: /data/a.jpg 2 times, last 20")
    assert page.says("left out: <b> and another 20")
    assert page.text.count("left out: /data/a.jpg") == 1
    assert page.says("Warnings 5 warnings")


def test_many_warnings_are_cut_and_counted(tmp_path: Path) -> None:
    run = small_run(tmp_path, {"stage": "align", "epoch": 0, "warnings": "not a list"})
    lines = [f"2026-03-04 09:05:{second:02d} warning {second}\n" for second in range(60)]
    (run / warned.FILE).write_text("".join(lines), encoding="utf-8")
    page = Page(html_of(run))
    assert page.says("warning 0 2026-03-04 09:05:00")
    assert not page.says(f"warning {run_warnings.SHOWN} ")
    assert page.says(f"{60 - run_warnings.SHOWN} more stand in warnings.log")


def test_pairing_is_told_of_the_epochs_that_had_it(tmp_path: Path) -> None:
    lines = [
        {"stage": stage, "epoch": epoch, "pairs": pairs}
        for stage, counts in (("prepare", (0, 0)), ("align", (0, 5, 7)))
        for epoch, pairs in enumerate(counts)
    ]
    page = Page(html_of(small_run(tmp_path, *lines)))
    assert page.says("the night groups that resemble them in 2 of its epochs")
    assert page.text.count("of its epochs") == 1, "stage 0 paired nothing"


def test_a_method_that_is_told_who_is_who_has_no_word_about_groups(tmp_path: Path) -> None:
    run = small_run(tmp_path, {"stage": "images", "epoch": 0, "losses": {"total": 1.0}})
    (run / "config.yaml").write_text("method: csdn")
    page = Page(html_of(run))
    assert not {"groups", "truth"} & set(page.values("id"))
    assert not page.says("Nobody tells the program")


def test_stages_of_other_methods_need_no_special_case(tmp_path: Path) -> None:
    lines = [
        {"stage": stage, "epoch": epoch, "losses": {"total": 1.0, "matching": float("nan")}}
        for stage in ("prompts", "fusion", "images", "polish")
        for epoch in (0, 1)
    ]
    page = Page(html_of(small_run(tmp_path, *lines)))
    charts = page.values("aria-label")
    assert [chart.removeprefix("Loss by epoch, ") for chart in charts] == [
        "Stage 1 prompts", "Stage 2 fusion", "Stage 3 images", "Polish polish",
    ]  # fmt: skip
    assert page.says("Training went through four stages.")
