"""What would wait for a device, among the operations that torch's profiler saw on the CPU."""

from __future__ import annotations

from collections import Counter

from torch.profiler import profile

# On CUDA the first four wait for the device, and the last one copies a Python number from
# pageable memory, which waits too.
WAITS = (
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::_unique2",
    "aten::lift_fresh",
)


def operations_of(watched: profile) -> Counter[str]:
    """How often each operation was seen."""
    return Counter({event.key: event.count for event in watched.key_averages()})


def waits_of(operations: Counter[str]) -> dict[str, int]:
    """Those of them that wait; empty where none does."""
    return {wait: operations[wait] for wait in WAITS if operations[wait]}
