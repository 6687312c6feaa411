"""How an epoch's time was used: images per second, shares of the phases, memory, share of the peak.

What is printed is counted, not assumed; what cannot be known is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

from pipelines.config.trainer import TrainerConfig
from pipelines.runs.records import SpeedRecord
from pipelines.training import flops
from reid_core.stage import Stage

_TERA = 1e12
# Dense products per second as NVIDIA's data sheets state them: bfloat16, TF32, float32.
_PEAKS = {
    "GH200": (989, 494, 67),
    "H200": (989, 494, 67),
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 92),
    "L4": (121, 60, 30),
    "A10": (125, 62, 31),
}


class Speed:
    """Counts the work of one stage on one worker.

    Args:
        stage: whose steps are taken.
        settings: precision and compilation.
        device: that computes.
    """

    def __init__(self, stage: Stage, settings: TrainerConfig, device: torch.device) -> None:
        self._stage, self._settings, self._device = stage, settings, device
        self._flops: int | None = None
        self._counted = False
        self._steps = 0

    def step(self, take: Callable[[], None], batch: object) -> None:
        """Take a step on a batch; the floating-point operations of the first one are counted."""
        self._steps += 1
        if self._counted:
            take()
            return
        self._counted = True
        if self._settings.compile:
            self._flops = flops.without_running(self._stage, batch, self._settings)
            take()
        else:
            self._flops = flops.while_it_runs(take)

    def of_epoch(self, num_images: int, seconds: Mapping[str, float]) -> SpeedRecord:
        """Entries of the epoch's log line; starts anew for the next epoch.

        Args:
            num_images: that all workers trained on; 0 where cached features stood for them.
            seconds: of the epoch's phases.
        """
        total, steps = sum(seconds.values()), self._steps
        training = seconds.get("step", 0.0) + seconds.get("input", 0.0)
        peak = peak_flops(self._device, self._settings)
        used = None
        if peak and self._flops and training:
            used = self._flops * steps / training / peak
        memory = None
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._steps = 0
        return {
            "images_per_s": num_images / training if num_images and training else None,
            "share": {phase: spent / total for phase, spent in seconds.items()} if total else {},
            "device_memory_bytes": memory,
            "flops_per_step": self._flops,
            "mfu": used,
        }


def peak_flops(device: torch.device, settings: TrainerConfig) -> float | None:
    """Operations per second that a device can reach at this precision; None where unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (bf16, tf32, fp32) in _PEAKS.items():
        if re.search(rf"\b{known}\b", name):  # L4 is no L40, A100 no A1000
            full = tf32 if settings.allow_tf32 else fp32
            return _TERA * (bf16 if settings.precision == "bf16" else full)
    return None
