"""The worker loop: begin epoch -> batches -> losses -> backward -> update -> report.

The same loop runs in every Ray Train worker and, with a plain `MemoryBank` or `Planner` and any
iterator of batches, in a single process. It knows no method and holds no formula: those are in
`reid_core.methods`, behind the contract of `reid_core.method`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.data import extract_features
from pipelines.data.corrupt_images import CorruptImages
from pipelines.distributed import collectives
from pipelines.distributed.precision import set_tf32
from pipelines.distributed.prefetch import Prefetch
from pipelines.runs import checkpoint, learned_prompts, runlog
from pipelines.training import measuring, step, within_epoch
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.global_loss import Means
from pipelines.training.job import EpochSource, Job
from pipelines.training.progress import Place, Progress, kept, restore
from pipelines.training.speed import Speed
from reid_core import optim
from reid_core.agreement import clustering_stability
from reid_core.method import Labels, Opening
from reid_core.methods import METHODS
from reid_core.models import backbones
from reid_core.models.folding import folded
from reid_core.stage import CachedStage, Encoder, Stage
from reid_core.types import Batch, Modality

# First values are drawn from torch's global random state, which belongs to the whole process.
_first_values = threading.Lock()


def train(
    job: Job,
    bank: EpochSource,
    batches: Callable[[EpochStart], Iterator[dict[Modality, Batch]]],
    report: Callable[[dict[str, Any], dict[str, Any] | None], None],
    **options: Any,
) -> Progress:
    """Run one worker through all stages; arguments as `TrainingLoop` takes them."""
    return TrainingLoop(job, bank, batches, report, **options).run()


class TrainingLoop:
    """One worker's run through all stages.

    Args:
        job: the work.
        bank: what decides between epochs.
        batches: opens this worker's batches of the epoch that was just begun.
        report: called after each epoch with its log line and, on rank 0, the state to keep; a
            barrier when there are several workers.
        state: what `report` was given last, to go on from there.
        readers: threads that decode what is embedded.
        distribute: how workers take one step.
        notice: asks whether to keep what an epoch has come to, or to stop.
    """

    def __init__(
        self,
        job: Job,
        bank: EpochSource,
        batches: Callable[[EpochStart], Iterator[dict[Modality, Batch]]],
        report: Callable[[dict[str, Any], dict[str, Any] | None], None],
        *,
        device: torch.device,
        state: Mapping[str, Any] | None = None,
        readers: int = 1,
        distribute: step.Distribute = step.data_parallel,
        notice: within_epoch.Notice = within_epoch.nothing,
    ) -> None:
        self.distribute, self.readers = distribute, readers
        self.job, self.bank, self.batches, self.report = job, bank, batches, report
        self.config, self.device, self.state = job.config, device, state
        self.method, self.settings = METHODS[job.config.method], job.config.settings
        self.rank, self.world = collectives.rank(), collectives.world_size()
        set_tf32(self.config.trainer.allow_tf32)
        model = self.config.model
        with _first_values:
            self.backbone = backbones.load(model.name, model.pretrained, options=model.options())
        self.progress = Progress.from_state(state["progress"]) if state else Progress()
        self.corrupt_images = CorruptImages(
            job.train, max_share=self.config.data.max_unreadable, identities=job.identities
        )
        self.place = Place()
        self.pauses = within_epoch.Pauses(notice, self.config.trainer.checkpoint_every)
        # of the epoch that the state was kept in; None where it was kept between two
        self.within: Mapping[str, Any] | None = (state or {}).get("within")
        self.checkpoint_s = 0.0  # seconds of the last one; logged with the epoch after it

    def run(self) -> Progress:
        """Train all stages that are not done yet; less where a notice says to stop."""
        self.token = collectives.broadcast_int(self.bank.open() if self.rank == 0 else 0)
        names = self.method.stages(self.settings)
        if self.rank == 0:
            runlog.rewind(self.job.run_dir, self.progress.stage, self.progress.epoch, names)
        if not self.state and self.config.evaluation.start:
            size = self.config.model.height, self.config.model.width
            start = self.method.load_encoder(self.settings, self.backbone, *size, None)
            assert isinstance(start, nn.Module)
            self._measure("start", start.to(self.device))
        current = self.within["stage"] if self.within else self.progress.stage
        begin = names.index(current) if self.state else 0
        try:
            for name in names[begin:]:
                self._train(name)
            if self.rank == 0:
                (self.job.run_dir / checkpoint.WITHIN).unlink(missing_ok=True)
        except within_epoch.StoppedError:
            pass
        except Exception as error:
            error.add_note(f"in {self.place}")
            raise
        if self.job.train.decoded is not None:
            self.job.train.decoded.remove()
        return self.progress

    def _train(self, name: str) -> None:
        """One stage, from its first epoch that is not done yet."""
        stage = self._open(name)
        optimizer = stage.optimizer()
        self.labels: Labels = {}
        first = self._resume(name, stage, optimizer)
        model = self.distribute(stage.module, optimizer)
        self.speed = Speed(self.config.trainer, self.device)
        if self.config.trainer.gradient_compression == "bf16":
            step.compress_gradients(model)
        if self.config.trainer.compile:
            step.compile_model(model, self.config.trainer, self.device)
        if isinstance(stage, CachedStage) and first < stage.epochs:
            rows, modalities = self.corrupt_images, self.method.inputs
            stage.take({m: self._embed_all(stage.project, rows, m) for m in modalities})
        for epoch in range(first, stage.epochs):
            clock = runlog.Clock()
            lr = stage.learning_rate(epoch)
            optim.set_lr(optimizer, lr)
            self.place = Place(name, epoch)
            self._seed(name, epoch)
            self.pauses.begin()
            if isinstance(stage, CachedStage):
                found = self._cached_epoch(stage, epoch, model, optimizer, clock)
            else:
                found = self._streamed_epoch(name, stage, epoch, model, optimizer, clock)
            line = {"stage": name, "epoch": epoch, "lr": lr, **found}
            gone = self.corrupt_images.end_epoch(self.device)
            line |= gone | {"warnings": [*line.get("warnings", ()), *gone["warnings"]]}
            last, every = epoch + 1 == stage.epochs, stage.evaluate_every
            if every is not None and (last or (every and (epoch + 1) % every == 0)):
                with clock("evaluate"):
                    line |= self._measure(name, stage.encoder)
            if last:
                self.progress.handed |= stage.hand_on()
                if self.rank == 0:
                    learned_prompts.record(self.job.run_dir, stage.module, self.backbone.text_tower)
            self._finish_epoch(line, clock, stage, optimizer, last=last)

    def _streamed_epoch(
        self,
        name: str,
        stage: Stage,
        epoch: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clock: runlog.Clock,
    ) -> dict[str, Any]:
        """Images stream in; what they are compared with was decided by all of them."""
        underway = self._underway((name, epoch), stage, clock)
        plan, means = underway.start.plan, underway.means
        model.train()
        with clock("input"):
            batches = Prefetch(self._on_host(stage, underway.start), self.device)
        for number in range(plan.first, plan.num_batches):
            with clock("input"):
                batch = next(batches, None)
            if batch is None:
                raise RuntimeError("the data stream ended before the plan")
            with clock("step"):
                self._step(stage, model, optimizer, batch, means)
            if order := self.pauses.after_step():
                with clock("checkpoint"):
                    self._keep_within(stage, optimizer, underway, number + 1)
                within_epoch.stop_if(order)
        for _ in batches:
            raise RuntimeError("the data stream holds more batches than the plan")
        with clock("step"):  # the device is waited for here, once an epoch
            losses = means.read()
        num_images = sum(seeds[plan.first :].size for seeds in plan.seeds.values())
        speed = self.speed.of_epoch(num_images, clock.seconds)
        return {"losses": losses, **underway.metrics, "speed": speed}

    def _underway(self, key: Key, stage: Stage, clock: runlog.Clock) -> within_epoch.Underway:
        """An epoch at its beginning, or where it was when its state was kept."""
        if (within := self.within) is not None and self.state is not None:
            self.within = None
            underway = within_epoch.Underway.from_state(within, self.device)
            stage.begin_epoch(key[1], underway.start.epoch)
            stage.load_state_dict(self.state["epoch"])
            self.labels = underway.start.epoch.labels
            return underway
        start = self._begin_epoch(key, stage, clock)
        stage.begin_epoch(key[1], start.epoch)
        metrics = start.metrics | self._stability(stage, start.epoch.labels)
        return within_epoch.Underway(start, metrics)

    def _keep_within(
        self,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        underway: within_epoch.Underway,
        batch: int,
    ) -> None:
        where = {"stage": self.place.stage, "epoch": self.place.epoch}
        within = where | underway.state_dict(batch)
        if self.rank == 0:
            state = self._state(stage, optimizer) | {"within": within}
            within_epoch.save(self.job.run_dir, state)

    def _step(self, stage: Stage, *work: Any) -> None:
        self.place = self.place._replace(step=self.place.step + 1)
        self._seed(*self.place)
        settings = self.config.trainer
        self.speed.step(lambda: step.take(stage, *work, settings=settings))

    def _on_host(self, stage: Stage, start: EpochStart) -> Iterator[dict[Modality, Batch]]:
        """The epoch's batches with their kind, after what is done before they go to the device."""
        if start.plan.first == start.plan.num_batches:
            return
        kinds = chain(start.plan.kinds[start.plan.first :], repeat(""))
        for batch, kind in zip(self.batches(start), kinds, strict=False):
            self.corrupt_images.note(batch)
            yield stage.prepare(
                {m: replace(part, planned=None, kind=kind) for m, part in batch.items()}
            )

    def _cached_epoch(
        self,
        stage: CachedStage,
        epoch: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clock: runlog.Clock,
    ) -> dict[str, Any]:
        """Features of the frozen encoder, embedded once, stand for the images."""
        means = Means()
        model.train()
        with clock("step"):
            for batch in Prefetch(stage.batches(epoch, collectives.slice_of), self.device):
                self._step(stage, model, optimizer, batch, means)
                within_epoch.stop_if(self.pauses.after_step())  # nothing is kept: it is short
            losses = means.read()
        return {"losses": losses, "speed": self.speed.of_epoch(0, clock.seconds)}

    def _begin_epoch(self, key: Key, stage: Stage, clock: runlog.Clock) -> EpochStart:
        """Hand this worker's features to the bank; the first modality is clustered meanwhile."""
        stage.module.eval()
        with clock("embed"):
            encoder = self._to_embed(stage.encoder) if stage.clusters else stage.encoder
        for m in self.method.inputs if stage.clusters else ():
            with clock("embed"):
                mine = self._embed(encoder.embed, self.corrupt_images, m).cpu().numpy()
            with clock("cluster"):  # a bank in this process clusters at once
                self.bank.add_features(self.token, key, m, mine, self.rank, self.world)
        with clock("cluster"):
            start = self.bank.begin_epoch(self.token, key, self.world)
        for phase in ("match", "plan"):
            clock.seconds[phase] += start.seconds[phase]
            clock.seconds["cluster"] = max(0.0, clock.seconds["cluster"] - start.seconds[phase])
        return start

    def _stability(self, stage: Stage, labels: Labels) -> dict[str, Any]:
        """How much of the stage's last clustering is in this one, for the log."""
        before, self.labels = self.labels, labels
        if not stage.clusters or not before or self.job.identities is not None:
            return {}
        found = {str(m): clustering_stability(before[m], y) for m, y in labels.items()}
        return {"stability": found}

    # Opening, measuring, keeping -----------------------------------------------------------------

    def _open(self, name: str) -> Stage:
        """A stage with its modules on the device, ready for several workers."""
        with _first_values:
            opening = Opening(
                self.backbone,
                self.config.model.height,
                self.config.model.width,
                seed=self.config.seed,
                handed=self.progress.handed,
                identities=self.job.identities,
            )
            stage = self.method.open_stage(self.settings, name, opening)
        step.make_ready(stage, self.config.trainer, self.device)
        return stage

    def _seed(self, name: str, epoch: int, step: int = 0) -> None:
        """Every step of every worker draws from its own stream: no random state is to be kept."""
        number = self.method.stages(self.settings).index(name)
        stream = np.random.SeedSequence((self.config.seed, number, epoch, self.rank, step))
        torch.manual_seed(int(stream.generate_state(1, np.uint64)[0] >> 1))

    def _to_embed(self, encoder: Encoder) -> Encoder:
        """The encoder as it embeds: faster, but in strict training bit for bit as it trains."""
        assert isinstance(encoder, nn.Module)
        return encoder.eval() if self.config.trainer.strict else folded(encoder)

    def _embed(
        self, head: extract_features.Head, inputs: extract_features.Rows, modality: Modality
    ) -> Tensor:
        rows = np.arange(inputs.num_rows(modality))
        return extract_features.embed(
            head,
            inputs,
            modality,
            rows[collectives.slice_of(len(rows))],
            batch_size=self.config.trainer.embed_batch,
            device=self.device,
            readers=self.readers,
            precision=self.config.trainer.precision,
        )

    def _embed_all(
        self, head: extract_features.Head, inputs: extract_features.Rows, modality: Modality
    ) -> Tensor:
        mine = self._embed(head, inputs, modality)
        return collectives.gather_shares(mine, inputs.num_rows(modality))

    def _measure(self, row: str, encoder: Encoder) -> dict[str, dict[str, float]]:
        return measuring.measure(self.job, self.progress, row, encoder, embed=self._embed)

    def _finish_epoch(
        self,
        line: dict[str, Any],
        clock: runlog.Clock,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        *,
        last: bool,
    ) -> None:
        """Log the epoch, then keep it: a line too many is taken back, a lost one is not."""
        self.progress = replace(self.progress, stage=line["stage"], epoch=line["epoch"])
        clock.seconds["checkpoint"] = self.checkpoint_s
        if self.rank == 0:
            runlog.append_metrics(self.job.run_dir, {**line, "seconds": dict(clock.seconds)})
        began = time.perf_counter()
        state = self._state(stage, optimizer) if self.rank == 0 else None
        if state is not None and last:
            checkpoint.save_stage(self.job.run_dir, state)
        self.report(line, state)
        self.checkpoint_s = time.perf_counter() - began
        within_epoch.stop_if(self.pauses.ask())

    def _state(self, stage: Stage, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {
            "config": self.config.used(),
            "progress": self.progress.state_dict(),
            "trains_encoder": not isinstance(stage, CachedStage),
            "quick_gelu": self.backbone.quick_gelu,
            "module": kept(stage),
            "epoch": stage.state_dict(),
            "optimiser": optimizer.state_dict(),  # so spelt in format 1
        }

    def _resume(self, name: str, stage: Stage, optimizer: torch.optim.Optimizer) -> int:
        """Load the saved state if it belongs to this stage; returns the first epoch to run."""
        if not self.state or name != (self.within or self.state["progress"])["stage"]:
            return 0
        restore(self.state, stage, optimizer)
        if stage.clusters:
            epoch = self.state["epoch"]
            self.labels = {m: epoch[f"labels.{m}"].numpy() for m in self.method.inputs}
        return int(self.within["epoch"] if self.within else self.state["progress"]["epoch"] + 1)
