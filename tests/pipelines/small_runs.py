"""Whole runs of every method in seconds, without Ray: one process, or several over gloo."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.config import run as configuration
from pipelines.config.overrides import apply
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.data.batches import training_batches
from pipelines.data.decode import DecodeAndAugment
from pipelines.data.inputs import Inputs
from pipelines.data.plan import Plan
from pipelines.data.prepare import FindBroken, Prepared, prepare
from pipelines.data.sample_list import Row
from pipelines.distributed import collectives
from pipelines.runs import checkpoint
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.epoch_maker import EpochMaker, epoch_maker_of
from pipelines.training.job import Job
from pipelines.training.memory_bank import MemoryBank
from reid_core.datasets import synthetic
from reid_core.types import Batch, Modality

IDENTITIES, HEIGHT, WIDTH = 10, 32, 16
CPU = torch.device("cpu")
_IMAGES = {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine", "evaluate_every": 0}
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "cclnet": (
        "sysu",
        {
            "clustering": {"k1": 8, "k2": 3, "min_samples": 2},
            "swap": {"start_epoch": 0},
            "prepare": {
                "clusters_per_batch": 4,
                "instances": 2,
                "epochs": 2,
                "batches_per_epoch": 2,
                **_IMAGES,
            },
            "prompts": {"epochs": 2, "batch_size": 32},
            "align": {
                "clusters_per_batch": 4,
                "instances": 2,
                "epochs": 2,
                "batches_per_epoch": 2,
                **_IMAGES,
            },
        },
    ),
    "bmil": (
        "sysu",
        {
            "clustering": {"k1": 8, "k2": 3, "min_samples": 2, "joint_eps": 0.5},
            "intra": {
                "clusters_per_batch": 4,
                "instances": 2,
                "epochs": 2,
                "batches_per_epoch": 2,
                **_IMAGES,
            },
            "joint": {
                "clusters_per_batch": 4,
                "instances": 2,
                "epochs": 2,
                "batches_per_epoch": 2,
                **_IMAGES,
            },
        },
    ),
    "csdn": (
        "sysu",
        {
            "prompts": {"epochs": 2, "batch_size": 32},
            "fusion": {"epochs": 2, "batch_size": 32},
            "images": {
                "identities_per_batch": 4,
                "instances": 2,
                "epochs": 2,
                "batches_per_epoch": 2,
                **_IMAGES,
            },
        },
    ),
    "cpcl": (
        "cuhk",
        {
            "clustering": {"k1": 8, "k2": 3, "min_samples": 2},
            "train": {
                "epochs": 2,
                "warmup_epochs": 1,
                "batch_size": 16,
                "lr": 1e-3,
                "text_mask": 0.15,
                "evaluate_every": 0,
            },
        },
    ),
}


_OURS = (  # what cross_demo.yaml adds to CCLNet
    "cclnet.image_to_text=0",
    "cclnet.matching={shared: true, whitened: agreed}",
    "cclnet.views={visible: 2}",
    "cclnet.refine={labels: voted, weights: true, neighbors: 8}",
    "cclnet.teacher=0.95",
    "cclnet.flip=true",
)


def write_trees(root: Path) -> None:
    """The identities that all small runs train on."""
    for kind in {kind for kind, _ in _METHODS.values()}:
        synthetic.write(root / kind, num_identities=IDENTITIES, seed=4, layout=kind, height=HEIGHT)


def make_config(method: str, root: Path, *overrides: str) -> RunConfig:
    """A method's small run on the trees below `root`.

    "cclnet-vit" is CCLNet on a transformer, "cclnet-ours" has the options of ours.
    """
    method, _, variant = method.partition("-")
    model = "crossreid-small-vit" if variant == "vit" else "crossreid-small"
    kind, settings = _METHODS[method]
    content: dict[str, Any] = {
        "method": method,
        "data": {"kind": kind, "root": str(root / kind)},
        "model": {
            "name": model,
            "pretrained": "bundled",
            "height": HEIGHT,
            "width": WIDTH,
        },
        "augmentation": {"pad": 2},
        "evaluation": {"start": False, "calibrate": False},
        method: copy.deepcopy(settings),
        "trainer": {"embed_batch": 32, "max_failures": 0},
    }
    for override in (*(_OURS if variant == "ours" else ()), *overrides):
        apply(content, override)
    return configuration.validate(content, source="test")


def prepare_data(
    config: RunConfig,
    find_broken: FindBroken = lambda inputs, modality: [],
    *,
    begun: Sequence[Row] | None = None,
) -> Prepared:
    """What a run trains on, once the gate let its data set pass."""
    return prepare(config, gate.check_data(config), find_broken, begun=begun)


@dataclass(frozen=True)
class Small:
    """One process's share of a run.

    Attributes:
        job: the work.
        bank: this process's own; every process comes to the same answers.
        rank, world: processes, not shards.
    """

    job: Job
    bank: EveryonesBank
    rank: int
    world: int

    def batches(self, start: EpochStart) -> Iterator[dict[Modality, Batch]]:
        """This process's batches of an epoch."""
        return training_batches(
            _lines(start.plan, self.job, self.rank, self.world),
            shape=start.plan.shape,
            rank=self.rank,
            world=self.world,
            tokens=self.job.train.tokens,
            first=start.plan.first,
        )


