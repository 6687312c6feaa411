"""A watch list: images that arrive in a folder, matched against the identities of a gallery."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UserError
from pipelines.evaluation.calibrated import Calibrated
from pipelines.evaluation.encoder import LoadedEncoder
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter
from pipelines.retrieval.search import Hit, query_by_image, search
from reid_core.datasets.files import ImageFiles
from reid_core.types import Modality


def watch(
    gallery: Gallery,
    loaded: LoadedEncoder,
    folder: Path,
    *,
    modality: Modality | None = None,
    calibrated: Calibrated | None,
    min_probability: float = 0.9,
    top: int = 1,
    every_s: float = 1.0,
    rounds: int | None = None,
) -> Iterator[str]:
    """A JSON line per image that shows somebody of the watch list, as images arrive.

    Args:
        gallery: with enrolled identities.
        loaded: its encoder.
        folder: looked through again and again; what is there at the start counts as arrived.
        modality: of all images; None where a folder named visible or infrared says it.
        calibrated: of the encoder.
        min_probability: of a match.
        top: matches per image.
        every_s: pause between two looks.
        rounds: looks, None for ever.

    Yields:
        {"image", "name", "probability", "similarity", "id"}, or {"image", "error"} of an image
        that cannot be read twice in a row: the first time it may not be complete.

    Raises:
        UserError: nobody is enrolled, no such folder, or no calibration.
    """
    if not gallery.names():
        raise UserError("nobody is on the watch list: `crossreid gallery enroll GALLERY NAME ...`")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that images arrive in")
    if calibrated is None:
        raise UserError("a watch list needs a calibration: run `crossreid calibrate` on the run")
    seen: set[tuple[str, float]] = set()
    failed: set[tuple[str, float]] = set()
    while True:
        for image in list(ImageFiles(folder).below()):
            path = folder / image
            try:
                key = (image, path.stat().st_mtime)
            except FileNotFoundError:
                continue
            if key in seen:
                continue
            try:
                query = query_by_image(loaded, path, modality=modality or _of_folder(image))
            except UserError as error:
                if key in failed:
                    seen.add(key)
                    yield json.dumps({"image": image, "error": str(error)})
                failed.add(key)
                continue
            seen.add(key)
            hits = search(
                gallery,
                query,
                top=top,
                where=Filter(enrolled=True),
                calibrated=calibrated,
                min_probability=min_probability,
            )
            yield from (_line(image, hit) for hit in hits)
        if rounds is not None and (rounds := rounds - 1) <= 0:
            return
        time.sleep(every_s)


def _of_folder(image: str) -> Modality:
    for name in Path(image).parts[:-1]:
        if name in (Modality.VISIBLE, Modality.INFRARED):
            return Modality(name)
    raise UserError(f"{image}: put it into a folder named visible or infrared, or say --as")


def _line(image: str, hit: Hit) -> str:
    return json.dumps(
        {
            "image": image,
            "name": hit.name,
            "probability": round(hit.probability or 0.0, 4),
            "similarity": round(hit.similarity, 4),
            "id": hit.id,
        }
    )
