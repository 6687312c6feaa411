"""One epoch of a stage on one worker: what was decided before it, batches, steps, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, repeat

import torch
from torch import nn

from pipelines.distributed import collectives
from pipelines.distributed.prefetch import Prefetch
from pipelines.runs.records import EpochLine, State
from pipelines.training import step, within_epoch
from pipelines.training.clock import Clock
from pipelines.training.epoch import EpochStart, stability
from pipelines.training.equipment import Equipment
from pipelines.training.global_loss import Means
from pipelines.training.speed import Speed
from reid_core import optim
from reid_core.method import Labels
from reid_core.stage import CachedStage, StreamedStage
from reid_core.types import Batch, Modality


class StageEpochs:
    """Runs the epochs of one stage.

    Args:
        equipment: of the worker.
        name, stage: of the method.
        model: the stage's module, distributed.
        optimizer: of the module.
        labels: of the stage's last clustering, none before the first.
        underway: the state to go on from where it was kept within an epoch, else None.
        state: what is kept within an epoch, beside the epoch itself.
    """

    def __init__(
        self,
        equipment: Equipment,
        name: str,
        stage: StreamedStage | CachedStage,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        labels: Labels,
        underway: State | None,
        state: Callable[[], State],
    ) -> None:
        self._equipment, self._name, self._stage = equipment, name, stage
        self._model, self._optimizer, self._labels = model, optimizer, labels
        self._underway, self._state = underway, state
        self._settings, self._device = equipment.job.config.trainer, equipment.embedding.device
        self._speed = Speed(stage, self._settings, self._device)

    def cache(self) -> None:
        """Embed all images, once, where the stage trains on features of a frozen encoder."""
        stage, equipment = self._stage, self._equipment
        if isinstance(stage, CachedStage):
            rows, every_row = equipment.corrupt_images, equipment.embedding.every_row
            stage.take({m: every_row(stage.project, rows, m) for m in equipment.job.method.inputs})

    def run(self, epoch: int, clock: Clock) -> EpochLine:
        """Train for one epoch, or what is left of it; returns its log line."""
        rate = self._stage.learning_rate(epoch)
        optim.set_lr(self._optimizer, rate)
        self._equipment.begin_epoch(self._name, epoch)
        line: EpochLine = {"stage": self._name, "epoch": epoch, "lr": rate}
        if isinstance(self._stage, CachedStage):
            line |= self._cached(self._stage, epoch, clock)
        else:
            line |= self._streamed(self._stage, epoch, clock)
        corrupt = self._equipment.corrupt_images.end_epoch(self._device)
        line |= {**corrupt, "warnings": [*line.get("warnings", ()), *corrupt["warnings"]]}
        return line

    def _streamed(self, stage: StreamedStage, epoch: int, clock: Clock) -> EpochLine:
        """Images stream in; what they are compared with was decided by all of them."""
        underway = self._open(stage, epoch, clock)
        plan, means = underway.start.plan, underway.means
        self._equipment.skip(plan.first)
        self._model.train()
        with clock("input"):
            batches = Prefetch(self._on_host(stage, underway.start), self._device)
        for number in range(plan.first, plan.num_batches):
            with clock("input"):
                batch = next(batches, None)
            if batch is None:
                raise RuntimeError("the data stream ended before the plan")
            with clock("step"):
                self._step(batch, means)
            if order := self._equipment.pauses.after_step():
                with clock("checkpoint"):
                    self._keep(underway, number + 1)
                within_epoch.stop_if(order)
        for _ in batches:
            raise RuntimeError("the data stream holds more batches than the plan")
        with clock("step"):  # the device is waited for here, once an epoch
            losses = means.read()
        num_images = sum(seeds[plan.first :].size for seeds in plan.seeds.values())
        speed = self._speed.of_epoch(num_images, clock.seconds)
        return {"losses": losses, **underway.metrics, "speed": speed}

    def _cached(self, stage: CachedStage, epoch: int, clock: Clock) -> EpochLine:
        """Features of the frozen encoder, embedded once, stand for the images."""
        means = Means()
        self._model.train()
        with clock("step"):
            for batch in Prefetch(stage.batches(epoch, collectives.slice_of), self._device):
                self._step(batch, means)
                # nothing is kept: it is short
                within_epoch.stop_if(self._equipment.pauses.after_step())
            losses = means.read()
        return {"losses": losses, "speed": self._speed.of_epoch(0, clock.seconds)}

    def _open(self, stage: StreamedStage, epoch: int, clock: Clock) -> within_epoch.Underway:
        """An epoch at its beginning, or where it was when its state was kept."""
        state, self._underway = self._underway, None
        if state is not None:
            underway = within_epoch.Underway.from_state(state["within"], self._device)
            stage.begin_epoch(epoch, underway.start.epoch)
            stage.load_state_dict(state["epoch"])
            self._labels = underway.start.epoch.labels
            return underway
        start = self._begin(stage, epoch, clock)
        stage.begin_epoch(epoch, start.epoch)
        before, self._labels = self._labels, start.epoch.labels
        job = self._equipment.job
        clustered = job.method.reads_features and job.identities is None
        settled = stability(before if clustered else {}, self._labels)
        return within_epoch.Underway(start, start.metrics | settled)

    def _begin(self, stage: StreamedStage, epoch: int, clock: Clock) -> EpochStart:
        """Hand this worker's features to the bank; the first modality is clustered meanwhile."""
        equipment, key = self._equipment, (self._name, epoch)
        method = equipment.job.method
        bank, token = equipment.bank, equipment.token
        rank, world = collectives.rank(), collectives.world_size()
        stage.module.eval()
        with clock("embed"):
            encoder = stage.encoder
            if method.reads_features:
                encoder = equipment.embedding.to_embed(encoder)
        for m in method.inputs if method.reads_features else ():
            with clock("embed"):
                share = equipment.embedding.share(encoder.embed, equipment.corrupt_images, m)
            with clock("cluster"):  # a bank in this process clusters at once
                bank.add_features(token, key, m, share, rank, world)
                del share  # the bank has copied it
        with clock("cluster"):
            start = bank.begin_epoch(token, key, world)
        for phase in ("match", "plan"):
            clock.seconds[phase] += start.seconds[phase]
            clock.seconds["cluster"] = max(0.0, clock.seconds["cluster"] - start.seconds[phase])
        return start

    def _on_host(self, stage: StreamedStage, start: EpochStart) -> Iterator[dict[Modality, Batch]]:
        """The epoch's batches with their kind, after what is done before they go to the device."""
        plan, equipment = start.plan, self._equipment
        if plan.first == plan.num_batches:
            return
        kinds = chain(plan.kinds[plan.first :], repeat(""))
        for batch, kind in zip(equipment.batches(start), kinds, strict=False):
            equipment.corrupt_images.note(batch)
            yield stage.on_host(
                {m: replace(part, planned=None, kind=kind) for m, part in batch.items()}
            )

    def _step(self, batch: object, means: Means) -> None:
        self._equipment.begin_step()
        work = self._stage, self._model, self._optimizer, batch, means
        self._speed.step(lambda: step.take(*work, settings=self._settings), batch)

    def _keep(self, underway: within_epoch.Underway, batch: int) -> None:
        """Keep what the epoch has come to; `batch` is the next one."""
        place = self._equipment.place
        # all workers put their losses together
        within = underway.state_dict(place.stage, place.epoch, batch)
        if collectives.rank() == 0:
            within_epoch.save(self._equipment.job.run_dir, {**self._state(), "within": within})
