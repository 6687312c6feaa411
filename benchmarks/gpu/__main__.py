"""Everything that is claimed of GPUs, measured by one command. No network, no Ray.

    python -m benchmarks.gpu --out DIR --minutes 8
    python -m benchmarks.gpu --out DIR --tiny          the same path in seconds, also on a CPU

In order of value, each step in a process and a slice of the time of its own: one that hangs costs
its slice, one that crashes its own lines. Within a step the cases that matter most come first, and
what the slice has no time for says so. Results are appended to DIR/results.jsonl as they come, and
DIR/table.md is written anew after every step. Models have random weights: speed alone counts, but
for `agreement`, which starts from the small CLIP that ships with the package.

agreement   losses, memory updates, neighbors, labels and scores: GPU against CPU
search      34 k x 2048, 100 k x 512, 1 M x 256: neighbors, Jaccard, DBSCAN; rivals
embed       images per second of RN50 at 288x144 and ViT-B/16 at 384x128, compiled too
steps       a training step of every method: images per second, memory, kernels, waits
epoch       epochs of CCLNet's three stages, texts among them, at the size of SYSU-MM01 from JPEGs
            in memory, phase by phase
ddp         DistributedDataParallel over nccl in a group of one against none
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import WEIGHTS, Settings
from benchmarks.gpu.table import write_table

RESULTS, TABLE = "results.jsonl", "table.md"
_TAIL = 2500  # characters of a failure that are kept


def main() -> None:
    """Run the steps one after the other, or, with --step, one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true", help="small sizes: does the path work?")
    parser.add_argument("--only", nargs="*", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--cases", nargs="*", default=(), help="of the steps; all if not given")
    parser.add_argument("--modes", nargs="*", default=(), help="precisions; all if not given")
    parser.add_argument("--device", help="cuda where there is one, else cpu (with --tiny only)")
    parser.add_argument("--step", choices=WEIGHTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(given)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given.out.mkdir(parents=True, exist_ok=True)
    append(given.out, "machine", **machine())
    ends = time.monotonic() + 60 * given.minutes
    chosen = [name for name in WEIGHTS if name in given.only]
    for number, name in enumerate(chosen):
        rest = sum(WEIGHTS[later] for later in chosen[number:])
        run_in_slice(given, name, (ends - time.monotonic()) * WEIGHTS[name] / rest)
        write_table(given.out / RESULTS, given.out / TABLE)
    print((given.out / TABLE).read_text())


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def run_in_slice(given: argparse.Namespace, name: str, seconds: float) -> None:
    """One step in a process of its own, killed at the end of its slice."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(given.out), "--step", name]
    command += ["--seconds", f"{seconds:.0f}", *(["--tiny"] if given.tiny else [])]
    command += ["--device", given.device] if given.device else []
    command += ["--cases", *given.cases] if given.cases else []
    command += ["--modes", *given.modes] if given.modes else []
    began = time.monotonic()
    log = given.out / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | str = process.wait(max(5, seconds))
        except subprocess.TimeoutExpired:
            code = "cut off at the end of its slice"
        finally:  # also where this program is told to end: nothing may go on beside the next one
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    spent = round(time.monotonic() - began, 1)
    text = log.read_text(errors="replace")
    log.unlink()
    tail = {"error": text[-_TAIL:]} if code else {}
    append(
        given.out, name, case="whole step", seconds=spent, slice=round(seconds), exit=code, **tail
    )
    print(f"{name}: {spent:.0f} s of {seconds:.0f} s, exit {code}", flush=True)


def run_step(given: argparse.Namespace) -> None:
    """One step in this process; a case that fails leaves its traceback and the next one runs."""

    def record(case: str, line: dict[str, Any]) -> None:
        append(given.out, given.step, case=case, **line)

    settings = Settings.of(given, record)
    module = importlib.import_module(f"benchmarks.gpu.{given.step}")
    for case, work in module.cases(settings):
        if not settings.takes(case):
            continue
        began = time.perf_counter()
        try:
            for line in work():
                record(case, line)
        except Exception:
            print(traceback.format_exc(), flush=True)
            record(case, {"error": traceback.format_exc()[-_TAIL:]})
        print(f"{case}: {time.perf_counter() - began:.1f} s", flush=True)


def append(out: Path, step: str, **line: Any) -> None:
    """Add a line of results."""
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps({"step": step, **line}) + "\n")


def machine() -> dict[str, Any]:
    """What it was measured on."""
    import platform

    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "gpu": gpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu != "none" else None,
    }


if __name__ == "__main__":
    main()
