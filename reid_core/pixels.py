"""Loops over the pixels of many images, compiled, without the interpreter's lock.

A call does a whole batch. Where many threads read images while another one launches kernels on a
GPU, what costs is how often the lock changes hands, so that image after image in NumPy would stop
the launches.
"""

from __future__ import annotations

import numpy as np

from reid_core.compiled import compiled

_U = np.uint64  # an index that cannot be negative: only such loops become vector instructions
_LUMA = tuple(np.array([19595, 38470, 7471, 0x8000], dtype=np.uint32))
_16 = np.uint32(16)


@compiled()
def gather(out: np.ndarray, content: np.ndarray, places: np.ndarray) -> None:
    """Copy images out of one block of memory.

    Args:
        out: (n, ...) uint8, C-contiguous.
        content: (bytes,) uint8.
        places: (n,) int64, where each image begins; below 0 where out stays as it is.
    """
    flat = out.reshape(len(out), -1)
    for i in range(len(places)):
        if places[i] >= 0:
            image, begin = flat[i], _U(places[i])
            for x in range(len(image)):
                image[_U(x)] = content[begin + _U(x)]


@compiled()
def crop(
    out: np.ndarray,
    targets: np.ndarray,
    images: np.ndarray,
    sources: np.ndarray,
    gray: np.ndarray,
    flip: np.ndarray,
    down: np.ndarray,
    right: np.ndarray,
) -> None:
    """Write images[sources[i]], as luma or as it is, mirrored, then shifted, to out[targets[i]].

    Luma is ITU-R 601 in Pillow's fixed point.

    Args:
        out, images: (..., 3, H, W) uint8, C-contiguous.
        targets, sources: (n,) int64.
        gray, flip: (n,) bool.
        down, right: (n,) int64, where in the image the corner of the result lies; zeros beyond it.
    """
    height, width = images.shape[2], images.shape[3]
    for i in range(len(targets)):
        image, target, shift = images[sources[i]], out[targets[i]], right[i]
        first, last = max(-shift, 0), min(width - shift, width)
        for y in range(height):
            row = y + down[i]
            if row < 0 or row >= height or first >= last:
                target[:, y] = 0
                continue
            if gray[i]:
                red, green, blue = image[0, row], image[1, row], image[2, row]
                _luma(target[0, y], red, green, blue, first, last, shift, flip[i])
                target[1, y] = target[0, y]
                target[2, y] = target[0, y]
            else:
                for channel in range(3):
                    _copy(target[channel, y], image[channel, row], first, last, shift, flip[i])


@compiled()
def _copy(out: np.ndarray, row: np.ndarray, first: int, last: int, shift: int, flip: bool) -> None:
    out[:first] = 0
    out[last:] = 0
    end = len(row) - 1 - shift
    if flip:
        for x in range(first, last):
            out[_U(x)] = row[_U(end - x)]
    else:
        for x in range(first, last):
            out[_U(x)] = row[_U(x + shift)]


@compiled()
def _luma(
    out: np.ndarray,
    red: np.ndarray,
    green: np.ndarray,
    blue: np.ndarray,
    first: int,
    last: int,
    shift: int,
    flip: bool,
) -> None:
    out[:first] = 0
    out[last:] = 0
    end = len(red) - 1 - shift
    of_red, of_green, of_blue, half = _LUMA
    if flip:
        for x in range(first, last):
            at = _U(end - x)
            sums = of_red * red[at] + of_green * green[at] + of_blue * blue[at] + half
            out[_U(x)] = sums >> _16
    else:
        for x in range(first, last):
            at = _U(x + shift)
            sums = of_red * red[at] + of_green * green[at] + of_blue * blue[at] + half
            out[_U(x)] = sums >> _16


@compiled()
def erase_and_mix(
    out: np.ndarray,
    targets: np.ndarray,
    boxes: np.ndarray,
    fill: np.ndarray,
    mixtures: np.ndarray,
    tables: np.ndarray,
) -> None:
    """Fill rectangles, then let all channels follow from one.

    Args:
        out: (..., 3, H, W) uint8, C-contiguous, changed.
        targets: (n,) int64, the images.
        boxes: (n, 4) int64, rows [0], [1] and columns [2], [3]; nothing is filled where [1] is 0.
        fill: (3,) uint8, a color.
        mixtures: (n,) int64 rows of tables; others leave the image as it is.
        tables: (channels, 3, 256) uint8: what a byte of that channel becomes in each channel.
    """
    for i in range(len(targets)):
        target = out[targets[i]]
        y0, y1, x0, x1 = boxes[i]
        if y1:
            for channel in range(3):
                target[channel, y0:y1, x0:x1] = fill[channel]
        mixture = mixtures[i]
        if 0 <= mixture < len(tables):
            flat = target.reshape(3, -1)
            seen = flat[mixture].copy()
            for channel in range(3):
                becomes, place = tables[mixture, channel], flat[channel]
                for x in range(len(seen)):
                    place[_U(x)] = becomes[seen[_U(x)]]
