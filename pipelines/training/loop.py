"""The worker loop: begin epoch -> batches -> losses -> backward -> update -> report.

The same loop runs in every Ray Train worker and, with a plain `MemoryBank` or `Planner` and any
iterator of batches, in a single process. It knows no method and holds no formula: those are in
`reid_core.methods`, behind the contract of `reid_core.method`.
"""

from __future__ import annotations

import copy
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
from pipelines.data.inputs import Measured
from pipelines.distributed import batchnorm, collectives
from pipelines.distributed.precision import set_tf32
from pipelines.distributed.prefetch import Prefetch
from pipelines.evaluation.evaluate import evaluate
from pipelines.runs import checkpoint, learned_prompts, runlog
from pipelines.training import step
from pipelines.training.epoch import EpochStart, Key
from pipelines.training.global_loss import Means
from pipelines.training.job import EpochSource, Job
from pipelines.training.progress import Progress, kept
from pipelines.training.speed import Speed
from reid_core import optim
from reid_core.agreement import clustering_stability
from reid_core.method import Labels, Opening
from reid_core.methods import METHODS
from reid_core.models import backbones
from reid_core.models.activation_checkpointing import checkpoint_blocks
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
        self.checkpoint_s = 0.0  # seconds of the last one; logged with the epoch after it

    def run(self) -> Progress:
        """Train all stages that are not done yet."""
        self.token = collectives.broadcast_int(self.bank.open() if self.rank == 0 else 0)
        names = self.method.stages(self.settings)
        if self.rank == 0:
            runlog.rewind(self.job.run_dir, self.progress.stage, self.progress.epoch, names)
        if not self.state and self.config.evaluation.start:
            size = self.config.model.height, self.config.model.width
            start = self.method.load_encoder(self.settings, self.backbone, *size, None)
            assert isinstance(start, nn.Module)
            self._measure("start", start.to(self.device))
        begin = names.index(self.progress.stage) if self.state else 0
        for name in names[begin:]:
            self._train(name)
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
            self._seed(name, epoch)
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
        start = self._begin_epoch((name, epoch), stage, clock)
        stage.begin_epoch(epoch, start.epoch)
        stability = self._stability(stage, start.epoch.labels)
        means = Means()
        model.train()
        with clock("input"):
            batches = Prefetch(self._on_host(stage, start), self.device)
        for _ in range(start.plan.num_batches):
            with clock("input"):
                batch = next(batches, None)
            if batch is None:
                raise RuntimeError("the data stream ended before the plan")
            with clock("step"):
                self._step(stage, model, optimizer, batch, means)
        for _ in batches:
            raise RuntimeError("the data stream holds more batches than the plan")
        with clock("step"):  # the device is waited for here, once an epoch
            losses = means.read()
        num_images = sum(seeds.size for seeds in start.plan.seeds.values())
        speed = self.speed.of_epoch(num_images, clock.seconds)
        return {"losses": losses, **start.metrics, **stability, "speed": speed}

    def _step(self, stage: Stage, *work: Any) -> None:
        settings = self.config.trainer
        self.speed.step(lambda: step.take(stage, *work, settings=settings))

    def _on_host(self, stage: Stage, start: EpochStart) -> Iterator[dict[Modality, Batch]]:
        """The epoch's batches with their kind, after what is done before they go to the device."""
        kinds = chain(start.plan.kinds, repeat(""))
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
        if self.world > 1:
            batchnorm.convert(stage.module)
        if self.config.trainer.activation_checkpointing:
            checkpoint_blocks(stage.module)
        # Channels last is a third faster, on CPUs and on tensor cores.
        for module in (stage.encoder, stage.module):
            assert isinstance(module, nn.Module)
            module.to(self.device).to(memory_format=torch.channels_last)
        return stage

    def _seed(self, name: str, epoch: int) -> None:
        """Every epoch of every worker draws from its own stream: no random state is to be kept."""
        number = self.method.stages(self.settings).index(name)
        stream = np.random.SeedSequence((self.config.seed, number, epoch, self.rank))
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
        """Scores of the encoder under the data set's protocols; rank 0 keeps the details."""
        assert isinstance(encoder, nn.Module)
        encoder.eval()  # not folded: the checkpoint's scores are these
        job, progress = self.job, self.progress
        found = {
            name: self._embed_split(encoder, measured)
            for name, measured in (("scores", job.measured), ("selection", job.selection))
            if measured is not None
        }
        if self.rank or job.measured is None:
            return {}
        result = evaluate(job.kind, job.measured.split, found["scores"])
        result.save_details(job.run_dir / "evaluation" / f"{row}.npz")
        progress.scores[row] = result.headline
        progress.table, progress.chance = result.table, result.chance
        if job.selection is None:
            return {"scores": result.headline}
        other = evaluate(job.kind, job.selection.split, found["selection"]).headline
        if row != "start" and other["mAP"] > progress.selected:
            progress.selected, progress.scores["selected"] = other["mAP"], result.headline
        return {"scores": result.headline, "selection": other}

    def _embed_split(self, encoder: Encoder, measured: Measured) -> np.ndarray:
        """Features of a split's samples, on rank 0; none elsewhere."""
        split = measured.split
        num_rows = 0 if self.rank else len(split)
        found = np.empty((num_rows, encoder.feature_dim), dtype=np.float32)
        for m in self.method.inputs:
            share = self._embed(encoder.embed, measured.inputs, m)
            rows = collectives.gather_shares_on_first(share, measured.inputs.num_rows(m))
            if rows is not None:
                found[split.rows(m)] = rows.cpu().numpy()
        return found

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
        if not self.state or self.state["progress"]["stage"] != name:
            return 0
        saved, expected = self.state["module"], kept(stage)
        if saved.keys() != expected.keys():
            raise ValueError(
                f"the checkpoint is of another model: missing {expected.keys() - saved.keys()}, "
                f"unexpected {saved.keys() - expected.keys()}"
            )
        stage.module.load_state_dict(saved, strict=False)
        # a copy, since torch keeps the tensors that it is given and steps change them
        optimizer.load_state_dict(copy.deepcopy(self.state["optimiser"]))
        if stage.clusters:
            epoch = self.state["epoch"]
            self.labels = {m: epoch[f"labels.{m}"].numpy() for m in self.method.inputs}
        return int(self.state["progress"]["epoch"]) + 1
