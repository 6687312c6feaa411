"""The numbers of every epoch as TensorBoard scalars, beside the JSON lines."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipelines.storage.files import own_folder, replace_file

try:
    from tensorboardX import SummaryWriter
except ImportError:  # a machine for one benchmark or notebook may lack it
    SummaryWriter = None
    logging.getLogger(__name__).warning("no TensorBoard files: tensorboardX is not installed")

from pipelines.runs.records import EpochLine

FOLDER = "tensorboard"
_EPOCH = re.compile(r"tfevents\..*\.(?P<stage>\w+)-(?P<epoch>\d+)$")  # see `write`


def write(run_dir: Path, line: EpochLine) -> None:
    """Add one epoch: every number of a log line as "<stage>/<name>" over the stage's epochs.

    Every epoch is a file of its own, closed at once: nothing is lost with the process.
    """
    if SummaryWriter is None:
        return
    suffix = f".{line['stage']}-{line['epoch']}"
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder, filename_suffix=suffix) as writer:
            for name, value in _numbers("", line):
                if name != "epoch":
                    writer.add_scalar(f"{line['stage']}/{name}", value, line["epoch"])
        for file in Path(folder).iterdir():
            replace_file(own_folder(run_dir / FOLDER) / file.name, file.read_bytes())


def rewind(run_dir: Path, is_later: Callable[[str, int], bool]) -> None:
    """Delete the files of epochs that are taken back.

    Args:
        run_dir: run directory.
        is_later: (stage, epoch) -> whether it is one; not for other files than `write` made.
    """
    for file in (run_dir / FOLDER).glob("*"):
        epoch = _EPOCH.search(file.name)
        if epoch and is_later(epoch["stage"], int(epoch["epoch"])):
            file.unlink(missing_ok=True)


def _numbers(prefix: str, tree: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}{key}/", value)
        elif isinstance(value, (int, float)):
            yield f"{prefix}{key}", value
