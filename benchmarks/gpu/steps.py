"""A training step of every method: the stage's own code on one batch of the real stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import runs
from benchmarks.gpu.settings import Settings
from pipelines.config.trainer import TrainerConfig
from pipelines.distributed.precision import set_tf32
from pipelines.training.global_loss import Means

METHODS = ("cclnet", "csdn", "cpcl", "bmil")
MODES = ("bf16", "bf16 compiled", "bf16 graphs", "tf32", "fp32")
"""In order of value. "graphs": compiled, and replayed as CUDA graphs."""
# On CUDA each of these waits for the device. The CPU's fused optimizers read their count of steps,
# one per tensor; on CUDA that count is on the device.
WAITS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2")
_SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_LAUNCHES = (
    "cudaLaunchKernel",
    "cuLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)


def cases(settings: Settings) -> Iterator[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]:
    """One case per method; all stages of it, each measured at its second step."""
    methods = [method for method in METHODS if settings.takes(method)]
    for number, method in enumerate(methods):
        share = 1 / (len(methods) - number)
        yield method, partial(measure, settings, method, share)


def measure(settings: Settings, method: str, share: float) -> Iterator[dict[str, Any]]:
    """Every streamed stage in every precision."""
    until = settings.left() * (1 - share)

    def probe(
        take: runs.Take, stage: Any, model: Any, optimizer: Any, batch: Any, **named: Any
    ) -> None:
        for line in of_stage(settings, take, (stage, model, optimizer, batch), until, **named):
            settings.record(method, line)

    config = runs.short_config(settings, method, small=settings.tiny)
    with runs.probed(probe):
        runs.train_here(settings, config, f"steps-{method}")
    runs.free()
    yield from ()


def of_stage(
    bench: Settings,
    take: runs.Take,
    parts: tuple[Any, Any, Any, Any],
    until: float,
    *,
    settings: TrainerConfig,
) -> Iterator[dict[str, Any]]:
    """Rates, memory and counts of one stage's step."""
    stage, model, optimizer, batch = parts
    images = runs.num_images(batch)
    name = runs.stage_name(stage)

    def once(precision: str, called: Any) -> None:
        own = settings.model_copy(update={"precision": precision})
        take(stage, called, optimizer, batch, Means(), settings=own)

    for mode in MODES:
        compiled = mode.partition("bf16 ")[2]
        if not bench.takes_mode(mode, compiled_needs=45 + until):
            continue
        set_tf32(mode == "tf32")
        precision = "bf16" if mode.startswith("bf16") else "fp32"
        called = _compiled(model, graphs=compiled == "graphs") if compiled else model
        optimizer.zero_grad(set_to_none=True)
        bench.reset_memory()
        before = torch.cuda.memory_allocated() if bench.on_gpu else 0
        try:
            seconds = bench.seconds_per_call(lambda: once(precision, called))  # noqa: B023
        except torch.OutOfMemoryError:
            yield {"stage": name, "mode": mode, "images": images, "images/s": None, "ms": None}
            continue
        peak = bench.memory_mib()
        each = None if peak is None else round(peak - before / 2**20) / images
        yield {
            "stage": name,
            "mode": mode,
            "images": images,
            "images/s": images / seconds,
            "ms": 1000 * seconds,
            "device MiB": peak,
            "MiB per image": each,
            **counts(bench, lambda: once(precision, called)),  # noqa: B023
        }
    set_tf32(settings.allow_tf32)


def _compiled(model: Any, *, graphs: bool) -> Any:
    torch.compiler.reset()
    return torch.compile(model, mode="reduce-overhead" if graphs else None)


def counts(bench: Settings, work: Callable[[], None]) -> dict[str, Any]:
    """Kernels, operations and waits of one step, and how long the device works on it."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.on_gpu else [])
    with profile(activities=activities) as watched:
        work()
    events = watched.key_averages()
    seen: Counter[str] = Counter({event.key: event.count for event in events})
    kernels = (event for event in events if event.device_type.name == "CUDA")
    busy = sum(event.self_device_time_total for event in kernels) / 1000
    return {
        "device ms": round(busy, 2) if bench.on_gpu else None,
        "kernels": sum(seen[key] for key in _LAUNCHES) if bench.on_gpu else None,
        "operations": sum(count for key, count in seen.items() if key.startswith("aten::")),
        "waits": sum(seen[key] for key in WAITS),
        # the profiler itself waits once at its end
        "syncs": max(0, sum(seen[key] for key in _SYNCS) - 1) if bench.on_gpu else None,
    }
