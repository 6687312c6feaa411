"""One line per epoch on the terminal, read from the run's own log while it grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.config.run import RunConfig
from pipelines.runs import runlog
from pipelines.runs.console import say
from pipelines.runs.records import EpochLine
from reid_core.methods import METHODS

_POLL_S = 0.5


@contextmanager
def follow(run_dir: Path, config: RunConfig) -> Iterator[None]:
    """Print epochs as they are logged, until the block ends."""
    stop, shown = threading.Event(), len(list(runlog.read_metrics(run_dir)))
    printer = threading.Thread(target=_print_new, args=(run_dir, config, stop, shown), daemon=True)
    printer.start()
    try:
        yield
    finally:
        stop.set()
        printer.join()


def describe(line: EpochLine, epochs: int) -> str:
    """An epoch as one line of text."""
    parts = [f"{line['stage']:>8} {line['epoch'] + 1:>3}/{epochs}"]
    parts.append(f"loss {line['losses']['total']:.3f}")
    if "clusters" in line:
        counts = "+".join(str(n) for n in line["clusters"].values())
        outliers = sum(line["outliers"].values()) / sum(line["rows"].values())
        pairs = f", {line['pairs']} pairs" if line["pairs"] else ""
        parts.append(f"clusters {counts}, {outliers:.0%} outliers{pairs}")
    if "search_recall" in line:
        parts.append(f"recall of neighbors {line['search_recall']:.3f}")
    if "scores" in line:
        parts.append(f"Rank-1 {line['scores']['rank1']:.1f} mAP {line['scores']['mAP']:.1f}")
    speed = line.get("speed", {})
    if speed.get("images_per_s"):
        used = f" ({speed['mfu']:.0%} of the GPU's peak)" if speed["mfu"] else ""
        parts.append(f"{speed['images_per_s']:.0f} images/s{used}")
    parts.append(f"{sum(line['seconds'].values()):.1f} s")
    return "  ".join(parts)


def _print_new(run_dir: Path, config: RunConfig, stop: threading.Event, shown: int) -> None:
    settings = config.settings
    names = METHODS[config.method].stages(settings)
    epochs = {name: getattr(settings, name).epochs for name in names}
    while True:
        last_round = stop.is_set()
        lines = list(runlog.read_metrics(run_dir))
        shown = min(shown, len(lines))  # a restart takes back epochs that no checkpoint holds
        for line in lines[shown:]:
            say(describe(line, epochs[line["stage"]]))
            for warning in line.get("warnings", []):
                say(f"warning: {warning}", style="yellow")
        shown = len(lines)
        if last_round:
            return
        time.sleep(_POLL_S)
