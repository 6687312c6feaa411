"""From files to pixels: whatever a camera or a program wrote, and nothing that ends the memory."""

from __future__ import annotations

import io
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from reid_core.images import DECODING, FORMATS, decode, open_rgb, size_of

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 64, 32


def drawn(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(mode: str = "RGBA") -> Image.Image:
    alpha = Image.fromarray(
        np.linspace(0, 255, WIDTH * HEIGHT).astype(np.uint8).reshape(HEIGHT, -1)
    )
    image = drawn("RGB" if mode == "RGBA" else "L")
    image.putalpha(alpha)
    return image


def turned(number: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(drawn(), kind, exif=exif)


def ramp(bits: type = np.uint16) -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, WIDTH * HEIGHT).astype(bits).reshape(HEIGHT, -1))


FILES = {
    "16 bits": encoded(ramp(), "PNG"),
    "16 bits, tiff": encoded(ramp(), "TIFF"),
    "alpha": encoded(with_alpha(), "PNG"),
    "gray and alpha": encoded(with_alpha("LA"), "PNG"),
    "transparent color": encoded(drawn("P"), "PNG", transparency=3),
    "cmyk": encoded(drawn("CMYK"), "JPEG"),
    "gray": encoded(drawn("L"), "JPEG"),
    "one bit": encoded(drawn("1"), "PNG"),
    "progressive": encoded(drawn(), "JPEG", progressive=True),
    **{f"turned {n}": turned(n, "JPEG") for n in range(1, 9)},
    "turned png": turned(6, "PNG"),
    "turned tiff": turned(6, "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (WIDTH, HEIGHT), (48, 24)])
def test_the_example_of_an_exported_model_gives_the_very_same_pixels(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    pytest.importorskip("onnxruntime")
    pixels = runpy.run_path(str(ROOT / "examples" / "onnx_inference.py"))["pixels"]
    (tmp_path / "image").write_bytes(FILES[name])
    facts = {**DECODING, "height": str(size[0]), "width": str(size[1])}
    expected = decode(FILES[name], height=size[0], width=size[1])
    assert np.array_equal(pixels(str(tmp_path / "image"), facts), expected)


@pytest.mark.parametrize("number", range(1, 9))
def test_an_image_stands_upright(number: int) -> None:
    data = turned(number, "PNG")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    height, width = size_of(data)
    assert (width, height) == upright.size
    expected = np.asarray(upright.convert("RGB"))
    assert np.array_equal(decode(data, height=height, width=width).transpose(1, 2, 0), expected)
    assert np.array_equal(np.asarray(open_rgb(data)), expected)


def test_what_alpha_hides_is_white_and_what_it_does_not_stays() -> None:
    images = []
    for color in ((255, 0, 255), (0, 255, 0)):
        pixels = np.array(drawn("RGBA"))
        pixels[:, 8:24, :3], pixels[:, 8:24, 3] = color, 0
        images.append(decode(encoded(Image.fromarray(pixels), "PNG"), height=HEIGHT, width=WIDTH))
    assert np.array_equal(*images)
    assert (images[0][:, :, 8:24] == 255).all()
    whole = encoded(drawn("RGBA"), "PNG")
    expected = np.asarray(drawn()).transpose(2, 0, 1)
    assert np.array_equal(decode(whole, height=HEIGHT, width=WIDTH), expected)


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    bomb = encoded(Image.new("1", (8000, 8000)), "PNG")
    cut = bomb[:100]  # nothing but the header could be read
    for read in (lambda: decode(cut, height=64, width=32), lambda: open_rgb(cut)):
        with pytest.raises(ValueError, match=r"8000 x 8000 .* 64 megapixels, more than data\.max"):
            read()
    small = encoded(drawn(), "PNG")
    with pytest.raises(ValueError, match="more than data"):
        decode(small, height=64, width=32, max_megapixels=0.001)


@pytest.mark.parametrize("junk", [b"Exif\x00\x00", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"])
def test_broken_exif_says_nothing(junk: bytes) -> None:
    data = encoded(drawn(), "JPEG")
    segment = b"\xff\xe1" + (len(junk) + 2).to_bytes(2) + junk
    broken = data[:2] + segment + data[2:]
    expected = decode(data, height=HEIGHT, width=WIDTH)
    assert np.array_equal(decode(broken, height=HEIGHT, width=WIDTH), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_a_jpeg_of_the_right_size_has_pillows_pixels(mode: str, options: dict[str, Any]) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (25, 13, 3), dtype=np.uint8)
    image = Image.fromarray(drawn).resize((52, 97)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    expected = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(file.getvalue(), height=97, width=52), expected)
    with pytest.raises(ValueError, match="too many pixels"):
        decode(file.getvalue(), height=97, width=52, max_megapixels=0.005)
    with pytest.raises(ValueError, match="cut off"):
        decode(file.getvalue()[:-20], height=97, width=52)


def test_a_turn_that_xmp_asks_for_is_taken() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    drawn = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    plain, turned = io.BytesIO(), io.BytesIO()
    Image.fromarray(drawn).save(plain, "JPEG")
    Image.fromarray(drawn).save(turned, "JPEG", xmp=xmp)
    upright, other = (decode(x.getvalue(), height=8, width=16) for x in (plain, turned))
    np.testing.assert_array_equal(other, upright[:, ::-1, ::-1])


@pytest.mark.parametrize("kind", ["EPS", "JPEG2000", "PCX"])
def test_a_format_that_is_not_read_reaches_no_decoder(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of EPS is Ghostscript; uploads are anybody's."""
    data = encoded(drawn(), kind)
    Image.init()
    assert kind not in FORMATS

    def reached(*args: object) -> None:
        raise AssertionError(f"the decoder of {kind} was run")

    monkeypatch.setitem(Image.OPEN, kind, (reached, Image.OPEN[kind][1]))
    for read in (open_rgb, size_of, lambda data: decode(data, height=HEIGHT, width=WIDTH)):
        with pytest.raises(ValueError, match=f"its format {kind} is not read: save it as"):
            read(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_read(kind: str) -> None:
    assert decode(encoded(drawn(), kind), height=HEIGHT, width=WIDTH).shape == (3, HEIGHT, WIDTH)
