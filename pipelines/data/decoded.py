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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)
_PREFIX = "crossreid-decoded-"
_HEADER = struct.Struct("<16sI4x")  # digest of the name and size; checksum of the pixels
_WAYS = 32  # places that an image may take
_writing = threading.Lock()


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

    def read(self, name: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """An image (3, H, W) uint8, not to be changed, from here or else from `decode`.

        Raises:
            ValueError: what `decode` raises; nothing is kept then.
        """
        file = _opened(self)
        if file is None:
            return decode()
        content = file.content
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        for place in self._places(digest):
            if content[place : place + 16] == digest:
                pixels = self._pixels(content, place)
                if zlib.crc32(pixels.data) == _HEADER.unpack_from(content, place)[1]:
                    return pixels
        image = decode()
        self._keep(file, digest, image)
        return image

    def remove(self) -> None:
        """Give the room back; processes that still read keep what they have."""
        self.path.unlink(missing_ok=True)

    def _places(self, digest: bytes) -> Iterator[int]:
        """Where the slots begin that an image may take, spread as by chance."""
        size, state = _slot_bytes(self.height, self.width), int.from_bytes(digest, "little")
        for _ in range(_WAYS):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64  # Knuth, MMIX
            yield (state >> 33) % self.num_slots * size

    def _pixels(self, content: mmap.mmap, place: int) -> np.ndarray:
        shape = (3, self.height, self.width)
        flat = np.frombuffer(content, np.uint8, int(np.prod(shape)), place + _HEADER.size)
        image = flat.reshape(shape)
        image.flags.writeable = False
        return image

    def _keep(self, file: _File, digest: bytes, image: np.ndarray) -> None:
        """Write into the first free slot, unless all are taken or somebody writes there."""
        content, free = file.content, bytes(16)
        for place in self._places(digest):
            if content[place : place + 16] != free:
                continue
            with _writing, suppress(BlockingIOError), file.locked(place):
                if content[place : place + 16] == free:
                    pixels = np.ascontiguousarray(image).tobytes()
                    end = place + _HEADER.size + len(pixels)
                    content[place + _HEADER.size : end] = pixels
                    content[place + 16 : place + 20] = struct.pack("<I", zlib.crc32(pixels))
                    content[place : place + 16] = digest
            return


class _File:
    """An open file, mapped; closed with its last user."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self.content = descriptor, mmap.mmap(descriptor, size)

    def __del__(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def locked(self, place: int) -> Iterator[None]:
        """A slot that no other process writes; of this one's threads `_writing` takes care.

        Raises:
            BlockingIOError: another process writes there.
        """
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 16, place)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 16, place)


@lru_cache(maxsize=2)
def _opened(decoded: Decoded) -> _File | None:
    """The mapped file, made by whoever comes first; None where there is no room for it."""
    size = decoded.num_slots * _slot_bytes(decoded.height, decoded.width)
    _remove_abandoned(decoded.path)
    descriptor = os.open(decoded.path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # as long as this process lives
        if os.fstat(descriptor).st_size < size:
            if shutil.disk_usage(decoded.path.parent).free < 2 * size:
                raise OSError(f"less than {2 * size:,} bytes are free")
            os.posix_fallocate(descriptor, 0, size)  # zeros, really there: a hole would be a crash
        return _File(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        decoded.remove()
        log.warning("decoded images are not kept in %s: %s", decoded.path.parent, error)
        return None


def _remove_abandoned(own: Path) -> None:
    """Delete the files of runs of which no process is left."""
    for path in own.parent.glob(f"{_PREFIX}*"):
        if path == own:
            continue
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _slot_bytes(height: int, width: int) -> int:
    """Of a header and an image, in whole steps of 8."""
    return -(-(_HEADER.size + 3 * height * width) // 8) * 8
