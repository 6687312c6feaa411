"""How many digits products and convolutions keep, said in one place for every process."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def set_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions on CUDA round their factors to TF32, or forbid it.

    torch itself allows it for convolutions and forbids it for products. CPUs never round, though
    some could, where `torch.set_float32_matmul_precision` has let them.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The block in which operations that bear it compute in bfloat16; float32: no change."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
