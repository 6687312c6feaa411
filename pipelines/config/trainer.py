"""Sections of a configuration that say how a run is done: trainer, evaluation, ray."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.sections import Section, named
from reid_core.methods.sections import unread


class TrainerConfig(Section):
    """How the work is spread.

    Attributes:
        num_workers: processes that train together; one per GPU. Results do not depend on it,
            but for `model.drop_path`, which each draws by itself.
        min_workers: go on with fewer, down to this many, while nodes are missing, and with more
            again when they are back; null waits for all.
        use_gpu: null takes GPUs when the cluster has them.
        cpus_per_worker: CPUs reserved for each worker, and its number of torch threads.
        embed_batch: images per forward pass when a split is embedded.
        batches_per_block: global batches that Ray Data decodes in one task.
        barrier_timeout_s: longest wait for the other workers' features, in seconds.
        keep_checkpoints: newest checkpoints kept on disk.
        checkpoint_every: seconds of an epoch after which its state is kept too, so that a machine
            that is taken away costs no more; 0 for none but when Ray knows of that before.
        checkpoint_upload: "async" lets the next epoch begin while the last one's checkpoint is
            copied into the run directory; "sync" waits for it.
        max_failures: restarts of the worker group with no epoch finished between them before the
            run gives up; -1 for any number. What is sure to come again is not tried again.
        precision: of the operations that bear it, in training and in embedding; with "bf16"
            weights, optimizer, banks, losses and embedded features stay float32.
        allow_tf32: let GPUs round the factors of float32 products and convolutions to TF32. Without
            it "fp32" means float32. Never for what is called exact, and not with `strict`.
        gradient_compression: "bf16" sends the workers' gradients to each other in half the bytes,
            rounded before they are averaged.
        activation_checkpointing: keep the inputs of CLIP's blocks alone and compute their
            activations again in the
            backward pass: a third more time, a fraction of the memory, the same results.
        compile: let torch.compile fuse the model's operations, which takes minutes at the start of
            a stage. A GPU whose worker is alone also replays them as CUDA graphs.
        gradient_accumulation: parts that a worker's slice of a batch is worked on in, one after the
            other; changes what BatchNorm and the memory see, see `training.step`. CCLNet only.
        search: of nearest neighbors for clustering: "exact", or "approximate" by a graph on the
            CPU. At 64 numbers a row it gained nothing up to a million rows: for more and wider
            ones on CPUs. The recall of a sample is printed with each epoch. A run that goes on
            need not make the same clusters then.
        strict: bit-identical results for any number of workers that divides `shards`, on one kind
            of machine; slower.
        shards: parts of a global batch in strict training. Part of what decides the result, so
            a run that goes on must keep it.
    """

    num_workers: int = Field(1, ge=1)
    min_workers: int | None = Field(None, ge=1)
    use_gpu: bool | None = None
    cpus_per_worker: int = Field(1, ge=1)
    embed_batch: int = Field(256, ge=1)
    batches_per_block: int = Field(4, ge=1)
    barrier_timeout_s: float = Field(1800, gt=0)
    keep_checkpoints: int = Field(2, ge=1)
    checkpoint_every: float = Field(600, ge=0)
    checkpoint_upload: Literal["async", "sync"] = "async"
    max_failures: int = Field(2, ge=-1)
    precision: Literal["fp32", "bf16"] = "fp32"
    allow_tf32: bool = False
    gradient_compression: Literal["none", "bf16"] = "none"
    activation_checkpointing: bool = False
    compile: bool = False
    gradient_accumulation: int = Field(1, ge=1)
    search: Literal["exact", "approximate"] = "exact"
    strict: bool = False
    shards: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _strict_is_exact(self) -> TrainerConfig:
        if self.strict and (self.allow_tf32 or self.gradient_compression != "none"):
            raise ValueError(
                "allow_tf32 and gradient_compression round what strict keeps to the bit: "
                "leave them or strict out"
            )
        if self.strict and self.search == "approximate":
            raise ValueError("an approximate search need not repeat itself: leave it or strict out")
        return self

    def unread(self) -> list[str]:
        """Sentences on settings that were changed and that nothing reads beside the others."""
        return [] if self.strict else unread(self, "trainer", ("shards",), "trainer.strict=false")


class EvaluationConfig(Section):
    """What is measured.

    Attributes:
        split: "test" for reported numbers; "val" (needs data.fit=train) for choosing settings.
        start: also measure the encoder before training.
        select: "val" (needs data.fit=train) also measures the validation identities at every
            evaluation and reports, apart from the last epoch's scores, those of the epoch that is
            best on them. Nothing is ever selected on the test identities.
        calibrate: at the end, fit how likely two images of some cosine show one identity, as
            `crossreid calibrate` does: one worker embeds at most 3,000 images of each modality.
    """

    split: Literal["test", "val"] = "test"
    start: bool = True
    select: Literal["val"] | None = None
    calibrate: bool = True


class RayConfig(Section):
    """Which cluster.

    Attributes:
        address: "local" starts one on this machine and ends it afterwards; "auto" or an address
            joins a running one. Null: "auto" inside a Ray job, else "local".
        namespace: of the named actors.
        join_timeout_s: longest wait for an answer of a running cluster, in seconds.
        wait_for_nodes_s: longest wait for machines that an autoscaler adds or that others hold, in
            seconds; also, where none can be added, for room for workers that were lost.
    """

    address: Annotated[str | None, named("the default")] = None
    namespace: Annotated[str, named()] = "crossreid"
    join_timeout_s: float = Field(15, gt=0, le=3600)
    wait_for_nodes_s: float = Field(1800, gt=0, le=7 * 86400)
