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

MODES = {"": ("bf16", "tf32", "fp32"), "graphs": ("bf16 graphs",), "compiled": ("bf16 compiled",)}
"""Precisions of a pass. "graphs": compiled, and replayed as CUDA graphs."""
PASSES = (
    ("cclnet", ""),
    ("cclnet", "graphs"),
    ("csdn", ""),
    ("cpcl", ""),
    ("bmil", ""),
    ("csdn", "graphs"),
    ("cpcl", "graphs"),
    ("bmil", "graphs"),
    ("cclnet", "compiled"),
)
"""Method and how it is run, in order of value. All streamed stages of a method are in a pass."""
_PASS, _COMPILING = 17, 45
"""Seconds, about: a pass that compiles nothing; a stage that is compiled."""
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
    """One case per pass; each stage is measured at its second step."""
    names = [f"{method}, {how}" if how else method for method, how in PASSES]
    for number, (name, (method, how)) in enumerate(zip(names, PASSES, strict=True)):
        later = [n for n in names[number + 1 :] if n in runs.RECIPES and settings.takes(n)]
        needs = _COMPILING + _PASS * len(later) if how else 0
        yield name, partial(measure, settings, name, method, MODES[how], needs)


def measure(
    settings: Settings, name: str, method: str, modes: tuple[str, ...], needs: float
) -> Iterator[dict[str, Any]]:
    """Every streamed stage in some precisions, if so many seconds are left when it comes."""

    def probe(
        take: runs.Take, stage: Any, model: Any, optimizer: Any, batch: Any, **named: Any
    ) -> None:
        parts = stage, model, optimizer, batch
        for line in of_stage(settings, take, parts, modes, needs, **named):
            settings.record(name, line)

    modes = tuple(filter(settings.takes_mode, modes))
    if not modes:
        return
    if lack := settings.not_measured(needs):
        yield {"mode": modes[0], **lack}
        return
    config = runs.short_config(settings, method, small=settings.tiny)
    with runs.probed(probe):
        runs.train_here(settings, config, f"steps-{method}")
    runs.free()


def of_stage(
    bench: Settings,
    take: runs.Take,
    parts: tuple[Any, Any, Any, Any],
    modes: tuple[str, ...],
    needs: float,
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

    for mode in modes:
        if lack := bench.not_measured(needs):
            yield {"stage": name, "mode": mode, **lack}
            continue
        set_tf32(mode == "tf32")
        precision = "bf16" if mode.startswith("bf16") else "fp32"
        plain = mode in MODES[""]
        called = model if plain else bench.compiled(model, graphs=mode == "bf16 graphs")
        optimizer.zero_grad(set_to_none=True)
        bench.reset_memory()
        before = torch.cuda.memory_allocated() if bench.on_gpu else 0
        try:
            seconds = bench.seconds_per_call(
                lambda: once(precision, called),  # noqa: B023
                at_least=0.5,
            )
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
