"""TensorBoard gets the numbers of the log, under names that sort by stage."""

from __future__ import annotations

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from pipelines.runs import tensorboard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of every event file: length-prefixed protocol buffers."""
    result: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            length = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + length])
            for value in event.summary.value:
                result.setdefault(value.tag, []).append((event.step, value.simple_value))
            start += 16 + length
    return result


def test_numbers_of_an_epoch(tmp_path: Path) -> None:
    for epoch in (0, 1):
        line = {
            "stage": "align",
            "epoch": epoch,
            "losses": {"total": 2.0 - epoch},
            "warnings": [],
            "truth": {"matching_accuracy": None},
        }
        tensorboard.write(tmp_path, line)
    assert scalars(tmp_path / tensorboard.FOLDER) == {"align/losses/total": [(0, 2.0), (1, 1.0)]}
