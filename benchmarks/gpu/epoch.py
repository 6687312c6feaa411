"""Epochs of CCLNet's three stages at the size of SYSU-MM01, phase by phase, in this process.

34,167 JPEGs of 288x144 (22,258 visible, 11,909 infrared, 395 identities) are made once, each a
pattern of its identity under noise, and lie in the page cache when the epochs begin. A run takes
two epochs of "prepare", of which the first decodes all files, one of "prompts", and two of "align",
which is guided by their texts. The last epoch of a stage counts. A GPU's share of idle time is the
mean of what nvidia-smi says five times a second, evaluation included, which is of one identity.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu import runs
from benchmarks.gpu.settings import Settings
from pipelines.config import run as configuration
from pipelines.runs import runlog

CAMERAS = {1: True, 2: True, 4: True, 5: True, 3: False, 6: False}
IDENTITIES, VISIBLE, INFRARED = 395, 22_258, 11_909
_SHORT = (
    "model.pretrained=null",
    "evaluation.start=false",
    "cclnet.prepare.epochs=2",
    "cclnet.prompts.epochs=1",
    "cclnet.align.epochs=2",
    "cclnet.swap.start_epoch=0",
)
_TINY = (
    "model.height=32",
    "model.width=16",
    "cclnet.clustering.k1=8",
    "cclnet.prepare.batches_per_epoch=3",
    "cclnet.prepare.clusters_per_batch=2",
    "cclnet.prepare.instances=4",
    "cclnet.align.batches_per_epoch=3",
    "cclnet.align.clusters_per_batch=2",
    "cclnet.align.instances=4",
)


def cases(settings: Settings) -> Iterator[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]:
    """What one would run first."""
    root = settings.scratch / "sysu-sized"
    with settings.timed() as spent:
        write_tree(root, tiny=settings.tiny)
    print(f"tree: {spent():.1f} s", flush=True)
    for mode in ("bf16",) if settings.tiny else ("bf16", "bf16 compiled", "tf32"):
        case = f"CCLNet, {mode}"
        yield case, partial(measure, settings, root, case, mode)


def measure(settings: Settings, root: Path, case: str, mode: str) -> Iterator[dict[str, Any]]:
    """A run's epochs, recorded as they come, and what the whole run would take."""
    recipe = Path("demo.yaml" if settings.tiny else "cclnet_sysu.yaml")
    precision = (
        f"trainer.precision={'fp32' if mode == 'tf32' else 'bf16'}",
        f"trainer.compile={'true' if 'compiled' in mode else 'false'}",
        f"trainer.allow_tf32={'true' if mode == 'tf32' else 'false'}",
    )
    given = [f"data.root={root}", *_SHORT, *precision, *(_TINY if settings.tiny else ())]
    published: Any = configuration.load(recipe, ["data.root=/"]).settings
    config = configuration.load(recipe, given)
    run_dir = runs.run_dir(settings, "epoch")
    shutil.rmtree(run_dir, ignore_errors=True)
    log = Log(run_dir, partial(settings.record, case), published)
    with idle_shares(run_dir / runlog.METRICS) as idle, polled(partial(log.read, idle)):
        runs.train_here(settings, config, "epoch")
    runs.free()
    numbers = {stage: getattr(published, stage).epochs for stage in log.hours}
    yield {
        "what": "whole run, extrapolated",
        "hours": sum(log.hours.values()),
        "epochs": numbers,
        "note": "each as the last one of its stage; without evaluations and caches",
    }


