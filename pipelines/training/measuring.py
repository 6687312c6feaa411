"""Scores of an encoder while it is trained: all workers embed, rank 0 ranks and keeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from pipelines.data.extract_features import Head, Rows
from pipelines.data.inputs import Measured
from pipelines.distributed import collectives
from pipelines.evaluation.evaluate import evaluate
from pipelines.runs.records import EpochLine
from pipelines.training.job import Job
from pipelines.training.progress import Progress
from reid_core.stage import Encoder
from reid_core.types import Modality

Embed = Callable[[Head, Rows, Modality], Tensor]
"""(head, rows, modality) -> this worker's share of their features."""


def measure(job: Job, progress: Progress, row: str, encoder: Encoder, *, embed: Embed) -> EpochLine:
    """Scores of the encoder under the data set's protocols; rank 0 keeps the details.

    Args:
        job: what is measured, and where details go.
        progress: takes the scores, under the name `row`.
        row: of the summary.
        encoder: put into eval mode; not folded, since the checkpoint's scores are these.
        embed: see `Embed`.

    Returns:
        Entries of the epoch's log line; none on other ranks.
    """
    assert isinstance(encoder, nn.Module)
    encoder.eval()
    features = {
        name: _embed_split(encoder, measured, job.method.inputs, embed)
        for name, measured in (("scores", job.measured), ("selection", job.selection))
        if measured is not None
    }
    if collectives.rank() or job.measured is None:
        return {}
    result = evaluate(job.kind, job.measured.split, features["scores"])
    result.save_details(job.run_dir / "evaluation" / f"{row}.npz")
    progress.scores[row] = result.headline
    progress.table, progress.chance = result.table, result.chance
    if job.selection is None:
        return {"scores": result.headline}
    other = evaluate(job.kind, job.selection.split, features["selection"]).headline
    if row != "start" and other["mAP"] > progress.selected:
        progress.selected, progress.scores["selected"] = other["mAP"], result.headline
    return {"scores": result.headline, "selection": other}


def _embed_split(
    encoder: Encoder, measured: Measured, modalities: tuple[Modality, ...], embed: Embed
) -> np.ndarray:
    """Features of a split's samples, on rank 0; none elsewhere."""
    split = measured.split
    num_rows = 0 if collectives.rank() else len(split)
    features = np.full((num_rows, encoder.feature_dim), np.nan, dtype=np.float32)
    for m in modalities:
        share = embed(encoder.embed, measured.inputs, m)
        rows = collectives.gather_shares_on_first(share, measured.inputs.num_rows(m))
        if rows is not None:
            features[split.rows(m)] = rows.cpu().numpy()
    return features
