"""TensorBoard gets the numbers of the log, under names that sort by stage."""

from __future__ import annotations

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from pipelines.runs import runlog, tensorboard


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


def test_a_run_that_goes_on_takes_back_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    """An epoch that is trained again stands there once, as in the log."""

    def log(stage: str, epoch: int, loss: float) -> None:
        line = {"stage": stage, "epoch": epoch, "losses": {"total": loss}}
        runlog.append_metrics(tmp_path, line)

    for number in range(12):
        log("prepare", number, 1.0)
    log("align", 0, 2.0)
    other = tmp_path / tensorboard.FOLDER / "events.out.tfevents.17.a-node.my-7"
    other.write_text("somebody's")
    runlog.rewind(tmp_path, "prepare", 9, ["prepare", "align"])
    log("prepare", 10, 3.0)
    assert other.read_text() == "somebody's"
    other.unlink()
    values = dict(scalars(tmp_path / tensorboard.FOLDER)["prepare/losses/total"])
    assert scalars(tmp_path / tensorboard.FOLDER).keys() == {"prepare/losses/total"}
    assert len(scalars(tmp_path / tensorboard.FOLDER)["prepare/losses/total"]) == 11
    assert values == dict.fromkeys(range(10), 1.0) | {10: 3.0}
    runlog.rewind(tmp_path, "", 0, ["prepare", "align"])
    assert not list((tmp_path / tensorboard.FOLDER).iterdir())
