"""What the files of a run hold: summary.json, a line of metrics.jsonl, the state of a checkpoint.

They are dicts, since that is what JSON and `torch.load` give. Files of interrupted runs and of
earlier versions may lack keys: whoever reads them asks with `get`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Required, TypedDict

from pipelines.config.files import Tree

if TYPE_CHECKING:
    from torch import Tensor

Scores = dict[str, float]
"""rank1, rank5, rank10, mAP, mINP in percent."""


class ProtocolScores(TypedDict):
    """Mean and standard deviation over the trials of one protocol, and its queries."""

    mean: Scores
    std: Scores
    num_valid_queries: int
    num_invalid_queries: int


def is_drawn(scores: ProtocolScores) -> bool:
    """Whether a protocol draws galleries, so that its deviation says something."""
    return any(scores.get("std", {}).values())


ScoreTable = dict[str, ProtocolScores]
"""By "<protocol>/<mode>/<direction>"."""


class Summary(TypedDict, total=False):
    """summary.json.

    Attributes:
        rows: scores of "start", of each stage and of "final", by the headline's protocol.
        protocol: the headline's, in words.
        chance: rank1 of a random ranking.
        seconds: of the run's big steps, and "total"; of one that was interrupted, "train" is what
            its epochs took.
        seed: of the run.
        evaluation: every protocol of the last evaluation.
        std, trials: where `rows` are means over the divisions of a data set: the deviation of one
            from the mean, and the rows of each.
    """

    rows: dict[str, Scores]
    protocol: str
    chance: dict[str, float | None]
    seconds: dict[str, float]
    seed: int
    evaluation: ScoreTable
    std: dict[str, Scores]
    trials: dict[str, dict[str, Scores]]


class SpeedRecord(TypedDict):
    """How the time of an epoch was used, see `pipelines.training.speed`; None is not known."""

    images_per_s: float | None
    share: dict[str, float]
    device_memory_bytes: int | None
    flops_per_step: int | None
    mfu: float | None


Truth = Mapping[str, Mapping[str, float | None] | float | None]
"""Per modality "ari" and "purity"; "matching_accuracy"; "association", its precision and recall."""


class EpochLine(TypedDict, total=False):
    """A line of metrics.jsonl, or a part of one; a method's own counts stand beside these.

    Attributes:
        stage, epoch: which; in every whole line.
        lr: base learning rate.
        losses: means of the epoch, and their "total".
        rows, clusters, outliers: per modality.
        pairs: matched clusters.
        labels: per modality a hash of all labels.
        clusters_of_both: share of the clusters that have a partner, where pairs are one to one.
        pair_similarity: "mean" and "min".
        mutual_nearest: share of clusters that are the nearest of the one nearest to them.
        whitened: 1 where prototypes were matched after whitening, else 0.
        search_recall: least recall of an approximate neighbor search.
        truth: how right clusters and pairs are, where identities are known.
        stability: per modality, how much of the last clustering is in this one.
        speed: see `SpeedRecord`.
        replaced: places of batches in which another image stood for an unreadable one.
        warnings: what the user should know.
        scores, selection: of an epoch that was measured; of the identities that select one.
        seconds: per phase.
    """

    stage: str
    epoch: int
    lr: float
    losses: dict[str, float]
    rows: dict[str, int]
    clusters: dict[str, int]
    outliers: dict[str, int]
    pairs: int
    labels: dict[str, str]
    clusters_of_both: float
    pair_similarity: dict[str, float]
    mutual_nearest: float
    whitened: float
    search_recall: float
    truth: Truth
    stability: dict[str, float]
    speed: SpeedRecord
    replaced: int
    warnings: list[str]
    scores: Scores
    selection: Scores
    seconds: dict[str, float]


class ProgressState(TypedDict):
    """See `pipelines.training.progress.Progress`."""

    stage: str
    epoch: int
    handed: dict[str, Tensor]
    scores: dict[str, Scores]
    table: ScoreTable
    chance: float | None
    selected: float


class KeptPlan(TypedDict):
    """See `pipelines.data.plan.Plan`; arrays as tensors, modalities as texts."""

    rows: dict[str, Tensor]
    labels: dict[str, Tensor]
    seeds: dict[str, Tensor]
    captions: Tensor | None
    kinds: list[str]


class KeptEpoch(TypedDict):
    """See `reid_core.stage.Epoch`; arrays as tensors, modalities as texts."""

    labels: dict[str, Tensor]
    prototypes: dict[str, Tensor]
    pairs: Tensor
    arrays: dict[str, Tensor]
    repeats: dict[str, int]


class Within(TypedDict):
    """What a state within an epoch holds of it, see `pipelines.training.within_epoch`.

    Attributes:
        stage, epoch: which.
        batch: to go on with.
        means: sums of its losses.
        metrics: of its log line, as JSON.
        plan, decided: what was decided before it.
    """

    stage: str
    epoch: int
    batch: int
    means: dict[str, Tensor]
    metrics: str
    plan: KeptPlan
    decided: KeptEpoch


class State(TypedDict, total=False):
    """What a checkpoint holds, and what a run goes on from.

    Attributes:
        format: version of the file.
        config: of the run.
        progress: where it stood.
        trains_encoder: whether `module` holds an encoder.
        quick_gelu: whether its transformers use QuickGELU.
        pixels: mean and deviation that the pre-trained weights came with; older files lack them.
        module: of the stage, without its frozen towers.
        epoch: labels, prototypes and pairs of the epoch.
        optimiser: its state; spelt so in format 1.
        within: of a state that was kept within an epoch.
    """

    format: int
    config: Required[Tree]
    progress: Required[ProgressState]
    trains_encoder: bool
    quick_gelu: bool
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]]
    module: Required[dict[str, Tensor]]
    epoch: dict[str, Tensor]
    optimiser: dict[str, object]
    within: Within
