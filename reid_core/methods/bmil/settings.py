"""What BMIL can be told. The public code's values are the defaults.

Options that are not the paper's say "Ours", parts of it that can be switched off say what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from reid_core.method import Needed, Supervision
from reid_core.methods import views
from reid_core.methods.sections import (
    OF_AN_IMAGE_STAGE,
    Milestones,
    Refinement,
    Section,
    Unread,
    Views,
    unread_by_choice,
    unread_of_votes,
)
from reid_core.types import Modality

if TYPE_CHECKING:  # a recipe is checked without torch
    from reid_core.augmentation import Augmentation

INPUTS = (Modality.VISIBLE, Modality.INFRARED)
STAGES = ("intra", "joint")
KINDS = SEPARATE, JOINT = "separate", "joint"  # of labels, and so of batches
_CLUSTERING: Unread = {
    "together": {"assigned": ("joint_eps", "order", "balanced")},
    "balanced": {"false": ("order",)},
}
_MEMORY: Unread = {"banks": {"hard": ("margin",)}}
HANDED_WEIGHTS = "encoder."  # how the names begin of what "intra" hands on


class Clustering(Section):
    """k-reciprocal Jaccard distance and DBSCAN, of each modality and of both.

    Attributes:
        k1: neighbors that reciprocity is asked for; jointly half of them from either modality.
        k2: neighbors that the weights are averaged over; jointly as many of either modality.
        eps: largest distance between neighbors within a modality.
        joint_eps: the same in the joint clustering; null for eps.
        min_samples: neighbors, the row itself among them, that make a row a core of a cluster.
        balanced: whether joint neighbors come half from either modality; without, from anywhere.
        order: of the joint neighbors: by "similarity", or ours, "alternating" between the two.
        subset: share of the visible images that is clustered alone, and another such share that is
            clustered jointly, drawn anew in every epoch; 1 gives all images to both.
        together: what joint labels are: one clustering of all "rows" (the paper). Ours are clusters
            of each modality, paired by the "assigned" prototypes, by their "overlap" with the joint
            clusters, by "both", or by "either" (the overlap first).
        camera_scaling: Ours. Null compares features as they are; a number takes away their camera's
            mean and divides by this power (0 to 1) of its deviation. Prototypes stay those of plain
            features. Reads camera numbers; for cameras that see identities of one kind.
    """

    k1: int = Field(30, ge=2)
    k2: int = Field(6, ge=1)
    eps: float = Field(0.6, gt=0, lt=1)
    joint_eps: float | None = Field(None, gt=0, lt=1)
    min_samples: int = Field(4, ge=1)
    balanced: bool = True
    order: Literal["similarity", "alternating"] = "similarity"
    subset: float = Field(0.5, gt=0, le=1)
    camera_scaling: float | None = Field(None, ge=0, le=1)
    together: Literal["rows", "assigned", "overlap", "both", "either"] = "rows"

    @field_validator("subset")
    @classmethod
    def _has_two_parts(cls, subset: float) -> float:
        if 0.5 < subset < 1:
            raise ValueError("two parts of more than half do not fit: choose up to 0.5, or 1")
        return subset


class Memory(Section):
    """Cluster prototypes.

    Attributes:
        momentum: share of the old prototype in an update.
        temperature: divides the products before the softmax.
        banks: "both", or one of them alone: the rows' "mean", or the "hard" rows.
        margin: the mean bank's loss of a modality is idle below it (separate labels).
        scored: prototypes in the softmax of joint labels, positives included; null for all.
        split: whether a joint cluster has one prototype for each modality, or one for both.
        softmax: of joint labels over the prototypes of "all" (the paper); ours is one softmax for
            each "modality" of prototypes, in which a partner that was not found is no negative.
        gradient: from the prototypes before the step ("clean"), or "as_published", where visible
            images have moved them before infrared ones are differentiated.
    """

    momentum: float = Field(0.1, ge=0, lt=1)
    temperature: float = Field(0.05, gt=0)
    banks: Literal["both", "mean", "hard"] = "both"
    margin: float = Field(0.2, ge=0)
    scored: int | None = Field(50, ge=2)
    split: bool = True
    softmax: Literal["all", "modality"] = "all"
    gradient: Literal["clean", "as_published"] = "clean"


class Sampling(Section):
    """Batches of both kinds of labels.

    Attributes:
        camera_aware: whether a cluster's images come from other cameras than their first one (the
            public code); needs camera numbers, and is of no use with one camera per modality.
    """

    camera_aware: bool = False


class Stage(Section):
    """Optimization of either stage.

    Attributes:
        epochs: of the stage; `intra.epochs` of 0 leaves that stage out, "joint" has at least one.
        clusters_per_batch: P, in a global batch, per modality and kind of label.
        visible_clusters_per_batch: P of visible images where it differs (RegDB: 4); null for P.
        instances: K, images of each of them.
        batches_per_epoch: of each kind of label.
        optimizer: "adam", "adamw" with decoupled weight decay, or "sgd" with momentum 0.9.
        lr: highest learning rate.
        weight_decay: of all parameters; adamw's of matrices alone.
        schedule: "steps" after a warm-up, or a "cosine" from the first epoch to 0.
        warmup_epochs: in which the rate rises from a hundredth; steps only.
        milestones: epochs at which the rate falls to a tenth; steps only.
        evaluate_every: epochs between evaluations; 0 only after the last one.
    """

    epochs: int = Field(50, ge=0)
    clusters_per_batch: int = Field(8, ge=1)
    visible_clusters_per_batch: int | None = Field(None, ge=1)
    instances: int = Field(16, ge=1)
    batches_per_epoch: int = Field(200, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(3.5e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["steps", "cosine"] = "steps"
    warmup_epochs: int = Field(0, ge=0)
    milestones: Milestones = (20, 40)
    evaluate_every: int = Field(2, ge=0)

    def clusters_of(self, modality: Modality) -> int:
        """P of one modality."""
        if modality == Modality.VISIBLE and self.visible_clusters_per_batch is not None:
            return self.visible_clusters_per_batch
        return self.clusters_per_batch


class JointStage(Stage):
    """Optimization of stage 2.

    Attributes:
        separate_steps: whether every step on joint labels follows one on separate labels.
    """

    separate_steps: bool = True


class PublishedViews(Views):
    """Views of training images; the public code's are the default."""

    visible: Literal[1, 2] = 2
    jitter: float = Field(0.5, ge=0, le=0.5)


