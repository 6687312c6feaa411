"""What torch draws: streams of numbers that follow from a key alone."""

from __future__ import annotations

import numpy as np
import torch


def seed_torch(*key: int) -> None:
    """Begin the stream of a key in the random state of the whole process.

    Args:
        key: of numbers not below 0, as many as tell one stream from all others.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> 1))
