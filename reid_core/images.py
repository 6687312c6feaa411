"""From the bytes of an image file to RGB pixels: the one answer for training, pages and exports.

Upright, 8 bits, three channels. What a decoder of another program has to do for the same pixels is
`DECODING`, which exported models carry.
"""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from reid_core.types import MAX_MEGAPIXELS

BACKGROUND = (255, 255, 255)
DECODING = {
    "orientation": "exif",
    "alpha": "composited on background",
    "background": ",".join(map(str, BACKGROUND)),
    "grey_16_bit": "value >> 8",
    "cmyk": "Pillow's convert('RGB')",
    "resize": "lanczos",
}
"""What happens to a file before the network, in this order, for the metadata of exported models."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""What is decoded, as Pillow calls it; its other decoders, some of them programs, are never run."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where a JPEG may say how it is to be turned, or that it holds several images.
_MAY_BE_TURNED = (b"Exif\0", b"http://ns.adobe.com/xap/", b"MPF\0")
_UNREADABLE = (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode(
    data: bytes, *, height: int, width: int, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Decode an image file, resized with Lanczos only where its size differs.

    Args:
        data: bytes of an image in one of `FORMATS`.
        height, width: of the result.
        max_megapixels: refuses larger images by their header, before they are decoded.

    Returns:
        (3, height, width) uint8, RGB; see `as_rgb`.

    Raises:
        ValueError: broken or truncated data, another format, too many pixels, or pixels that
            `as_rgb` refuses.
    """
    if height * width <= max_megapixels * 1e6:
        plain = _plain_jpeg(data, height, width)
        if plain is not None:
            return plain
    rgb = open_rgb(data, max_megapixels=max_megapixels)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _plain_jpeg(data: bytes, height: int, width: int) -> np.ndarray | None:
    """A JPEG that is what it will be, upright and of that size; None for Pillow to look at.

    The same pixels as Pillow's, sooner, and the interpreter's lock is hardly held.
    """
    if not data.startswith(b"\xff\xd8\xff") or any(mark in data for mark in _MAY_BE_TURNED):
        return None
    with suppress(ValueError):  # what it refuses, Pillow may still take
        *size, colors, _ = simplejpeg.decode_jpeg_header(data)
        if size == [height, width] and colors in ("YCbCr", "Gray", "RGB"):
            pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
            return pixels.transpose(2, 0, 1)
    return None


def open_rgb(data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """An image at its own size, with the pixels that `decode` gives, for pages and sheets.

    Raises:
        ValueError: see `decode`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_megapixels)
            image.load()
    except _UNREADABLE as error:
        raise _unreadable(data, error) from error
    return as_rgb(_upright(image))


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) of an upright image, from its header.

    Raises:
        ValueError: the header is not that of an image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            lies = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns TIFF itself
    except _UNREADABLE as error:
        raise _unreadable(data, error) from error
    return (width, height) if lies else (height, width)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in three channels of 8 bits.

    What an alpha channel or a transparent color hides becomes white, as pages show it. 16-bit
    gray, usual for thermal cameras, loses its lower 8 bits: black to white of the file's type
    becomes 0 to 255, alike in all images. A camera that uses a part of that range comes out dark
    and flat; stretch such files beforehand. CMYK is converted as Pillow does, without a profile.

    Raises:
        ValueError: pixels of 32 bits (modes I and F), whose black and white nothing tells.
    """
    if image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of mode {image.mode} (32 bits), whose range is unknown: save the image as "
            "8-bit gray with its black at 0 and its white at 255"
        )
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 off
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        shown = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(shown, image.convert("RGBA"))
    return image.convert("RGB")


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise ValueError(
            f"{image.width} x {image.height} pixels are {megapixels:,.0f} megapixels, more than "
            f"data.max_megapixels={max_megapixels:g} allows"
        )


def _orientation(image: Image.Image) -> int:
    """How EXIF says that an image lies, 1 where it does not; broken EXIF says nothing."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever a parser of foreign bytes stumbles over
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _unreadable(data: bytes, error: Exception) -> ValueError:
    if isinstance(error, Image.DecompressionBombError):
        return ValueError("too many pixels: more than Pillow opens at all; make it smaller")
    if "megapixels" in str(error):
        return ValueError(f"too many pixels: {error}")
    unknown = isinstance(error, UnidentifiedImageError)
    if unknown and (name := _other_format(data)):
        return ValueError(f"its format {name} is not read: save it as PNG or JPEG")
    said = "its format is none that is known" if unknown else "damaged or cut off; copy it again"
    return ValueError(f"not a complete image ({len(data):,} bytes): {said}")


def _other_format(data: bytes) -> str:
    """Pillow's name of a format that is not read, by the first bytes alone; "" where none is."""
    Image.init()
    unsure = {"CUR", "ICO"}  # begin like many a damaged file
    for name in Image.OPEN.keys() - {*FORMATS} - unsure:
        accepts = Image.OPEN[name][1]
        with suppress(Exception):  # some stumble over few bytes
            if accepts is not None and accepts(data[:16]) is True:
                return name
    return ""
