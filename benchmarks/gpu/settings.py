"""What every step of the benchmark is told, and how it measures time."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

WEIGHTS = {"agreement": 50, "search": 65, "embed": 55, "steps": 145, "epoch": 135, "ddp": 30}
"""Steps in order of value. Shares of the time, as seconds of eight minutes: what one of them leaves
goes to the later ones."""


@dataclass(frozen=True)
class Settings:
    """One step's orders.

    Attributes:
        device: that is measured.
        tiny: small sizes.
        seconds: of its slice.
        began: on the monotonic clock.
        scratch: a temporary folder for generated data, shared by the steps and left behind.
        record: adds a line of results, at once: record(case, line).
        cases: names of those that are wanted; all where there are none.
        modes: likewise of precisions, within a case of `embed` and `steps`.
    """

    device: torch.device
    tiny: bool
    seconds: float
    scratch: Path
    record: Callable[[str, dict[str, Any]], None]
    cases: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls, given: argparse.Namespace, record: Callable[[str, dict[str, Any]], None]
    ) -> Settings:
        """From the command line.

        Raises:
            SystemExit: no GPU, and not --tiny.
        """
        name = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if name == "cpu" and not given.tiny:
            raise SystemExit("torch sees no GPU here; --tiny runs the same path on the CPU")
        scratch = Path(tempfile.gettempdir()) / f"crossreid-gpu-{'tiny' if given.tiny else 'full'}"
        scratch.mkdir(exist_ok=True)
        wanted = tuple(given.cases), tuple(given.modes)
        return cls(torch.device(name), given.tiny, given.seconds, scratch, record, *wanted)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.type == "cuda"

    def takes(self, case: str) -> bool:
        """Whether a case is wanted."""
        return not self.cases or case in self.cases

    def takes_mode(self, mode: str) -> bool:
        """Whether a precision is wanted."""
        return not self.modes or mode in self.modes

    def not_measured(self, needs: float) -> dict[str, str]:
        """What a line says in place of figures where so many seconds are not left; else nothing."""
        if self.left() >= needs:
            return {}
        why = f"needs about {needs:.0f} s, {self.left():.0f} of {self.seconds:.0f} s are left"
        return {"not measured": why}

    def compiled(self, work: Any, *, graphs: bool = False) -> Any:
        """A compiled module or function; of the tiny size traced, without generated code.

        Args:
            work: what is compiled.
            graphs: whether its kernels are replayed as CUDA graphs.
        """
        torch.compiler.reset()
        if self.tiny:
            return torch.compile(work, backend="eager")
        return torch.compile(work, mode="reduce-overhead" if graphs else None)

    def left(self) -> float:
        """Seconds of the slice that are left."""
        return self.began + self.seconds - time.monotonic()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def reset_memory(self) -> None:
        """Forget the peak of the device's memory."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory_mib(self) -> float | None:
        """Peak of the device's memory since `reset_memory`."""
        return round(torch.cuda.max_memory_allocated() / 2**20) if self.on_gpu else None

    @contextmanager
    def timed(self) -> Iterator[Callable[[], float]]:
        """Seconds of the block, the device waited for before and after; ask afterwards."""
        self.wait()
        began, ended = time.perf_counter(), 0.0
        yield lambda: ended - began
        self.wait()
        ended = time.perf_counter()

    def seconds_per_call(self, work: Callable[[], object], *, at_least: float = 1.0) -> float:
        """Mean over calls that take that long together, after two that warm up."""
        if self.tiny:
            at_least = 0.0
        work()
        work()
        with self.timed() as once:
            work()
        num = max(1, min(200, int(at_least / max(once(), 1e-6))))
        with self.timed() as all_calls:
            for _ in range(num):
                work()
        return all_calls() / num