class Log:
    """A run's epochs as they are logged: one that is cut off leaves those that it took.

    Args:
        run_dir: of the run.
        record: adds a line of results.
        published: the recipe's settings, with the epochs of its stages.

    Attributes:
        hours: per stage what all its epochs would take, each as the last that was logged.
    """

    def __init__(
        self, run_dir: Path, record: Callable[[dict[str, Any]], None], published: Any
    ) -> None:
        self._run_dir, self._record, self._published = run_dir, record, published
        self._num_read = 0
        self.hours: dict[str, float] = {}

    def read(self, idle: Callable[[int], float | None]) -> None:
        """Record the lines that are new."""
        for number, line in list(enumerate(runlog.read_metrics(self._run_dir)))[self._num_read :]:
            seconds = {name: s for name, s in line["seconds"].items() if name != "evaluate"}
            stage, total = line["stage"], sum(seconds.values())
            self.hours[stage] = total * getattr(self._published, stage).epochs / 3600
            self._num_read = number + 1
            self._record(
                {
                    "stage": stage,
                    "epoch": line["epoch"],
                    "s": total,
                    "hours of the stage": self.hours[stage],
                    "seconds": {phase: round(spent, 2) for phase, spent in seconds.items()},
                    "images/s": line["speed"]["images_per_s"],
                    "mfu": line["speed"]["mfu"],
                    "clusters": line.get("clusters"),
                    "GPU idle": idle(number),
                }
            )


@contextmanager
def polled(look: Callable[[], None]) -> Iterator[None]:
    """Look once a second beside the block, and at its end."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        look()


@contextmanager
def idle_shares(lines: Path) -> Iterator[Callable[[int], float | None]]:
    """The GPU's share of idle time in an epoch that is over; lines: one per epoch."""
    samples: dict[int, list[float]] = {}

    def share(epoch: int) -> float | None:
        return statistics.mean(samples[epoch]) if epoch in samples else None

    if shutil.which("nvidia-smi") is None:
        yield share
        return
    command = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        "-lms",
        "200",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                done = lines.read_bytes().count(b"\n") if lines.exists() else 0
                samples.setdefault(done, []).append(1 - float(line) / 100)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield share
    finally:
        process.terminate()
        reader.join()


def write_tree(root: Path, *, tiny: bool) -> None:
    """The tree, unless it is there."""
    done = root / "complete.json"
    if done.exists():
        return
    num = 12 if tiny else IDENTITIES
    visible, infrared = (16 * num, 12 * num) if tiny else (VISIBLE, INFRARED)
    size = (48, 96) if tiny else (144, 288)
    work = partial(_write_identity, root, num, visible, infrared, size)
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        counts = list(pool.map(work, range(num), chunksize=4))
    (root / "exp").mkdir(exist_ok=True)
    ids = {"train": range(1, num - 1), "val": (num - 1,), "test": (num,)}
    for split, numbers in ids.items():
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, numbers)) + "\n")
    done.write_text(json.dumps({"images": sum(counts)}))


def _write_identity(
    root: Path, num: int, visible: int, infrared: int, size: tuple[int, int], identity: int
) -> int:
    """All images of one identity; returns their number."""
    random = np.random.default_rng(identity)
    look = random.integers(0, 256, (12, 6, 3), dtype=np.uint8)
    written = 0
    for camera, is_visible in CAMERAS.items():
        folder = root / f"cam{camera}" / f"{identity + 1:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        total, cameras = (visible, 4) if is_visible else (infrared, 2)
        # as many as make the total, spread evenly over identities and cameras
        place = identity * cameras + [c for c, v in CAMERAS.items() if v == is_visible].index(
            camera
        )
        places = num * cameras
        count = total * (place + 1) // places - total * place // places
        for number in range(count):
            (folder / f"{number + 1:04d}.jpg").write_bytes(_jpeg(look, is_visible, size, random))
        written += count
    return written


def _jpeg(
    look: np.ndarray, is_visible: bool, size: tuple[int, int], random: np.random.Generator
) -> bytes:
    near = look.astype(np.int16) + random.integers(-24, 25, look.shape, dtype=np.int16)
    image = Image.fromarray(near.clip(0, 255).astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    if not is_visible:
        image = image.convert("L").convert("RGB")
    grain = random.integers(-12, 13, (size[1], size[0], 1), dtype=np.int16)
    pixels = (np.asarray(image, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
