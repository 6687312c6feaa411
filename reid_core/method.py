"""What a method is to the machinery: one `Method`, and what passes between it and the epochs.

A method is a folder of `reid_core.methods` whose `__init__` holds its `Method`. `Method` is a
frozen dataclass of functions and not a Protocol: a method has no state that an object could hide, a
dataclass says which parts may be missing (None) and which are facts (flags, words, the demo), and a
type checker compares every function with its place where the method is written down.

A method can be asked for everything but its work without torch, so that a recipe is read, checked
and explained quickly. What needs torch (`cluster`, `begin_epoch`, `open_stage`, `load_encoder`) is
imported by small functions beside the `Method` when they are called; they are written out, a method
at a time, so that their types are checked.

All functions are pure, of the settings and one context. A context has room for what some method
needs; each reads what it needs, and none has parameters that are never anything but None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel

from reid_core.types import Modality

if TYPE_CHECKING:
    from torch import Tensor

    from reid_core.augmentation import Augmentation
    from reid_core.knn.neighbors import Search
    from reid_core.knn.products import Features
    from reid_core.models.backbones import Backbone
    from reid_core.stage import CachedStage, Encoder, Epoch, StreamedStage

Config = TypeVar("Config", bound=BaseModel)
Labels = Mapping[Modality, np.ndarray]
"""Per modality (n,) int64 classes from 0; -1 = outlier or unknown."""
Views = Mapping[Modality, "tuple[Augmentation, ...]"]
"""Per image modality one augmentation for each view of an image."""

Supervision = Literal["none", "pairs", "within", "identities"]
"""What a method is told about the training rows: nothing; which caption describes which image;
classes of each modality alone (identities or tracklets), which say nothing across modalities; who
is who everywhere."""


@dataclass(frozen=True)
class BetweenEpochs:
    """What is known between two epochs.

    Attributes:
        stage: name of the stage that the next epoch belongs to.
        epoch: its number within the stage, from 0.
        seed: of the run; what is drawn depends on (seed, stage, epoch) only.
        features: per modality (n, D) unit rows, in row order, an array or a tensor on any device.
            `cluster` finds its own modality here, `begin_epoch` all of them; empty where the method
            reads none (`Method.reads_features`).
        search: nearest rows, in this process or on many machines.
        identities: given classes where `Method.supervision` asks for them, else None. With "within"
            the numbers of different modalities mean nothing to each other.
        owners: (n captions,) int64 image row of each caption; None without captions.
        cameras: per modality (n,) int64 camera numbers; None where one is not known. No labels of
            identities, but a method that reads them says so.
    """

    stage: str
    epoch: int
    seed: int
    features: Mapping[Modality, Features] = field(default_factory=dict)
    search: Search | None = None
    identities: Labels | None = None
    owners: np.ndarray | None = None
    cameras: Labels | None = None

    @property
    def nearest(self) -> Search:
        """`search`, or that of this process where none was given."""
        if self.search is not None:
            return self.search
        from reid_core.knn.search import nearest

        return nearest

    def rows(self, modality: Modality) -> np.ndarray:
        """A modality's features (n, D) as an array on the host."""
        from reid_core.knn.products import on_host

        return on_host(self.features[modality])


@dataclass(frozen=True)
class EpochPlan:
    """What a method decides for one epoch: its global batches, and what rows are compared with.

    Rows of images count within their modality, rows of captions within the captions.

    Attributes:
        rows: per image modality (batches, B) int64, the global batches.
        labels: per modality (n,) int64 classes, -1 = outlier.
        place_labels: per image modality (batches, B) the class of each place, where that is not its
            row's in `labels`; empty where it is. A row may stand in batches of several kinds.
        kinds: of each batch, in words of the method's own, for its stage to tell them apart
            (`Batch.kind`); empty where all are alike. What stands in for an unreadable image is of
            the same class in a batch of the same kind.
        captions: (batches, B) int64, the caption of each planned visible row; None without text.
        prototypes: per modality (C, D) float32 unit rows; empty where a method has none.
        pairs: (M, 2) int64 matched clusters; empty where nothing is coupled.
        similarity: (M,) cosine of the matched prototypes, for the log; (0,) where matched
            clusters have one prototype for both.
        arrays: what else the method's stage needs to know, under names of its own.
        counts: further numbers for the log.
        warnings: what the user should know about this epoch.
    """

    rows: Mapping[Modality, np.ndarray]
    labels: Mapping[Modality, np.ndarray]
    place_labels: Mapping[Modality, np.ndarray] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    captions: np.ndarray | None = None
    prototypes: Mapping[Modality, np.ndarray] = field(default_factory=dict)
    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    similarity: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def of_places(self) -> dict[Modality, np.ndarray]:
        """Per image modality (batches, B) the class of each place."""
        return {m: self.place_labels.get(m, self.labels[m][rows]) for m, rows in self.rows.items()}

    def for_workers(self, repeats: Mapping[Modality, int]) -> Epoch:
        """What stages are told of it, see `Epoch`."""
        from reid_core.stage import Epoch

        return Epoch(self.labels, self.prototypes, self.pairs, self.arrays, repeats)


@dataclass(frozen=True)
class Opening:
    """What a stage is opened with.

    Attributes:
        backbone: the pretrained model; stages may train its parts in place.
        height, width: of the images, in pixels.
        seed: of the run.
        handed: what earlier stages handed on, tensors by name (`Stage.hand_on`): labels, texts, or
            an encoder's whole state.
        identities: as in `BetweenEpochs`.
    """

    backbone: Backbone
    height: int
    width: int
    seed: int
    handed: Mapping[str, Tensor] = field(default_factory=dict)
    identities: Labels | None = None


