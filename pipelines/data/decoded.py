"""Decoded images kept on the node, so that an epoch does not decode what the last one did.

A file in the node's temporary folder, mapped by every process that reads images for a run: the
train worker that embeds and the tasks that feed it. It holds what fits; the rest is decoded as it
comes. The system's page cache decides what of it lies in memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import shutil
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.storage.abandoned import remove_abandoned
from reid_core.pixels import gather

log = logging.getLogger(__name__)
_PREFIX = "crossreid-decoded-"
_HEADER = struct.Struct("<16sI4x")  # digest of the name and size; checksum of the pixels
_WAYS = 32  # places that an image may take
_MOST_FILES = 2  # that a process has open: tasks read for one run after the other
_opening = threading.Lock()
_files: dict[Decoded, _File | None] = {}


@dataclass(frozen=True)
class Decoded:
    """Where decoded images of a run are kept; the same for all its processes.

    An image lies in one of a few slots that follow from its name. A slot is written once, under a
    lock, its pixels before its header, and read against a checksum, so that a process that dies in
    between leaves no wrong image.

    Attributes:
        token: of the run's start. Files are not read again in its course, whatever happens to them.
        num_slots: images that fit.
        height, width: in pixels.
    """

    token: str
    num_slots: int
    height: int
    width: int

    @classmethod
    def holding(
        cls, num_images: int, *, token: str, num_bytes: int, height: int, width: int
    ) -> Decoded | None:
        """Room for as many of the images as fit into the bytes; None where none does."""
        # a fifth more than images, or the last ones would find all their slots taken
        fit = min(num_bytes // _slot_bytes(height, width), num_images + num_images // 5 + 1)
        return cls(token, fit, height, width) if fit else None

    @property
    def path(self) -> Path:
        """The file, on whichever node this is."""
        return Path(tempfile.gettempdir()) / f"{_PREFIX}{self.token}"

    def read_into(
        self, out: np.ndarray, names: Sequence[str], decode: Callable[[int], np.ndarray | None]
    ) -> None:
        """Fill in images, from here or else from `decode`.

        Args:
            out: (n, 3, H, W) uint8, C-contiguous.
            names: n different ones, the same in all processes.
            decode: gives the image (3, H, W) of a position of names; None leaves out as it is.

        Raises:
            ValueError: what `decode` raises; nothing is kept of that image.
        """
        file = _opened(self)
        places = np.full(len(names), -1)
        for number, name in enumerate(names):
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            place = None if file is None else self._place(file, digest)
            if place is not None:
                places[number] = place + _HEADER.size
                continue
            image = decode(number)
            if image is not None:
                out[number] = image
                if file is not None:
                    self._keep(file, digest, out[number])
        if file is not None:
            gather(out, file.pixels, places)

    def remove(self) -> None:
        """Give the room back: here at once, in other processes when they end.

        What is read from now on is decoded as it comes.
        """
        with _opening:
            self.path.unlink(missing_ok=True)
            _remember(self, None)

    def _places(self, digest: bytes) -> Iterator[int]:
        """Where the slots begin that an image may take, spread as by chance."""
        size, state = _slot_bytes(self.height, self.width), int.from_bytes(digest, "little")
        for _ in range(_WAYS):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64  # Knuth, MMIX
            yield (state >> 33) % self.num_slots * size

    def _place(self, file: _File, digest: bytes) -> int | None:
        """Where an image lies; its checksum is looked at once, for no slot is written twice."""
        for place in self._places(digest):
            if file.content[place : place + 16] == digest:
                if file.checked.get(place) != digest:
                    _, checksum = _HEADER.unpack_from(file.content, place)
                    if zlib.crc32(self._pixels(file, place).data) != checksum:
                        continue
                    file.checked[place] = digest
                return place
        return None

    def _pixels(self, file: _File, place: int) -> np.ndarray:
        begin = place + _HEADER.size
        return file.pixels[begin : begin + 3 * self.height * self.width]

    def _keep(self, file: _File, digest: bytes, image: np.ndarray) -> None:
        """Write into the first free slot, unless all are taken or somebody writes there."""
        content, free = file.content, bytes(16)
        for place in self._places(digest):
            if content[place : place + 16] != free:
                continue
            with suppress(BlockingIOError), file.locked(place):
                if content[place : place + 16] == free:
                    self._pixels(file, place)[:] = image.reshape(-1)
                    content[place + 16 : place + 20] = struct.pack("<I", zlib.crc32(image.data))
                    content[place : place + 16] = digest
            return


class _File:
    """An open file, mapped; closed with its last user.

    Attributes:
        content, pixels: all its bytes, also as an array, whose copies leave other threads running.
        checked: whose image this process has seen at a place with the right checksum.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self.content = descriptor, mmap.mmap(descriptor, size)
        self.pixels = np.frombuffer(self.content, np.uint8)
        self.checked: dict[int, bytes] = {}
        self._claims, self._claimed = threading.Lock(), set[int]()

    def __del__(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def locked(self, place: int) -> Iterator[None]:
        """A slot that nobody else writes: the system keeps processes apart, a claim the threads.

        Raises:
            BlockingIOError: somebody writes there.
        """
        with self._claims:
            if place in self._claimed:
                raise BlockingIOError
            self._claimed.add(place)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 16, place)
            try:
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 16, place)
        finally:
            with self._claims:
                self._claimed.discard(place)


def _opened(decoded: Decoded) -> _File | None:
    """The mapped file, one for all threads: two would not know of each other's claims."""
    with _opening:
        if decoded not in _files:
            _remember(decoded, _open(decoded))
        return _files[decoded]


def _remember(decoded: Decoded, file: _File | None) -> None:
    """None where there is no room for one, or no longer; what was opened long ago is let go."""
    _files[decoded] = file
    for old in list(_files)[:-_MOST_FILES]:
        del _files[old]


def _open(decoded: Decoded) -> _File | None:
    """Made by whoever comes first; None where there is no room for it."""
    size = decoded.num_slots * _slot_bytes(decoded.height, decoded.width)
    remove_abandoned(decoded.path.parent, f"{_PREFIX}*", own=decoded.path)  # runs that are gone
    descriptor = os.open(decoded.path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # as long as it is open
        if os.fstat(descriptor).st_size < size:
            if shutil.disk_usage(decoded.path.parent).free < 2 * size:
                raise OSError(f"less than {2 * size:,} bytes are free")
            os.posix_fallocate(descriptor, 0, size)  # zeros, really there: a hole would be a crash
        return _File(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        decoded.path.unlink(missing_ok=True)
        log.warning("decoded images are not kept in %s: %s", decoded.path.parent, error)
        return None


def _slot_bytes(height: int, width: int) -> int:
    """Of a header and an image, in whole steps of 8."""
    return -(-(_HEADER.size + 3 * height * width) // 8) * 8