class Config(Section):
    """Everything BMIL can be told.

    Attributes:
        labels: "clusters" is the method. "identities" trains on the given pids: an upper
            bound, not unsupervised. Ours, "within" trusts identities, or tracklets, of each
            modality alone, which `clustering.together` pairs; all visible images take part.
        flip: whether descriptors are means of an image's and its mirror image's, for clustering
            and for evaluation.
        views: of training images; the public code's are the default.
        refine: Ours. Labels that neighbors vote for, of both kinds.
        teacher: Ours. Momentum of a mean teacher that embeds for clustering and for evaluation;
            0 for none.
        intra: stage 1, each modality alone.
        joint: stage 2, both together.
    """

    labels: Literal["clusters", "identities", "within"] = "clusters"
    clustering: Clustering = Clustering()
    memory: Memory = Memory()
    sampling: Sampling = Sampling()
    flip: bool = True
    views: PublishedViews = PublishedViews()
    refine: Refinement = Refinement()
    teacher: float = Field(0.0, ge=0, lt=1)
    intra: Stage = Stage()
    joint: JointStage = JointStage()

    @field_validator("joint")
    @classmethod
    def _trains(cls, joint: JointStage) -> JointStage:
        if not joint.epochs:
            raise ValueError("epochs=0: the joint stage is the method")
        return joint


def seed_of(seed: int, stage: str, kind: str, modality: Modality) -> int:
    """Seed of everything random in one stage, kind of label and modality."""
    place = STAGES.index(stage) * 2 + KINDS.index(kind)
    return seed * 8 + place * 2 + INPUTS.index(modality)


def supervision(config: Config) -> Supervision:
    """What it is told about the training identities: nothing, if `labels` asks for no more."""
    return "none" if config.labels == "clusters" else config.labels


def needs_text(config: Config) -> bool:
    """Never: images are compared with images."""
    return False


def stages(config: Config) -> tuple[str, ...]:
    """Names of the stages that this configuration runs, in order."""
    return STAGES if config.intra.epochs else STAGES[1:]


def batch_rows(config: Config) -> dict[str, int]:
    """Rows of a global batch per modality, under the keys that decide it."""
    rows = {}
    for name in stages(config):
        stage = getattr(config, name)
        for m in INPUTS:
            key = f"bmil.{name}.clusters_per_batch x instances ({m})"
            rows[key] = stage.clusters_of(m) * stage.instances
    return rows


def needs_cameras(config: Config) -> Needed | None:
    """See `Method`."""
    if config.sampling.camera_aware:
        key = "bmil.sampling.camera_aware"
        return Needed(f"{key}=true", without=f"{key}=false")
    scaling, key = config.clustering.camera_scaling, "bmil.clustering.camera_scaling"
    return None if scaling is None else Needed(f"{key}={scaling:g}", without=f"{key}=null")


def averages(config: Config) -> bool:
    """See `Method`."""
    return config.teacher > 0


def augmentations(config: Config, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """Two views of a visible image and one of an infrared one, or what `views` asks for."""
    return views.augmentations(config.views, base)


def check(config: Config) -> list[str]:
    """See `Method`."""
    how, warnings = config.clustering, []
    clusters_both = how.balanced and how.together != "assigned" and config.labels != "identities"
    if clusters_both and how.k1 % 2:
        raise ValueError(
            f"bmil.clustering.k1={how.k1} must be even: half of the neighbors come from either "
            "modality"
        )
    if config.labels == "within" and how.together == "rows":
        raise ValueError(
            "bmil.labels=within trusts classes of each modality, which one clustering of all rows "
            "would split: set bmil.clustering.together to assigned, overlap, both or either"
        )
    warnings += unread_by_choice(how, "bmil.clustering", _CLUSTERING)
    warnings += unread_by_choice(config.memory, "bmil.memory", _MEMORY)
    warnings += unread_of_votes(config.refine, "bmil.refine")
    if config.labels == "identities" and config.refine.on:
        warnings.append("bmil.refine: given identities need no vote")
    for name in stages(config):
        warnings += unread_by_choice(getattr(config, name), f"bmil.{name}", OF_AN_IMAGE_STAGE)
    return warnings
