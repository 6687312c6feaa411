"""Scores of features under the published protocols, and what the report needs to show them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from pipelines.runs.records import ProtocolScores, Scores, ScoreTable, is_drawn
from pipelines.storage.files import own_folder, replace_file
from reid_core.datasets import LAYOUTS
from reid_core.metrics import RetrievalScores
from reid_core.protocols import (
    Trial,
    chance_rank1,
    num_matched,
    score,
    score_similarity,
)
from reid_core.reranking import rerank
from reid_core.types import Split

Score = Callable[[np.ndarray, np.ndarray, Trial], RetrievalScores]
SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")
_TOP = 10
_BLOCK, _PAIRS = 512, 1 << 25  # queries at a time, and their pairs with the gallery
_BINS = np.linspace(-1, 1, 81)
_WITHIN = 2000  # rows of a modality whose similarities with each other are counted


@dataclass(frozen=True)
class Evaluation:
    """All protocols of one set of features.

    Attributes:
        table: per "<protocol>/<mode>/<direction>": mean and std over trials, in percent, and the
            numbers of valid and invalid queries. Names that end in "+flip" or "+rerank" are
            measured with more than the published protocol.
        headline: mean of the trial name that summaries show.
        chance: Rank-1 of a random ranking there, in percent.
        details: arrays of the headline's first trial, for the report.
        calibration: per pair of modalities, see `pipelines.evaluation.pairs.errors`; empty where
            the run is not calibrated.
    """

    table: ScoreTable
    headline: Scores
    chance: float
    details: dict[str, np.ndarray]
    calibration: dict[str, dict[str, float]] = field(default_factory=dict)

    def save_details(self, path: Path) -> None:
        """Write the arrays as .npz."""
        target = own_folder(path.parent) / path.name
        arrays: Any = self.details  # numpy's own keywords have other types
        replace_file(target, lambda file: np.savez_compressed(file, **arrays))


def evaluate(
    kind: str,
    split: Split,
    features: np.ndarray,
    *,
    mirrored: np.ndarray | None = None,
    reranked: bool = False,
) -> Evaluation:
    """Score one split under every protocol of its kind.

    Args:
        kind: data set kind, a key of `reid_core.datasets.LAYOUTS`.
        split: rows with pids.
        features: (N, D) unit rows.
        mirrored: (N, D) unit rows of the mirrored images; also score the directions between, as
            "<name>+flip".
        reranked: also score rankings by shared neighbors, as "<name>+rerank".
    """
    name = LAYOUTS[kind].headline
    table, shown = _table(kind, split, features, score)
    more = {"": features}
    if mirrored is not None:
        more["+flip"] = _between(features, mirrored)
        table |= _table(kind, split, more["+flip"], score, suffix="+flip")[0]
    for suffix, rows in more.items() if reranked else ():
        table |= _table(kind, split, rows, _score_reranked, suffix=f"{suffix}+rerank")[0]
    trial, result = shown[name]
    return Evaluation(
        table=table,
        headline=table[name]["mean"],
        chance=100 * chance_rank1(split.pids, trial),
        details=_details(split, features, trial, result),
    )


def calibration_lines(evaluation: Evaluation) -> list[str]:
    """Expected calibration error per pair of modalities, where the run is calibrated."""
    return [
        f"{name}: calibration error {row['ece']:.3f}, {row['ece_balanced']:.3f} where half of the "
        "pairs are equal"
        for name, row in evaluation.calibration.items()
    ]


def score_table(evaluation: Evaluation) -> Table:
    """Mean, and where galleries are drawn standard deviation, one line per protocol.

    Queries without a right answer in the gallery are in no mean; where there are some, a column
    says how many were measured.
    """
    title = f"percent; a random ranking has Rank-1 {evaluation.chance:.1f}"
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("protocol / mode / direction")
    for name in SCORES:
        table.add_column(name, justify="right", no_wrap=True)
    asked = {
        name: (row["num_valid_queries"], row["num_valid_queries"] + row["num_invalid_queries"])
        for name, row in evaluation.table.items()
    }
    some_lack = any(valid < total for valid, total in asked.values())
    if some_lack:  # have no right answer in the gallery
        table.add_column("queries", justify="right")
    suffix = ""
    for name, row in evaluation.table.items():
        if name.partition("+")[2] != suffix:
            suffix = name.partition("+")[2]
            table.add_section()
        spread = {key: f"\n± {row['std'][key]:.2f}" if is_drawn(row) else "" for key in SCORES}
        cells = [f"{row['mean'][key]:.2f}{spread[key]}" for key in SCORES]
        valid, total = asked[name]
        queries = [f"{valid:,} of {total:,}" if valid < total else f"{total:,}"] * some_lack
        table.add_row(name.replace("/", " / "), *cells, *queries)
    return table


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Unit rows half-way between unit rows."""
    total: np.ndarray = one + other
    rows: np.ndarray = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    return rows


