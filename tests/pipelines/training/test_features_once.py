"""The memory bank holds each feature once, also while features arrive."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.run import RunConfig

FEED = """
import pickle
import re
import sys
from pathlib import Path

import numpy as np

from pipelines.distributed.collectives import shares
from pipelines.training.memory_bank import MemoryBank
from reid_core.types import Modality

BOTH = Modality.VISIBLE, Modality.INFRARED
WORLD, WIDTH, ROWS, PIECE = 4, 512, 16384, 1024  # 64 MiB of both, in pieces of 2 MiB


def resident(what):
    status = Path("/proc/self/status").read_text()
    return int(re.search(what + r":\\s+(\\d+) kB", status)[1]) * 1024


config = pickle.loads(Path(sys.argv[1]).read_bytes())
classes = {m: np.arange(ROWS) % 9 for m in BOTH}  # given: nothing is clustered
bank = MemoryBank(config, classes, identities=classes)
token, piled_up = bank.open(), []
Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
before = resident("VmRSS")
for m in BOTH:
    for rank, share in enumerate(shares(ROWS, WORLD)):
        for start in range(0, share.stop - share.start, PIECE):
            piece = np.full((PIECE, WIDTH), WIDTH**-0.5, np.float32)
            bank.add_features(token, ("align", 0), m, piece, rank, WORLD, start)
            if sys.argv[2] == "piled up":
                piled_up.append(piece)
assert bank._pending.ready == set(BOTH)
print((resident("VmHWM") - before) / (2 * ROWS * WIDTH * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_features_that_arrive_in_pieces_are_held_once(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_bytes(pickle.dumps(make_config()))

    def peak(pieces: str) -> float:
        """Above the process without features, in blocks of all of them."""
        command = [sys.executable, "-c", FEED, str(config), pieces]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert 0.9 < peak("given back") < 1.5
    assert peak("piled up") > 1.9, "what is held twice is seen"
