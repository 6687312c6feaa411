"""Scores of features under the published protocols, and what the report needs to show them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from pipelines import checkpoint, features
from pipelines import config as configuration
from pipelines.errors import UserError
from pipelines.prepare import image_files, read
from reid_core.methods import cclnet
from reid_core.metrics import RetrievalScores
from reid_core.models import clip
from reid_core.models.encoders import TwoStemEncoder
from reid_core.protocols import HEADLINE, PROTOCOLS, Trial, chance_rank1, score
from reid_core.types import Split

SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")
_TOP = 10
_BINS = np.linspace(-1, 1, 81)


@dataclass(frozen=True)
class Evaluation:
    """All protocols of one set of features.

    Attributes:
        table: per "<protocol>/<mode>/<direction>": mean and std over trials, in percent, and the
            numbers of valid and invalid queries.
        headline: mean of the trial name that summaries show.
        chance: Rank-1 of a random ranking there, in percent.
        details: arrays of the headline's first trial, for the report.
    """

    table: dict[str, dict[str, Any]]
    headline: dict[str, float]
    chance: float
    details: dict[str, np.ndarray]

    def save_details(self, path: Path) -> None:
        """Write the arrays as .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **self.details)  # type: ignore[arg-type]


def evaluate(kind: str, split: Split, features: np.ndarray) -> Evaluation:
    """Score one split under every protocol of its kind.

    Args:
        kind: data set kind, a key of `reid_core.protocols.PROTOCOLS`.
        split: rows with person ids.
        features: (N, D) unit rows.
    """
    scores: dict[str, list[RetrievalScores]] = defaultdict(list)
    name, _ = HEADLINE[kind]
    shown: tuple[Trial, RetrievalScores] | None = None
    for trial in PROTOCOLS[kind](split):
        found = score(features, split.pids, trial)
        scores[trial.name].append(found)
        if trial.name == name and shown is None:
            shown = (trial, found)
    assert shown is not None
    table = {key: _average(found) for key, found in scores.items()}
    return Evaluation(
        table=table,
        headline=table[name]["mean"],
        chance=100 * chance_rank1(split.pids, shown[0]),
        details=_details(split, features, *shown),
    )


def evaluate_checkpoint(path: Path, *, kind: str, root: Path | None, split: str) -> Evaluation:
    """Measure a saved encoder in this process, on a GPU if there is one.

    Args:
        path: checkpoint folder or run directory.
        kind: data set kind.
        root: folder of the data set; None for the one that the run was trained on.
        split: "test" or "val".

    Raises:
        UserError: no such checkpoint, data set, kind or split.
    """
    state = checkpoint.load(checkpoint.find(path))
    tree = state["config"]
    tree["data"] |= {"kind": kind, **({"root": str(root)} if root else {})}
    config = configuration.validate(tree, source=str(path))
    if split not in ("test", "val"):
        raise UserError(f"--split {split}: choose test or val")
    dataset = read(config)
    rows: Split = getattr(dataset, split)
    if not len(rows):
        raise UserError(f"{dataset.root} has no {split} split")
    encoder = _load_encoder(state, config)
    device = next(encoder.parameters()).device
    files = image_files(rows, dataset.root, config)
    found = np.empty((len(rows), encoder.feature_dim), dtype=np.float32)
    for m in cclnet.MODALITIES:
        indices = np.arange(len(files.paths[m]))
        size = config.trainer.embed_batch
        embedded = features.embed(encoder.embed, files, m, indices, batch_size=size, device=device)
        found[rows.rows(m)] = embedded.cpu().numpy()
    return evaluate(kind, rows, found)


def score_table(result: Evaluation) -> Table:
    """Mean and standard deviation over trials, one line per protocol."""
    table = Table(title=f"percent; a random ranking has Rank-1 {result.chance:.1f}")
    table.add_column("protocol / mode / direction")
    for name in SCORES:
        table.add_column(name, justify="right")
    for name, row in result.table.items():
        cells = [f"{row['mean'][key]:.2f} ± {row['std'][key]:.2f}" for key in SCORES]
        table.add_row(name, *cells)
    return table


def _load_encoder(state: dict[str, Any], config: configuration.RunConfig) -> TwoStemEncoder:
    stage = state["progress"]["stage"]
    if stage == "prompts":
        raise UserError(
            "this checkpoint was written while prompts were learned: no trained encoder"
        )
    size = config.model
    encoder = cclnet.build(clip.load(size.name, None), height=size.height, width=size.width)
    encoder.load_state_dict(state["module"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return encoder.to(device).eval()


def _average(found: list[RetrievalScores]) -> dict[str, Any]:
    rows = 100 * np.array([[s.cmc[0], s.cmc[4], s.cmc[9], s.mAP, s.mINP] for s in found])
    return {
        "mean": dict(zip(SCORES, rows.mean(axis=0).round(4).tolist(), strict=True)),
        "std": dict(zip(SCORES, rows.std(axis=0).round(4).tolist(), strict=True)),
        "num_valid_queries": found[0].num_valid_queries,
        "num_invalid_queries": found[0].num_invalid_queries,
    }


def _details(
    split: Split, features: np.ndarray, trial: Trial, scores: RetrievalScores
) -> dict[str, np.ndarray]:
    similarity = features[trial.query] @ features[trial.gallery].T
    same = split.pids[trial.query][:, None] == split.pids[trial.gallery][None, :]
    ranked = np.argsort(np.where(trial.ignore, np.inf, -similarity), axis=1, kind="stable")
    top = ranked[:, :_TOP]
    images = np.array([record.image for record in split.records])
    return {
        "cmc": scores.cmc,
        "ap": scores.ap,
        "query_images": images[trial.query],
        "gallery_images": images[trial.gallery],
        "top": top,
        "top_similarity": np.take_along_axis(similarity, top, axis=1),
        "top_correct": np.take_along_axis(same, top, axis=1),
        "same_hist": np.histogram(similarity[same & ~trial.ignore], _BINS)[0],
        "different_hist": np.histogram(similarity[~same & ~trial.ignore], _BINS)[0],
        "bins": _BINS,
    }
