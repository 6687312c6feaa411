"""What CCLNet can be told. Published values are the defaults.

Options that are not the paper's say "Ours".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from reid_core.method import Needed, Supervision
from reid_core.methods import views
from reid_core.methods.cclnet import unread
from reid_core.methods.sections import Milestones, Refinement, Section, TextStage, Views
from reid_core.types import Modality

if TYPE_CHECKING:  # a recipe is checked without torch
    from reid_core.augmentation import Augmentation

INPUTS = (Modality.VISIBLE, Modality.INFRARED)


class Clustering(Section):
    """k-reciprocal Jaccard distance and DBSCAN, per modality (stages 0 and 2).

    Attributes:
        k1: neighbors that reciprocity is asked for; at most the images of an identity and modality.
        k2: neighbors that the weights are averaged over.
        eps: largest distance between neighbors.
        min_samples: neighbors, the row itself among them, that make a row a core of a cluster.
        camera_scaling: Ours. Null compares features as they are; a number takes away their camera's
            mean and divides by this power (0 to 1) of its deviation. Prototypes stay those of plain
            features. Reads camera numbers; for cameras that see identities of one kind.
    """

    k1: int = Field(30, ge=1)
    k2: int = Field(6, ge=1)
    eps: float = Field(0.6, gt=0, lt=1)
    min_samples: int = Field(4, ge=1)
    camera_scaling: float | None = Field(None, ge=0, le=1)


class Memory(Section):
    """Cluster prototypes.

    Attributes:
        momentum: share of the old prototype in an update.
        temperature: divides the products before the softmax.
    """

    momentum: float = Field(0.1, ge=0, lt=1)
    temperature: float = Field(0.05, gt=0)


class Swap(Section):
    """When and how matched prototypes change places (stages 0 and 2).

    Attributes:
        when: "epoch" matches once between epochs and repeats the fixed pairs after every update;
            "step" matches anew in every step (the authors' code); "epoch_once" swaps only before
            the first batch; "never" trains the modalities side by side.
        order: "simultaneous" swaps from copies; "sequential" is the authors' code, whose second
            line reads what the first one changed.
        keep: share of the own prototype.
        start_epoch: first epoch with swapping, from 0. The authors count from 1 and say 61.
    """

    when: Literal["epoch", "step", "epoch_once", "never"] = "epoch"
    order: Literal["simultaneous", "sequential"] = "simultaneous"
    keep: float = Field(0.1, ge=0, le=1)
    start_epoch: int = Field(60, ge=0)


_OF_ROWS = ("joint", "consistent", "proposed")  # methods of matching that compare no prototypes


class Matching(Section):
    """Which prototypes of the two modalities belong together (stages 0 and 2).

    Attributes:
        min_similarity: pairs below it are dropped after the assignment.
        centered: Ours. Subtract each modality's mean prototype before matching.
        shared: Ours. Matched clusters share one prototype instead of swapping two.
        method: who names pairs, once between epochs: the "hungarian" assignment of prototypes (the
            paper); ours are "mutual" nearest prototypes; "scaled" ones, the same after each
            similarity is compared with the best of both sides; largest shares of an optimal
            "transport" with a uniform prior; clusters that meet in one "joint" clustering of both
            modalities; pairs that "both" the assignment and the joint clustering name, or "either"
            (the joint clustering first); pairs that the images of both modalities propose
            ("consistent"), or also those that one side alone proposes ("proposed").
        camera_scaling: that of clustering.camera_scaling, for matching; null for the same.
        whitened: Ours. Match prototypes in the space where the images of a cluster scatter alike in
            all directions: "never", "always", or "agreed": where more prototypes of the two
            modalities are then each other's nearest. Of methods that compare prototypes alone.
        temperature: of the transport and of the proposals.
        balanced: whether half of a joint clustering's neighbors come from either modality.
        joint_eps: largest distance between neighbors in a joint clustering; null for
            clustering.eps.
        least_overlap: of two clusters in joint ones, above which they are a pair.
        exclusion: weight of a term that keeps visible images away from infrared clusters less
            likely than all that contradictory proposals name for theirs (WSL-VIReID: 0.25); 0 for
            none. With "consistent" and "proposed" alone.
        exclusion_from: first epoch with it, from 0 (WSL-VIReID: 30).
        guard: Ours. Share of clusters that are mutual nearest, below which only such pairs are
            coupled, for cameras that have seen different identities; 0 couples all of them.
    """

    min_similarity: float = Field(0.0, ge=-1, le=1)
    centered: bool = False
    shared: bool = False
    method: Literal[
        "hungarian",
        "mutual",
        "scaled",
        "transport",
        "joint",
        "both",
        "either",
        "consistent",
        "proposed",
    ] = "hungarian"
    camera_scaling: float | None = Field(None, ge=0, le=1)
    whitened: Literal["never", "always", "agreed"] = "never"
    temperature: float = Field(0.05, gt=0)
    balanced: bool = True
    joint_eps: float | None = Field(None, gt=0, lt=1)
    least_overlap: float = Field(0.0, ge=0, lt=1)
    exclusion: float = Field(0.0, ge=0)
    exclusion_from: int = Field(0, ge=0)
    guard: float = Field(0.0, ge=0, le=1)


class CrossRefinement(Refinement):
    """Votes of neighbors, within a modality and across.

    Attributes:
        cross: weight of a term that draws images to the matched cluster of the other modality, as
            far as neighbors there confirm it, visible images in even epochs, infrared ones in odd
            ones (N-ULC: 3); 0 for none. Goes with swap.when=never, or beside the swap.
        cross_updates: whether these images move the prototypes that they are drawn to (the public
            code).
    """

    cross: float = Field(0.0, ge=0)
    cross_updates: bool = False


class ImageStage(Section):
    """Optimization of stages 0 and 2 (config_sysu.yaml of the authors' code).

    Attributes:
        epochs: of the stage.
        clusters_per_batch: P, in a global batch, per modality.
        instances: K, images of each of them.
        batches_per_epoch: steps of an epoch; None for max(N) // (P K) + 1, N without outliers.
        optimizer: "adam", "adamw" with decoupled weight decay, or "sgd" with momentum 0.9.
        lr: highest learning rate.
        betas: shares of the old moments in a step; not with sgd.
        weight_decay: of all parameters; adamw's of matrices alone.
        bias_lr_factor: times the rate for biases; adam only.
        schedule: "steps" after a warm-up, or a "cosine" from the first epoch to 0; ours is
            "coupled": the full rate until `coupled_share` of the coupled epochs, then a tenth.
        warmup_epochs: in which the rate rises from a hundredth; not with a cosine.
        milestones: epochs at which the rate falls to a tenth; steps only.
        coupled_share: of the coupled epochs that has the full rate.
        evaluate_every: epochs between evaluations; 0 only after the last one.
    """

    epochs: int = Field(120, ge=1)
    clusters_per_batch: int = Field(4, ge=1)
    instances: int = Field(16, ge=1)
    batches_per_epoch: int | None = Field(None, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(3.5e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(5e-4, ge=0)
    bias_lr_factor: float = Field(2.0, gt=0)
    schedule: Literal["steps", "cosine", "coupled"] = "steps"
    warmup_epochs: int = Field(10, ge=0)
    milestones: Milestones = (30, 50)
    coupled_share: float = Field(2 / 3, gt=0, le=1)
    evaluate_every: int = Field(5, ge=0)

    @field_validator("betas")
    @classmethod
    def _are_shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("shares of old moments lie in [0, 1)")
        return betas


class PromptStage(TextStage):
    """Optimization of stage 1."""

    batch_size: int = Field(128, ge=1)
    lr: float = Field(3.5e-4, gt=0)


class Config(Section):
    """Everything CCLNet can be told.

    Attributes:
        labels: "clusters" is the method. "identities" trains on the given pids with one
            prototype per identity shared by both modalities: an upper bound, not unsupervised.
            "within" trusts identities, or tracklets, of each modality alone and matches them.
        image_to_text: weight of the text guidance in stage 2 (reference 1). At 0, stages 0 and 1
            have nothing to hand on and are left out.
        smoothing: label smoothing of the text guidance.
        views: of training images; ours beyond the default.
        refine: ours. Labels that neighbors vote for.
        teacher: ours. Momentum of a mean teacher that embeds for clustering and for evaluation;
            0 for none.
        flip: ours. Whether descriptors are means of an image's and its mirror image's, for
            clustering and for evaluation.
    """

    labels: Literal["clusters", "identities", "within"] = "clusters"
    clustering: Clustering = Clustering()
    memory: Memory = Memory()
    swap: Swap = Swap()
    matching: Matching = Matching()
    image_to_text: float = Field(1.0, ge=0)
    smoothing: float = Field(0.1, ge=0, lt=1)
    views: Views = Views()
    refine: CrossRefinement = CrossRefinement()
    teacher: float = Field(0.0, ge=0, lt=1)
    flip: bool = False
    prepare: ImageStage = ImageStage()
    prompts: PromptStage = PromptStage()
    align: ImageStage = ImageStage()

    @model_validator(mode="after")
    def _matches_in_steps(self) -> Config:
        if self.swap.when == "step" and self.matching.method != "hungarian":
            raise ValueError(
                f"matching.method={self.matching.method} matches once between epochs: "
                "swap.when=step goes with hungarian alone"
            )
        if self.matching.exclusion and self.matching.method not in ("consistent", "proposed"):
            raise ValueError(
                "matching.exclusion is of contradictory proposals: choose "
                "matching.method=consistent or proposed"
            )
        for name, off in (("guard", 0), ("whitened", "never")):
            value = getattr(self.matching, name)
            if self.swap.when == "step" and value != off:
                raise ValueError(
                    f"matching.{name}={value} is of the pairs between epochs, and swap.when=step "
                    "matches in steps: choose another swap.when, or leave it out"
                )
        if self.matching.whitened != "never" and self.matching.method in _OF_ROWS:
            raise ValueError(
                f"matching.method={self.matching.method} compares images, which are not whitened: "
                "choose a method that compares prototypes, or matching.whitened=never"
            )
        return self


def needs_cameras(config: Config) -> Needed | None:
    """See `Method`."""
    for name, section in (("clustering", config.clustering), ("matching", config.matching)):
        if section.camera_scaling is not None:
            key = f"cclnet.{name}.camera_scaling"
            return Needed(f"{key}={section.camera_scaling:g}", without=f"{key}=null")
    return None


def averages(config: Config) -> bool:
    """See `Method`."""
    return config.teacher > 0


def is_ever_coupled(config: Config) -> bool:
    """Whether clusters of the modalities are matched at all, from `Swap.start_epoch` on."""
    return config.swap.when != "never" or config.matching.shared or config.refine.cross > 0


def shares_prototypes(config: Config) -> bool:
    """Whether matched clusters share one prototype."""
    return config.matching.shared or config.labels == "identities"


def seed_of(seed: int, stage: str, modality: Modality) -> int:
    """Seed of everything random in one stage and modality; no two of them share draws."""
    return seed * 8 + ("prepare", "prompts", "align").index(stage) * 2 + INPUTS.index(modality)


def supervision(config: Config) -> Supervision:
    """What it is told about the training identities: nothing, but for the upper bound."""
    known: dict[str, Supervision] = {"clusters": "none", "within": "within"}
    return known.get(config.labels, "identities")


def needs_text(config: Config) -> bool:
    """Whether words are learned, for which the model must have a text tower."""
    return config.image_to_text > 0


def stages(config: Config) -> tuple[str, ...]:
    """Names of the stages that this configuration runs, in order."""
    return ("prepare", "prompts", "align") if config.image_to_text > 0 else ("align",)


def batch_rows(config: Config) -> dict[str, int]:
    """Rows of a global batch per modality, under the keys that decide it."""
    result = {}
    for name in stages(config):
        settings = getattr(config, name)
        if name == "prompts":
            result["cclnet.prompts.batch_size"] = settings.batch_size
        else:
            rows = settings.clusters_per_batch * settings.instances
            result[f"cclnet.{name}.clusters_per_batch x instances"] = rows
    return result


def augmentations(config: Config, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """The paper's one view per image, or what `views` asks for."""
    return views.augmentations(config.views, base)


def check(config: Config) -> list[str]:
    """See `Method`."""
    if config.matching.centered and config.matching.method in _OF_ROWS:
        raise ValueError(
            f"cclnet.matching.method={config.matching.method} compares images, which are not "
            "centered: choose a method that compares prototypes, or matching.centered=false"
        )
    start, result, refine = config.swap.start_epoch, unread.of_choices(config), config.refine
    if refine.cross > 0 and not refine.on:
        result.append(
            f"cclnet.refine.cross={refine.cross:g}: nothing confirms these pairs without "
            "cclnet.refine.labels=voted or cclnet.refine.weights=true: all count alike"
        )
    if refine.cross_updates and not refine.cross:
        result.append("cclnet.refine.cross_updates: no effect with cclnet.refine.cross=0")
    is_coupled = is_ever_coupled(config) and config.labels != "identities"
    if config.matching.exclusion and not is_coupled:
        result.append(
            f"cclnet.matching.exclusion={config.matching.exclusion:g}: no effect, since no "
            "clusters are matched"
        )
    if config.swap.when == "step" and config.matching.camera_scaling is not None:
        raise ValueError(
            f"cclnet.matching.camera_scaling={config.matching.camera_scaling:g} is of the pairs "
            "between epochs, and swap.when=step matches in steps: choose another swap.when"
        )
    # given identities are coupled from the start
    if not is_coupled:
        return result
    for name in stages(config):
        epochs = getattr(config, name).epochs
        if name != "prompts" and start >= epochs:
            result.append(
                f"cclnet.swap.start_epoch={start} is not reached in cclnet.{name}.epochs={epochs}: "
                f'the modalities are never coupled in stage "{name}"'
            )
    return result