@dataclass(frozen=True)
class Needed:
    """A setting that asks for something of the training rows, and how to do without.

    Attributes:
        setting, without: each a key=value.
    """

    setting: str
    without: str


@dataclass(frozen=True)
class StageWords:
    """How a stage is shown to readers.

    Attributes:
        label: short name, as the paper counts.
        description: what happens in it, in plain words.
        coupled: what was done with pairs of clusters, with {} for the number of epochs in which it
            was; "" where no pairs are formed.
    """

    label: str
    description: str
    coupled: str = ""


@dataclass(frozen=True)
class Words:
    """How a method is shown to readers.

    Attributes:
        title: headline of a report.
        lead: what was asked and what the program was told, in plain words.
        stages: by name.
        is_told_who: whether it is always given the identities, and forms no clusters.
    """

    title: str
    lead: str
    stages: Mapping[str, StageWords]
    is_told_who: bool = False


@dataclass(frozen=True)
class Demo:
    """How a method is shown on generated identities.

    Attributes:
        recipe: in tune_configs; its `data.kind` is the layout that identities are drawn in.
        fast: overrides of a smoke test.
        identities: that are drawn.
        test_share: of them are tested.
    """

    recipe: str
    fast: tuple[str, ...]
    identities: int = 500
    test_share: float = 0.5


@dataclass(frozen=True)
class Released(Generic[Config]):
    """How weights that a method's authors published become a checkpoint of it.

    Attributes:
        stage: that they are the end of.
        model: keys of a recipe's section `model` that they were trained with.
        settings: keys of the method's own section that they were trained with.
        module_state: of the stage, from the settings and the state dict of the file. Raises
            ValueError, with the names, where the file holds something else.
        quick_gelu: whether the transformers of the model use QuickGELU.
    """

    stage: str
    model: Mapping[str, str | int | None]
    module_state: Callable[[Config, Mapping[str, Tensor]], dict[str, Tensor]]
    settings: Mapping[str, str] = field(default_factory=dict)
    quick_gelu: bool = True


@dataclass(frozen=True)
class Method(Generic[Config]):
    """A published method.

    Attributes:
        name: of its folder and of its section in a recipe.
        title: as its paper writes it.
        config: its settings; the paper's values are the defaults. `config.<stage>.epochs` is the
            length of a stage.
        inputs: modalities that it embeds and trains on.
        words: of its report.
        demo: how it is shown on generated identities.
        supervision: what it is told about the training rows.
        needs_text: whether the model must have a text tower.
        stages: names of the stages to run, in order.
        batch_rows: {config key: rows of a global batch}, per stage.
        augmentations: of training images.
        check: of a run that is to train: warnings about settings without effect. Raises ValueError
            where they cannot be trained with, naming what to change. Settings that no version has
            taken are refused by `config` itself, before a checkpoint could hold them.
        begin_epoch: the plan of an epoch; its labels are those of `cluster`, or given ones, per
            modality; none where it has no `cluster` and is given none. Raises ValueError where no
            epoch can be made of them, naming what to change.
        open_stage: one stage of a worker, ready to train.
        load_encoder: in eval mode, from the module state of a streamed stage, or with the model's
            own weights where it is None; height, width of the images in pixels.
        cluster: labels (n,) of one modality, asked for as soon as all of its features are there,
            while the next one is still being embedded; None where `begin_epoch` decides it all.
        reads_features: whether epochs start by embedding every training image; a memory bank asks
            for them. Otherwise plans follow from given identities alone.
        can_accumulate: whether a batch may be worked on in parts (`trainer.gradient_accumulation`):
            no loss of it compares rows of the batch with each other.
        needs_cameras: the setting for which every training image must have a camera number; None
            where none asks.
        averages: whether a slow average of the weights is trained beside them, and stored with
            them.
        without_text: how a user leaves the texts out, a key=value; "" where none can.
        spent_at_opening: by stage, how the names begin of what was handed on that nothing reads
            once that stage is open: its module holds it, so its checkpoints do not hold it again.
        of_weights: settings that decide what trained weights mean: a run that starts from a
            finished stage must share them with it.
        released: how its authors' own weights are read; None where there are none.
    """

    name: str
    title: str
    config: type[Config]
    inputs: tuple[Modality, ...]
    words: Words
    demo: Demo
    supervision: Callable[[Config], Supervision]
    needs_text: Callable[[Config], bool]
    stages: Callable[[Config], tuple[str, ...]]
    batch_rows: Callable[[Config], Mapping[str, int]]
    augmentations: Callable[[Config, Augmentation], Views]
    check: Callable[[Config], list[str]]
    begin_epoch: Callable[[Config, BetweenEpochs, Labels], EpochPlan]
    open_stage: Callable[[Config, str, Opening], StreamedStage | CachedStage]
    load_encoder: Callable[[Config, Backbone, int, int, Mapping[str, Tensor] | None], Encoder]
    cluster: Callable[[Config, Modality, BetweenEpochs], np.ndarray] | None = None
    reads_features: bool = True
    can_accumulate: bool = False
    needs_cameras: Callable[[Config], Needed | None] = lambda _: None
    averages: Callable[[Config], bool] = lambda _: False
    without_text: str = ""
    spent_at_opening: Mapping[str, str] = field(default_factory=dict)
    of_weights: tuple[str, ...] = ()
    released: Released[Config] | None = None
