"""The worker loop: begin epoch -> batches -> losses -> backward -> update -> report.

The same loop runs in every Ray Train worker and, with a plain `MemoryBank` or `Planner` and any
iterator of batches, in a single process. It knows no method and holds no formula: those are in
`reid_core.methods`, behind the contract of `reid_core.method`.

Here is the way through all stages. Beside it: `opening` (the model, and stages on it),
`stage_epochs` (one epoch), `within_epoch` (pauses in it), `measuring` (scores), `state` (what is
kept and gone on from).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pipelines.distributed import collectives
from pipelines.runs import runlog
from pipelines.runs.records import EpochLine, State
from pipelines.training import state as states
from pipelines.training import step, within_epoch
from pipelines.training.clock import Clock
from pipelines.training.embedding import Embedding
from pipelines.training.equipment import Equipment, OpenBatches
from pipelines.training.job import EpochSource, Job
from pipelines.training.measuring import measure
from pipelines.training.opening import Opener
from pipelines.training.progress import Progress
from pipelines.training.stage_epochs import StageEpochs
from reid_core.stage import Encoder, Stage

Report = Callable[[EpochLine, State | None], None]
"""Takes an epoch's log line and, on rank 0, the state to keep; a barrier of several workers."""


class TrainingLoop:
    """One worker's run through all stages.

    Args:
        job: the work.
        bank: what decides between epochs.
        batches: opens this worker's batches of the epoch that was just begun.
        report: called after each epoch.
        device: of the models.
        state: what `report` was given last, to go on from there.
        readers: threads that decode what is embedded.
        distribute: how workers take one step.
        notice: asks whether to keep what an epoch has come to, or to stop.
    """

    def __init__(
        self,
        job: Job,
        bank: EpochSource,
        batches: OpenBatches,
        report: Report,
        *,
        device: torch.device,
        state: State | None = None,
        readers: int = 1,
        distribute: step.Distribute = step.data_parallel,
        notice: within_epoch.Notice = within_epoch.nothing,
    ) -> None:
        self._job, self._state, self._report, self._distribute = job, state, report, distribute
        self._opener = Opener(job, device, state)
        embedding = Embedding(job.config, device, readers)
        self._equipment = Equipment.of(job, bank, batches, notice, embedding)
        self._progress = Progress.from_state(state["progress"]) if state else Progress()
        self._checkpoint_s = 0.0  # seconds of the last one; logged with the epoch after it

    def run(self) -> Progress:
        """Train all stages that are not done yet; less where a notice says to stop."""
        job, progress = self._job, self._progress
        names = job.method.stages(job.config.settings)
        self._equipment.open_bank()
        if collectives.rank() == 0:
            runlog.rewind(job.run_dir, progress.stage, progress.epoch, names)
        if not self._state and job.config.evaluation.start:
            self._measure("start", self._opener.encoder_before_training())
        begin = names.index(states.stage_of(self._state)) if self._state else 0
        try:
            for name in names[begin:]:
                self._train(name)
            if collectives.rank() == 0:
                within_epoch.forget(job.run_dir)
        except within_epoch.StoppedError:
            pass
        except Exception as error:
            error.add_note(f"in {self._equipment.place}")
            raise
        if job.train.decoded is not None:
            job.train.decoded.remove()
        return self._progress

    def _train(self, name: str) -> None:
        """One stage, from its first epoch that is not done yet."""
        settings, equipment = self._job.config.trainer, self._equipment
        stage = self._opener.open(name, self._progress.handed)
        if beginning := self._job.method.spent_at_opening.get(name):
            # every state from here on is of this stage and holds its module
            self._progress = self._progress.without_handed(beginning)
        optimizer = stage.optimizer()
        first, labels = states.restore(self._state, name, stage, optimizer)
        model = self._distribute(stage.module, optimizer)
        if settings.gradient_compression == "bf16":
            step.compress_gradients(model)
        if settings.compile:
            step.compile_model(model, settings, equipment.embedding.device)
        epochs = StageEpochs(
            equipment,
            name,
            stage,
            model,
            optimizer,
            labels=labels,
            underway=states.underway(self._state, name),
            state=lambda: self._state_of(stage, optimizer),
        )
        if first < stage.epochs:
            epochs.cache()
        for epoch in range(first, stage.epochs):
            clock = Clock()
            line = epochs.run(epoch, clock)
            last, every = epoch + 1 == stage.epochs, stage.evaluate_every
            if every is not None and (last or (every and (epoch + 1) % every == 0)):
                with clock("evaluate"):
                    line |= self._measure(name, stage.encoder)
            if last:
                self._progress.handed |= stage.hand_on()
            self._finish_epoch(line, clock, stage, optimizer, last=last)

    def _measure(self, row: str, encoder: Encoder) -> EpochLine:
        embed = self._equipment.embedding.share
        return measure(self._job, self._progress, row, encoder, embed=embed)

    def _finish_epoch(
        self,
        line: EpochLine,
        clock: Clock,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        *,
        last: bool,
    ) -> None:
        """Log the epoch, then keep it: a line too many is taken back, a lost one is not."""
        self._progress = replace(self._progress, stage=line["stage"], epoch=line["epoch"])
        clock.seconds["checkpoint"] = self._checkpoint_s
        state: State | None = None
        first = collectives.rank() == 0
        if first:
            log_line: EpochLine = {**line, "seconds": dict(clock.seconds)}
            runlog.append_metrics(self._job.run_dir, log_line)
        began = time.perf_counter()
        if first:
            state = self._state_of(stage, optimizer)
            if last:
                states.leave(self._job.run_dir, state, stage, self._opener.backbone)
        self._report(line, state)
        self._checkpoint_s = time.perf_counter() - began
        within_epoch.stop_if(self._equipment.pauses.ask())

    def _state_of(self, stage: Stage, optimizer: torch.optim.Optimizer) -> State:
        config, backbone = self._job.config, self._opener.backbone
        return states.collect(config, self._progress, stage, optimizer, backbone)