def _score_reranked(rows: np.ndarray, pids: np.ndarray, trial: Trial) -> RetrievalScores:
    distances = rerank(rows[trial.query], rows[trial.gallery])
    return score_similarity(lambda block: -distances[block], pids, trial)


def _table(
    kind: str, split: Split, rows: np.ndarray, scored: Score, *, suffix: str = ""
) -> tuple[ScoreTable, dict[str, tuple[Trial, RetrievalScores]]]:
    """Scores by name, and the first trial of each name."""
    scores: dict[str, list[RetrievalScores]] = defaultdict(list)
    first: dict[str, tuple[Trial, RetrievalScores]] = {}
    for trial in LAYOUTS[kind].protocol(split):
        if not num_matched(split.pids, trial):
            continue  # no score rather than one over nothing
        result = scored(rows, split.pids, trial)
        scores[trial.name].append(result)
        first.setdefault(trial.name, (trial, result))
    return {f"{name}{suffix}": _average(result) for name, result in scores.items()}, first


def _average(result: list[RetrievalScores]) -> ProtocolScores:
    rows = 100 * np.array([[s.cmc[0], s.cmc[4], s.cmc[9], s.mAP, s.mINP] for s in result])
    return {
        "mean": dict(zip(SCORES, rows.mean(axis=0).round(4).tolist(), strict=True)),
        "std": dict(zip(SCORES, rows.std(axis=0).round(4).tolist(), strict=True)),
        "num_valid_queries": result[0].num_valid_queries,
        "num_invalid_queries": result[0].num_invalid_queries,
    }


def _details(
    split: Split, features: np.ndarray, trial: Trial, scores: RetrievalScores
) -> dict[str, np.ndarray]:
    """What the report shows of a trial, by blocks of queries."""
    images = np.array([sample.image for sample in split.samples])
    captions = np.array([sample.caption for sample in split.samples])
    result: dict[str, list[np.ndarray]] = defaultdict(list)
    step = min(_BLOCK, 1 + _PAIRS // len(trial.gallery))
    for start in range(0, len(trial.query), step):
        block = slice(start, start + step)
        query = trial.query[block]
        similarity = features[query] @ features[trial.gallery].T
        same = np.equal.outer(split.pids[query], split.pids[trial.gallery])
        ignored = trial.ignored(block)
        exists = np.full(same.shape, True) if ignored is None else ~ignored
        shown = np.where(exists, similarity, -np.inf)
        top = np.argsort(-shown, axis=1, kind="stable")[:, :_TOP]
        result["top"].append(top)
        result["top_similarity"].append(np.take_along_axis(similarity, top, axis=1))
        result["top_correct"].append(np.take_along_axis(same, top, axis=1))
        result["hist"].append(_histograms(similarity, same, exists))
    sides = [trial.query, trial.gallery]
    asked, shown = (split.samples[rows[0]].modality for rows in sides)
    counts = [np.sum(result["hist"], axis=0), *(_within(split, features, rows) for rows in sides)]
    same_hist, different_hist = np.stack(counts, axis=1)
    return {
        "cmc": scores.cmc,
        "ap": scores.ap,
        "query_images": images[trial.query],
        "query_captions": captions[trial.query],
        "gallery_images": images[trial.gallery],
        **{name: np.concatenate(result[name]) for name in ("top", "top_similarity", "top_correct")},
        "pairs": np.array([f"{asked} {shown}", f"{asked} {asked}", f"{shown} {shown}"]),
        "same_hist": same_hist,
        "different_hist": different_hist,
        "bins": _BINS,
    }


def _within(split: Split, features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(2, bins) pairs of one identity and of two among rows of one modality, evenly chosen."""
    rows = rows[split.pids[rows] >= 0]
    rows = rows[:: max(1, -(-len(rows) // _WITHIN))]
    same = np.equal.outer(split.pids[rows], split.pids[rows])
    once = np.triu(np.ones_like(same), 1)
    return _histograms(features[rows] @ features[rows].T, same, once)


def _histograms(similarity: np.ndarray, same: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(2, bins) counted pairs of one identity and of two, by similarity."""
    similarity = similarity.clip(_BINS[0], _BINS[-1])  # rounding may go beyond 1
    return np.stack([np.histogram(similarity[m & counted], _BINS)[0] for m in (same, ~same)])
