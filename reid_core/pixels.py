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
_GOLDEN = _U(0x9E3779B97F4A7C15)
_MOST_RECTANGLES, _DARK = 100, 0.1


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
def _next(stream: np.uint64) -> tuple[float, np.uint64]:
    """A number between 0 and 1, neither of them, and the stream after it.

    Reference: splitmix64, see `reid_core.transforms`.
    """
    stream += _GOLDEN
    mixed = (stream ^ (stream >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> _U(27))) * _U(0x94D049BB133111EB)
    mixed ^= mixed >> _U(31)
    return (np.float64(mixed >> _U(12)) + 0.5) * 2.0**-52, stream


@compiled()
def _beta(stream: np.uint64, shape: float) -> tuple[float, np.uint64]:
    """A number from Beta(shape, shape), shape at most 1, and the stream after it.

    Reference: Joehnk, "Erzeugung von betaverteilten und gammaverteilten Zufallszahlen", 1964.
    """
    while True:
        first, stream = _next(stream)
        second, stream = _next(stream)
        x, y = first ** (1 / shape), second ** (1 / shape)
        if x + y <= 1:
            return x / (x + y), stream


@compiled()
def mixture_weights(streams: np.ndarray) -> np.ndarray:
    """(n, 3) float32: three numbers from Beta(.3, .3), divided by their sum, for each of (n,)
    streams of random numbers."""
    weights = np.empty((len(streams), 3), dtype=np.float32)
    for i in range(len(streams)):
        red, stream = _beta(streams[i], 0.3)
        green, stream = _beta(stream, 0.3)
        blue, stream = _beta(stream, 0.3)
        for channel, value in enumerate((red, green, blue)):
            weights[i, channel] = value / (red + green + blue)
    return weights


@compiled()
def mix(out: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
    """Write one mixture of the channels into all three.

    Args:
        out: (..., 3, H, W) uint8, C-contiguous, changed.
        targets: (n,) int64, the images.
        weights: (n, 3) float32 of the channels; a row sums to 1.
    """
    half = np.float32(0.5)
    for i in range(len(targets)):
        of_red, of_green, of_blue = weights[i]
        flat = out[targets[i]].reshape(3, -1)
        red, green, blue = flat[0], flat[1], flat[2]
        for place in range(len(red)):
            x = _U(place)
            mixture = np.uint8(of_red * red[x] + of_green * green[x] + of_blue * blue[x] + half)
            red[x], green[x], blue[x] = mixture, mixture, mixture


@compiled()
def _light(part: np.ndarray, factors: np.ndarray, alpha: float) -> np.float32:
    """Multiply factors (h, w) so that the brightest of bytes (h, w) times factors becomes 255
    alpha; the smallest of them then. Where all is black, they stay, and 1 is returned."""
    peak = np.float32(0)
    for y in range(len(part)):
        row, of_row = part[y], factors[y]
        for x in range(len(row)):
            peak = max(peak, row[_U(x)] * of_row[_U(x)])
    if peak == 0:
        return np.float32(1)
    by, smallest = np.float32(255 * alpha / peak), np.float32(1)
    for y in range(len(part)):
        of_row = factors[y]
        for x in range(len(of_row)):
            of_row[_U(x)] *= by
            smallest = min(smallest, of_row[_U(x)])
    return smallest


@compiled()
def relight(
    out: np.ndarray,
    targets: np.ndarray,
    streams: np.ndarray,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> None:
    """Scale the channels of rectangles, one after the other, until some pixel has become dark.

    A rectangle's channel is scaled so that its maximum becomes 255 alpha, alpha drawn from Beta(.4,
    .4). An image is finished when one of its values was scaled to less than a tenth in all, or
    after 100 rectangles, and rounded then.

    Args:
        out: (..., 3, H, W) uint8, C-contiguous, changed.
        targets: (n,) int64, the images.
        streams: (n,) uint64, a stream of random numbers for each.
        area: smallest and largest share of the image that a rectangle has.
        aspect: smallest and largest height / width of it.
    """
    height, width = out.shape[2], out.shape[3]
    factors, half = np.empty((3, height, width), dtype=np.float32), np.float32(0.5)
    for i in range(len(targets)):
        stream, image = streams[i], out[targets[i]]
        factors[:] = 1
        for _ in range(_MOST_RECTANGLES):
            drawn, stream = _next(stream)
            pixels = (area[0] + drawn * (area[1] - area[0])) * height * width
            drawn, stream = _next(stream)
            ratio = aspect[0] + drawn * (aspect[1] - aspect[0])
            tall, wide = np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))
            if not (1 <= tall < height and 1 <= wide < width):
                continue
            drawn, stream = _next(stream)
            top = int(drawn * (height - tall + 1))
            drawn, stream = _next(stream)
            left = int(drawn * (width - wide + 1))
            rows, columns = slice(top, top + int(tall)), slice(left, left + int(wide))
            darkest = np.float32(1)
            for channel in range(3):
                alpha, stream = _beta(stream, 0.4)
                part, of_part = image[channel, rows, columns], factors[channel, rows, columns]
                darkest = min(darkest, _light(part, of_part, alpha))
            if darkest < _DARK:
                break
        flat, scaled = image.reshape(-1), factors.reshape(-1)
        for place in range(len(flat)):
            x = _U(place)
            flat[x] = np.uint8(flat[x] * scaled[x] + half)


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