def open_run(config: RunConfig, run_dir: Path) -> Small:
    """A run, or what goes on with it: a bank that knows nothing yet."""
    run_dir.mkdir(parents=True, exist_ok=True)
    prepared = prepare_data(config)
    job = Job.of(config, prepared, run_dir)
    everyones = EveryonesBank(epoch_maker_of(job, prepared)(), job.train)
    return Small(job, everyones, collectives.rank(), collectives.world_size())


class EveryonesBank:
    """A memory bank in every process, each of which is given all features.

    Shards of one process share it, as they would share the actor.
    """

    def __init__(self, bank: EpochMaker, inputs: Inputs) -> None:
        self._bank, self._inputs = bank, inputs
        self._own = bank.open()

    def open(self) -> int:
        """A new incarnation on rank 0; the others, which nobody asks, keep theirs."""
        self._own = self._bank.open()
        return self._own

    def add_features(
        self, token: int, key: Key, modality: Modality, features: Tensor, rank: int, world: int
    ) -> None:
        """Hand in the shares of all workers in the name of this one."""
        assert isinstance(self._bank, MemoryBank)
        whole = collectives.gather_shares(features, self._inputs.num_rows(modality))
        for r, part in enumerate(collectives.shares(len(whole), world)):
            self._bank.add_features(self._own, key, modality, whole[part], r, world)

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart:
        """See `MemoryBank.begin_epoch`."""
        return self._bank.begin_epoch(self._own, key, world)


class Kept:
    """What `report` is given: the states of a run as they would be read from the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.states: list[dict[str, Any]] = []

    def __call__(self, line: dict[str, Any], state: dict[str, Any] | None) -> None:
        """Write the state and read it back."""
        if state is not None:
            checkpoint.save(self._folder, state, {})
            self.states.append(checkpoint.load(self._folder))

    @property
    def hashes(self) -> list[str]:
        """Of all states."""
        return [checkpoint.content_hash(state) for state in self.states]


def _lines(plan: Plan, job: Job, rank: int, world: int) -> Iterator[dict[str, np.ndarray]]:
    """What Ray Data would stream, without Ray."""
    decode = DecodeAndAugment(
        height=job.train.height,
        width=job.train.width,
        decoded=job.train.decoded,
        transforms=job.transforms,
    )
    from pipelines.data.datasource import PlanDatasource  # needs Ray

    source = PlanDatasource(plan, job.train, rank=rank, world=world, batches_per_block=1)
    for task in source.get_read_tasks(1):
        for block in task():
            yield decode({name: block[name].to_numpy() for name in block.column_names})
