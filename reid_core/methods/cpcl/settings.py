"""What CPCL can be told.

The paper released no code and its body could not be read, so nothing here is a value of the paper.
Each field says "Reconstruction" and where its default comes from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from reid_core.method import Supervision
from reid_core.methods.sections import Section
from reid_core.types import Modality

if TYPE_CHECKING:  # a recipe is checked without torch
    from reid_core.augmentation import Augmentation

INPUTS = (Modality.VISIBLE, Modality.TEXT)


class Clustering(Section):
    """k-reciprocal Jaccard distance and DBSCAN, per modality, before every epoch.

    That images and texts are clustered apart is reported of CPCL; the algorithm and its settings
    are a reconstruction on which five related public codes agree.

    Attributes:
        k1: Reconstruction: neighbors that reciprocity is asked for.
        k2: Reconstruction: neighbors that the weights are averaged over.
        eps: Reconstruction: largest distance between neighbors.
        min_samples: Reconstruction: neighbors that make a row a core of a cluster.
        rows: Reconstruction: what a row of the image side is. "pairs" repeats an image per
            caption, as the public codes of ICPG and CLPC do: an identity of three images with two
            captions each has six rows, enough for min_samples=4. "images" takes each image once;
            then min_samples=2 and k1 near 15 fit.
    """

    k1: int = Field(30, ge=1)
    k2: int = Field(6, ge=1)
    eps: float = Field(0.6, gt=0, lt=1)
    min_samples: int = Field(4, ge=1)
    rows: Literal["pairs", "images"] = "pairs"


class Mining(Section):
    """Outlier pseudo label mining (OPLM). That pairs are used is published, the rule is not.

    Attributes:
        sides: Reconstruction: whose outliers get labels; the abstract says "from each modality".
            "none" is the ablation.
        vote: Reconstruction: who gives the label. "nearest" is the nearest clustered row whose
            partner shares the outlier's partner's cluster, after the public code of CLPC;
            "prototype" the nearest mean of the clusters found there.
        min_similarity: Reconstruction: smallest cosine that gives a label; None = any, because
            nothing says that the paper guards.
        leftover: Reconstruction: pairs whose two sides stay outliers. "instance" keeps them in the
            instance loss with themselves as positives, since dropping pairs early starves the
            fine-tuning; "drop" leaves them out this epoch, as cluster-contrast does.
    """

    sides: Literal["none", "image", "text", "both"] = "both"
    vote: Literal["nearest", "prototype"] = "nearest"
    min_similarity: float | None = Field(None, ge=-1, le=1)
    leftover: Literal["instance", "drop"] = "instance"


class Memory(Section):
    """Prototypical multi-modal memory (PMM): one prototype per cluster of either modality.

    Attributes:
        momentum: Reconstruction: share of the old prototype in an update; cluster-contrast's,
            SpCL's and PCL-CLIP's value.
        temperature: Reconstruction: of the loss within a modality; the same codes' value.
        update: Reconstruction: "all" moves a prototype towards each of its rows in batch order;
            "hardest" once per batch, towards the row least like it, as PCL-CLIP does.
    """

    momentum: float = Field(0.2, ge=0, le=1)
    temperature: float = Field(0.05, gt=0)
    update: Literal["all", "hardest"] = "all"


class Matching(Section):
    """Hybrid cross-modal matching (HCM): instances, and instances with prototypes.

    Attributes:
        instance: Reconstruction: "sdm" is IRRA's similarity distribution matching, because CPCL's
            scores lie in that family and its matching is many-to-many; "itc" is CLIP's own
            contrast, the baseline; "multi_positive" contrasts with all positives at once, as
            CLPC's code does. (CMPM on unit rows is "sdm" at temperature 1.)
        temperature: Reconstruction: of the instance loss, fixed; IRRA's value.
        positives: Reconstruction: which pairs of a batch belong together beside those of one
            image: equal image clusters ("image", best in ICPG's ablation), equal text clusters
            ("text"), either ("union"), both ("intersection"), or none ("pair"). Outliers never
            match each other.
        prototype_temperature: Reconstruction: of the loss across modalities, by analogy with the
            memory's; 0.02 is the natural alternative.
        targets: Reconstruction: "hard" takes the cluster of the pair's other side; "soft" and
            "divergence" spread the target over all clusters that occur together with the row's
            own cluster: the literal reading of the abstract's "many-to-many". "soft" is a cross
            entropy, "divergence" the KL divergence from the prediction, as in SDM.
        hard_negatives: Reconstruction, speculative: keep only so many prototypes without target in
            the softmax; None = all.
    """

    instance: Literal["sdm", "itc", "multi_positive"] = "sdm"
    temperature: float = Field(0.02, gt=0)
    positives: Literal["image", "text", "union", "intersection", "pair"] = "image"
    prototype_temperature: float = Field(0.05, gt=0)
    targets: Literal["hard", "soft", "divergence"] = "hard"
    hard_negatives: int | None = Field(None, ge=1)


class Training(Section):
    """Optimization: IRRA's recipe, which ICPG and CLPC took over.

    Attributes:
        epochs: Reconstruction: of the training.
        batch_size: Reconstruction: pairs in a global batch.
        sampler: Reconstruction: "random" goes once through all pairs, as IRRA does; "pk" draws
            image clusters and rows of them, as cluster-contrast does.
        instances: Reconstruction: K of "pk"; P is batch_size / K.
        lr: Reconstruction: base rate of Adam, biases twice as much.
        eps: Reconstruction: of Adam. 1e-3 is no slip: it damps small gradients; with 1e-8 the
            same rate is a far stronger optimizer.
        weight_decay: Reconstruction: of everything but biases.
        warmup_epochs: Reconstruction: from a tenth of the rate, linearly; then a cosine to 0.
        text_mask: Reconstruction: share of words that are masked in training. Off, because
            CPCL's use is unknown; 0.15 is IRRA's and worth about three points in ICPG's table.
        evaluate_every: epochs between evaluations; 0 only after the last one.
    """

    epochs: int = Field(60, ge=1)
    batch_size: int = Field(64, ge=2)
    sampler: Literal["random", "pk"] = "random"
    instances: int = Field(4, ge=1)
    lr: float = Field(1e-5, gt=0)
    eps: float = Field(1e-3, gt=0)
    weight_decay: float = Field(4e-5, ge=0)
    warmup_epochs: int = Field(5, ge=0)
    text_mask: float = Field(0.0, ge=0, le=1)
    evaluate_every: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _has_whole_clusters(self) -> Training:
        if self.sampler == "pk" and self.batch_size < self.instances:
            raise ValueError(
                f"batch_size={self.batch_size} holds no cluster of instances={self.instances}: "
                "raise batch_size or lower instances"
            )
        return self


class Config(Section):
    """Everything CPCL can be told.

    Attributes:
        labels: "clusters" is the method. "identities" trains with the given pids as labels
            of both modalities: an upper bound, not weakly supervised.
        lambda1: Reconstruction: weight of the prototype loss within each modality (L_pmm); the
            paper's weights are unknown.
        lambda2: Reconstruction: weight of the prototype loss across modalities (L_xp).
        prototypes_from: Reconstruction: first epoch with prototype losses, from 0. Early labels
            are noisy; ICPG delays such a term.
    """

    labels: Literal["clusters", "identities"] = "clusters"
    clustering: Clustering = Clustering()
    mining: Mining = Mining()
    memory: Memory = Memory()
    matching: Matching = Matching()
    lambda1: float = Field(1.0, ge=0)
    lambda2: float = Field(1.0, ge=0)
    prototypes_from: int = Field(0, ge=0)
    train: Training = Training()


def uses_prototypes(config: Config, epoch: int) -> bool:
    """Whether any loss of this epoch reads the memory."""
    return max(config.lambda1, config.lambda2) > 0 and epoch >= config.prototypes_from


def check(config: Config) -> list[str]:
    """Warnings about settings that have no effect, or none that is meant."""
    result = []
    matching, train = config.matching, config.train
    if train.warmup_epochs >= train.epochs:
        result.append(
            f"cpcl.train.warmup_epochs={train.warmup_epochs} reaches the end of "
            f"cpcl.train.epochs={train.epochs}: the rate never falls"
        )
    if not uses_prototypes(config, train.epochs - 1) and config.lambda1 + config.lambda2 > 0:
        result.append(
            f"cpcl.prototypes_from={config.prototypes_from} is not reached in "
            f"cpcl.train.epochs={train.epochs}: no prototype loss is ever used"
        )
    # the default is nobody's wish
    if matching.instance == "itc" and matching.positives not in ("image", "pair"):
        result.append("cpcl.matching.positives has no effect with cpcl.matching.instance=itc")
    if config.lambda2 == 0 and (matching.targets != "hard" or matching.hard_negatives):
        result.append(
            "cpcl.matching.targets and cpcl.matching.hard_negatives have no effect with "
            "cpcl.lambda2=0"
        )
    if config.lambda1 == 0 and config.memory.temperature != Memory().temperature:
        result.append("cpcl.memory.temperature has no effect with cpcl.lambda1=0")
    if train.sampler == "pk" and train.batch_size % train.instances:
        result.append(
            f"cpcl.train.batch_size={train.batch_size} is no multiple of "
            f"cpcl.train.instances={train.instances}: batches are smaller than asked for"
        )
    return result


def supervision(config: Config) -> Supervision:
    """What it is told about the training identities: which caption describes which image."""
    return "identities" if config.labels == "identities" else "pairs"


def needs_text(config: Config) -> bool:
    """Always: queries are sentences."""
    return True


def stages(config: Config) -> tuple[str, ...]:
    """There is one."""
    return ("train",)


def batch_rows(config: Config) -> dict[str, int]:
    """Pairs of a global batch, under the key that decides them."""
    settings = config.train
    if settings.sampler == "pk":
        whole = settings.batch_size // settings.instances * settings.instances
        return {"cpcl.train.batch_size in whole cpcl.train.instances": whole}
    return {"cpcl.train.batch_size": settings.batch_size}


def augmentations(config: Config, base: Augmentation) -> dict[Modality, tuple[Augmentation, ...]]:
    """One view per image, which keeps its colors: the captions name them."""
    return {Modality.VISIBLE: (replace(base, grayscale=0.0, mix=0.0, relight=0.0),)}
