"""Decoded images that are kept: the same bytes as decoded anew, whoever wrote them."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines.data import decoded
from pipelines.data.decoded import Decoded

SIZE = {"height": 8, "width": 4}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    decoded._files.clear()
    return tmp_path


def image(number: int) -> np.ndarray:
    drawn = np.random.default_rng(number).integers(0, 256, (3, 8, 4))
    return drawn.astype(np.uint8)


def never() -> np.ndarray:
    raise AssertionError("decoded again")


def read(decoded_images: Decoded, name: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
    out = np.zeros((1, 3, 8, 4), np.uint8)
    decoded_images.read_into(out, [name], lambda _: decode())
    return out[0]


def room(num_images: int, *, token: str = "a", num_bytes: int = 10**6) -> Decoded:
    result = Decoded.holding(num_images, token=token, num_bytes=num_bytes, **SIZE)
    assert result is not None
    return result


def test_every_image_is_decoded_once() -> None:
    remaining = room(300)
    for number in range(300):
        read(remaining, f"{number}.jpg", lambda n=number: image(n))
    for number in range(300):
        np.testing.assert_array_equal(read(remaining, f"{number}.jpg", never), image(number))


def test_what_does_not_fit_is_decoded_as_it_comes() -> None:
    remaining = room(1000, num_bytes=20 * 120)
    assert remaining.num_slots == 20
    decodes: list[int] = []

    def count(number: int) -> np.ndarray:
        decodes.append(number)
        return image(number)

    for _ in range(2):
        for number in range(60):
            pixels = read(remaining, f"{number}.jpg", lambda n=number: count(n))
            np.testing.assert_array_equal(pixels, image(number))
    assert 60 + 40 <= len(decodes) < 60 + 50
    assert remaining.path.stat().st_size <= 20 * 120
    assert Decoded.holding(1000, token="a", num_bytes=100, **SIZE) is None


def test_a_half_written_image_is_not_believed() -> None:
    remaining = room(4)
    read(remaining, "x.jpg", lambda: image(1))
    file = decoded._opened(remaining)
    assert file is not None
    content = file.content
    at = content.find(image(1).tobytes())
    content[at : at + 1] = bytes([255 - content[at]])
    np.testing.assert_array_equal(read(remaining, "x.jpg", lambda: image(1)), image(1))


def test_what_cannot_be_decoded_is_not_kept() -> None:
    def broken() -> np.ndarray:
        raise ValueError("torn")

    remaining = room(4)
    with pytest.raises(ValueError, match="torn"):
        read(remaining, "x.jpg", broken)
    np.testing.assert_array_equal(read(remaining, "x.jpg", lambda: image(1)), image(1))


def fill(remaining: Decoded, folder: str) -> None:
    tempfile.tempdir = folder
    for number in range(100):
        read(remaining, f"{number}.jpg", lambda n=number: image(n))


def test_processes_that_write_at_a_time_leave_right_images(folder: Path) -> None:
    remaining = room(100)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill, args=(remaining, str(folder))) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    hits = 0
    for number in range(100):
        pixels = read(remaining, f"{number}.jpg", lambda n=number: 255 - image(n))
        hits += np.array_equal(pixels, image(number))
        assert np.array_equal(pixels, image(number)) or np.array_equal(pixels, 255 - image(number))
    assert hits >= 98


@pytest.mark.slow
def test_threads_that_open_it_together_read_right_images() -> None:
    """Few slots, so that many images want the same ones."""
    names = [f"{number}.jpg" for number in range(64)]
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 288, 144), dtype=np.uint8)
    for round_ in range(12):
        few = Decoded(f"t{round_}", num_slots=8, height=288, width=144)
        start = threading.Barrier(16)

        def work(seed: int, few: Decoded = few, start: threading.Barrier = start) -> int:
            wrong = 0
            start.wait()
            for part in np.random.default_rng(seed).permutation(64).reshape(8, 8):
                out = np.empty((8, 3, 288, 144), np.uint8)
                few.read_into(out, [names[n] for n in part], lambda i, part=part: images[part[i]])
                wrong += int((out != images[part]).any(axis=(1, 2, 3)).sum())
            return wrong

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(work, range(16))) == 0
        few.remove()


def test_a_run_removes_its_file_and_those_that_nobody_uses(folder: Path) -> None:
    (folder / "crossreid-decoded-dead").write_bytes(b"left by a run that was killed")
    remaining = room(4)
    read(remaining, "x.jpg", lambda: image(1))
    assert [path.name for path in folder.iterdir()] == ["crossreid-decoded-a"]
    remaining.remove()
    assert not list(folder.iterdir())


def test_a_process_that_goes_on_holds_no_room_of_a_run_that_is_over() -> None:
    """On Linux an open file keeps its blocks without a name: 7 GiB of a node's temporary folder."""
    remaining = room(4)
    read(remaining, "x.jpg", lambda: image(1))
    file = remaining.path.stat().st_ino
    assert file in opened_here()
    remaining.remove()
    assert file not in opened_here()
    # a thread that reads ahead comes late: it decodes, and makes no file again
    np.testing.assert_array_equal(read(remaining, "x.jpg", lambda: image(1)), image(1))
    assert not remaining.path.exists()


def opened_here() -> set[int]:
    numbers = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            numbers.add(descriptor.stat().st_ino)
    return numbers


def test_without_room_on_the_disk_nothing_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    remaining = room(4)
    for _ in range(2):
        np.testing.assert_array_equal(read(remaining, "x.jpg", lambda: image(1)), image(1))
    assert "not kept" in caplog.text
    assert not list(folder.iterdir())
