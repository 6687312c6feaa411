"""The worker loop: begin epoch -> batches -> losses -> backward -> bank update -> report.

The same loop runs in every Ray Train worker and, with a plain `MemoryBank` and any iterator of
batches, in a single process. It holds no formula: those are in `reid_core.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from pipelines import batchnorm, collectives, features, runlog
from pipelines.config import RunConfig
from pipelines.data import ImageFiles
from pipelines.evaluate import evaluate
from pipelines.memory_bank import EpochStart, Key
from pipelines.objective import Means, total_loss
from pipelines.state import Progress, kept
from reid_core import optim, sampling
from reid_core.memory import ClusterMemory
from reid_core.methods import cclnet, cclnet_settings
from reid_core.models import clip
from reid_core.models.encoders import Features, TwoStemEncoder
from reid_core.transforms import normalise
from reid_core.types import OUTLIER, Batch, Modality, Split

MODALITIES = cclnet.MODALITIES


class Bank(Protocol):
    """What the loop asks of the memory bank; `MemoryBank` or a proxy of its actor."""

    def open(self) -> int: ...

    def add_features(
        self, token: int, key: Key, modality: Modality, features: np.ndarray, rank: int, world: int
    ) -> None: ...

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart: ...


@dataclass(frozen=True)
class Job:
    """What is trained on, and where results go; the same for every worker.

    Attributes:
        config: the run's configuration.
        run_dir: run directory, on a file system that all workers see.
        train: training images; `evaluation`: images of the split that is measured.
        test: rows and person ids of that split.
    """

    config: RunConfig
    run_dir: Path
    train: ImageFiles
    evaluation: ImageFiles
    test: Split


class TrainingLoop:
    """One worker's run through all stages.

    Args:
        job: the work.
        bank: the memory bank.
        batches: opens this worker's batches of the epoch that was just begun.
        report: called after each epoch with its log line and, on rank 0, the state to keep; a
            barrier when there are several workers.
        state: what `report` was given last, to go on from there.
    """

    def __init__(
        self,
        job: Job,
        bank: Bank,
        batches: Callable[[], Iterator[dict[Modality, Batch]]],
        report: Callable[[dict[str, Any], dict[str, Any] | None], None],
        *,
        device: torch.device,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.job, self.bank, self.batches, self.report = job, bank, batches, report
        self.config, self.method = job.config, job.config.cclnet
        self.device, self.state = device, state
        self.rank, self.world = collectives.rank(), collectives.world_size()
        model = self.config.model
        self.clip = clip.load(model.name, model.pretrained)
        self.clip.text.requires_grad_(False).to(device)
        self.memories: dict[Modality, ClusterMemory] = {}
        self.progress = Progress.from_state(state["progress"]) if state else Progress()

    def run(self) -> Progress:
        """Train all stages that are not done yet."""
        torch.manual_seed(self.config.seed)
        self.token = collectives.broadcast_int(self.bank.open() if self.rank == 0 else 0)
        names = cclnet.stages(self.method)
        if self.rank == 0:
            runlog.rewind(self.job.run_dir, self._done(names))
        if not self.state and self.config.evaluation.start:
            self._measure("start", self._fresh_encoder())
        begin = names.index(self.progress.stage) if self.state else 0
        for stage in names[begin:]:
            if stage == "prompts":
                self._train_prompts()
            else:
                self._train_images(stage)
        return self.progress

    # Stages 0 and 2 ------------------------------------------------------------------------------

    def _train_images(self, stage: str) -> None:
        encoder = self._fresh_encoder()
        cclnet.train_only(stage, encoder, self.method)
        optimiser = cclnet_settings.optimiser(self.method, stage, encoder)
        first = self._resume(stage, encoder, optimiser)
        model = self._distributed(encoder)
        settings: cclnet_settings.ImageStage = getattr(self.method, stage)
        for epoch in range(first, settings.epochs):
            clock = runlog.Clock()
            line = self._image_epoch(stage, epoch, encoder, model, optimiser, clock)
            last = epoch + 1 == settings.epochs
            every = settings.evaluate_every
            if last or (every and (epoch + 1) % every == 0):
                with clock("evaluate"):
                    line["scores"] = self._measure(stage, encoder)
            self._finish_epoch(stage, epoch, line, clock, encoder, optimiser)

    def _image_epoch(
        self,
        stage: str,
        epoch: int,
        encoder: TwoStemEncoder,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        clock: runlog.Clock,
    ) -> dict[str, Any]:
        start = self._begin_epoch((stage, epoch), encoder, clock)
        memories = {
            m: ClusterMemory(
                torch.tensor(start.banks[m], device=self.device),
                momentum=self.method.memory.momentum,
                temperature=self.method.memory.temperature,
            )
            for m in MODALITIES
        }
        self.memories, self.epoch = memories, start
        lr = cclnet_settings.learning_rate(self.method, stage, epoch)
        optim.set_lr(optimiser, lr)
        guidance = self._guidance(stage)
        means = Means(self.device)
        model.train()
        with clock("input"):
            batches = self.batches()
        for _ in range(start.num_batches):
            with clock("input"):
                batch = next(batches)
            with clock("step"):
                found = self._step(model, optimiser, batch, memories, guidance, means)
                cclnet.update(self.method, memories, *found, pairs=start.pairs, epoch=epoch)
        for _ in batches:
            raise RuntimeError("the data stream holds more batches than the plan")
        if stage == "prepare":
            self.progress.labels = {m: torch.tensor(start.labels[m]) for m in MODALITIES}
        return {"lr": lr, "losses": means.read(), **start.metrics}

    def _begin_epoch(self, key: Key, encoder: TwoStemEncoder, clock: runlog.Clock) -> EpochStart:
        """Hand this worker's features to the bank; the visible ones are clustered meanwhile."""
        encoder.eval()
        for m in MODALITIES:
            with clock("embed"):
                mine = self._embed(encoder.embed, self.job.train, m)
                self.bank.add_features(
                    self.token, key, m, mine.cpu().numpy(), self.rank, self.world
                )
        with clock("cluster"):
            start = self.bank.begin_epoch(self.token, key, self.world)
        for phase in ("match", "plan"):
            clock.seconds[phase] += start.seconds[phase]
            clock.seconds["cluster"] = max(0.0, clock.seconds["cluster"] - start.seconds[phase])
        return start

    def _step(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        batch: Mapping[Modality, Batch],
        memories: Mapping[Modality, ClusterMemory],
        guidance: cclnet.Guidance | None,
        means: Means,
    ) -> tuple[dict[Modality, Tensor], dict[Modality, Tensor]]:
        """One optimiser step; returns the global batch's unit features and labels."""
        images = [normalise(batch[m].images.to(self.device)) for m in MODALITIES]
        outputs = _by_modality(model(*images), [len(x) for x in images])
        labels = {m: batch[m].labels.to(self.device) for m in MODALITIES}
        rows = {m: batch[m].rows.to(self.device) for m in MODALITIES}
        terms = cclnet.terms(self.method, outputs, labels, memories, rows=rows, guidance=guidance)
        optimiser.zero_grad(set_to_none=True)
        total_loss(terms, means).backward()
        optimiser.step()
        x = {m: functional.normalize(outputs[m].neck.detach()) for m in MODALITIES}
        return (
            {m: collectives.gather_rows(x[m]) for m in MODALITIES},
            {m: collectives.gather_rows(labels[m]) for m in MODALITIES},
        )

    def _guidance(self, stage: str) -> cclnet.Guidance | None:
        if stage != "align" or not self.progress.anchors:
            return None
        return cclnet.Guidance(
            anchors={m: x.to(self.device) for m, x in self.progress.anchors.items()},
            labels={m: y.to(self.device) for m, y in self.progress.labels.items()},
        )

    # Stage 1 -------------------------------------------------------------------------------------

    def _train_prompts(self) -> None:
        labels = {m: self.progress.labels[m].to(self.device) for m in MODALITIES}
        encoder = self._fresh_encoder().eval()
        images = {m: self._embed_all(encoder.project, self.job.train, m) for m in MODALITIES}
        kept = {m: labels[m] != OUTLIER for m in MODALITIES}
        images = {m: images[m][kept[m]] for m in MODALITIES}
        labels = {m: labels[m][kept[m]] for m in MODALITIES}
        classes = {m: int(labels[m].max()) + 1 for m in MODALITIES}
        prompts = cclnet.Prompts(self.clip, classes, seed=self.config.seed).to(self.device)
        optimiser = cclnet_settings.optimiser(self.method, "prompts", prompts)
        first = self._resume("prompts", prompts, optimiser)
        model = self._distributed(prompts)
        for epoch in range(first, self.method.prompts.epochs):
            clock = runlog.Clock()
            with clock("step"):
                line = self._prompt_epoch(epoch, model, optimiser, images, labels)
            if epoch + 1 == self.method.prompts.epochs:
                self.progress.anchors = {m: x.cpu() for m, x in prompts.anchors().items()}
            self._finish_epoch("prompts", epoch, line, clock, prompts, optimiser)

    def _prompt_epoch(
        self,
        epoch: int,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        images: Mapping[Modality, Tensor],
        labels: Mapping[Modality, Tensor],
    ) -> dict[str, Any]:
        lr = cclnet_settings.learning_rate(self.method, "prompts", epoch)
        optim.set_lr(optimiser, lr)
        size = self.method.prompts.batch_size
        plan = sampling.prompt_plan(
            *(len(labels[m]) for m in MODALITIES),
            batch_size=size,
            seed=self.config.seed,
            epoch=epoch,
        )
        means = Means(self.device)
        mine = collectives.slice_of(size)
        for positions in zip(*plan, strict=True):
            rows = dict(zip(MODALITIES, map(torch.from_numpy, positions), strict=True))
            everyone = {m: (images[m][rows[m]], labels[m][rows[m]]) for m in MODALITIES}
            texts = model({m: y[mine] for m, (_, y) in everyone.items()})
            terms = cclnet.prompt_terms(
                self.method,
                {
                    m: cclnet.PromptBatch(x[mine], texts[m], y[mine])
                    for m, (x, y) in everyone.items()
                },
                {
                    m: cclnet.PromptBatch(x, collectives.gather_rows_with_gradient(texts[m]), y)
                    for m, (x, y) in everyone.items()
                },
            )
            optimiser.zero_grad(set_to_none=True)
            total_loss(terms, means).backward()
            optimiser.step()
        return {"lr": lr, "losses": means.read()}

    # Shared by the stages ------------------------------------------------------------------------

    def _fresh_encoder(self) -> TwoStemEncoder:
        """The encoder with CLIP's weights, on the device."""
        size = self.config.model
        encoder = cclnet.build(self.clip, height=size.height, width=size.width)
        if self.world > 1:
            batchnorm.convert(encoder)
        # Channels last is a third faster, on CPUs and on tensor cores.
        return encoder.to(self.device).to(memory_format=torch.channels_last)

    def _distributed(self, module: nn.Module) -> nn.Module:
        if self.world == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def _embed(self, head: features.Head, files: ImageFiles, modality: Modality) -> Tensor:
        rows = np.arange(len(files.paths[modality]))
        return features.embed(
            head,
            files,
            modality,
            rows[collectives.slice_of(len(rows))],
            batch_size=self.config.trainer.embed_batch,
            device=self.device,
        )

    def _embed_all(self, head: features.Head, files: ImageFiles, modality: Modality) -> Tensor:
        mine = self._embed(head, files, modality)
        return collectives.gather_shares(mine, len(files.paths[modality]))

    def _measure(self, row: str, encoder: TwoStemEncoder) -> dict[str, float]:
        """Scores of the encoder under the data set's protocols; rank 0 keeps the details."""
        encoder.eval()
        split, files = self.job.test, self.job.evaluation
        found = np.empty((len(split), encoder.feature_dim), dtype=np.float32)
        for m in MODALITIES:
            found[split.rows(m)] = self._embed_all(encoder.embed, files, m).cpu().numpy()
        if self.rank:
            return {}
        result = evaluate(self.config.data.kind, split, found)
        result.save_details(self.job.run_dir / "evaluation" / f"{row}.npz")
        self.progress.scores[row] = result.headline
        self.progress.table, self.progress.chance = result.table, result.chance
        return result.headline

    def _finish_epoch(
        self,
        stage: str,
        epoch: int,
        line: dict[str, Any],
        clock: runlog.Clock,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self.progress = replace(self.progress, stage=stage, epoch=epoch)
        line = {"stage": stage, "epoch": epoch, **line}
        with clock("checkpoint"):
            state = self._state(module, optimiser) if self.rank == 0 else None
            self.report(line, state)
        if self.rank == 0:
            runlog.append_metrics(self.job.run_dir, {**line, "seconds": dict(clock.seconds)})

    def _state(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        state = {
            "config": self.config.model_dump(mode="json"),
            "progress": self.progress.state_dict(),
            "module": kept(module),
            "optimiser": optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.memories:
            state["memories"] = {str(m): self.memories[m].state_dict() for m in MODALITIES}
            state["labels"] = {str(m): torch.tensor(self.epoch.labels[m]) for m in MODALITIES}
            state["pairs"] = torch.tensor(self.epoch.pairs)
        return state

    def _resume(self, stage: str, module: nn.Module, optimiser: torch.optim.Optimizer) -> int:
        """Load the saved state if it belongs to this stage; returns the first epoch to run."""
        if not self.state or self.state["progress"]["stage"] != stage:
            return 0
        saved, expected = self.state["module"], kept(module)
        if saved.keys() != expected.keys():
            raise ValueError(
                f"the checkpoint is of another model: missing {expected.keys() - saved.keys()}, "
                f"unexpected {saved.keys() - expected.keys()}"
            )
        module.load_state_dict(saved, strict=False)
        optimiser.load_state_dict(self.state["optimiser"])
        torch.set_rng_state(self.state["random"])
        return int(self.state["progress"]["epoch"]) + 1

    def _done(self, names: tuple[str, ...]) -> list[tuple[str, int]]:
        if not self.state:
            return []
        done = []
        for name in names[: names.index(self.progress.stage) + 1]:
            epochs = getattr(self.method, name).epochs
            until = self.progress.epoch + 1 if name == self.progress.stage else epochs
            done += [(name, epoch) for epoch in range(until)]
        return done


def _by_modality(output: Features, sizes: list[int]) -> dict[Modality, Features]:
    parts = [torch.split(x, sizes) for x in (output.pooled, output.neck, output.projected)]
    return {m: Features(*(part[i] for part in parts)) for i, m in enumerate(MODALITIES)}
