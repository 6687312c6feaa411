"""Draws docs/query.png: one infrared query and what is found, before and after training.

    crossreid demo --out runs/demo && python docs/make_query_figure.py runs/demo

Nothing is chosen by hand: of the queries whose best answers became right, it is the one in the
middle, by how much their average precision grew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from pipelines.report.style import INK, MUTED, RIGHT, WRONG

TARGET = Path(__file__).with_name("query.png")
WIDTH, HEIGHT, FRAME, GAP, NUM = 84, 168, 5, 10, 7
LEFT, TOP = 2 * WIDTH + 20, 34


def typical_query(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> int:
    """A query whose first answer became right; of those the one with the median gain."""
    became_right = ~before["top_correct"][:, 0] & after["top_correct"][:, 0]
    queries = np.flatnonzero(became_right)
    gains = (after["ap"] - before["ap"])[queries]
    return int(queries[np.argsort(gains, kind="stable")[len(queries) // 2]])


def draw(run_dir: Path) -> Image.Image:
    """The figure of a finished run."""
    root = Path(yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["root"])
    before, after = (
        dict(np.load(run_dir / "evaluation" / f"{row}.npz")) for row in ("start", "final")
    )
    query = typical_query(before, after)
    sheet = Image.new("RGB", (LEFT + NUM * (WIDTH + GAP), TOP + 2 * (HEIGHT + TOP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    middle = (sheet.height - HEIGHT) // 2
    paste(sheet, root / str(before["query_images"][query]), (GAP, middle), INK)
    pen.text((GAP, middle - 22), "infrared query", fill=INK, font=font)
    for number, (title, scores) in enumerate((("before training", before), ("after", after))):
        top = TOP + number * (HEIGHT + TOP)
        pen.text((LEFT, top - 22), f"{title}: most similar visible images", fill=MUTED, font=font)
        for place, row in enumerate(scores["top"][query][:NUM]):
            color = RIGHT if scores["top_correct"][query][place] else WRONG
            at = (LEFT + place * (WIDTH + GAP), top)
            paste(sheet, root / str(scores["gallery_images"][row]), at, color)
    return sheet


def paste(sheet: Image.Image, file: Path, at: tuple[int, int], color: str) -> None:
    """An image of the world in a frame that says whether it is right."""
    x, y = at
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((x, y, x + WIDTH - 1, y + HEIGHT - 1), fill=color)
    size = (WIDTH - 2 * FRAME, HEIGHT - 2 * FRAME)
    with Image.open(file) as image:
        sheet.paste(
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x + FRAME, y + FRAME)
        )


if __name__ == "__main__":
    # 128 colors: a third of the bytes
    draw(Path(sys.argv[1])).quantize(128).save(TARGET, optimize=True)
