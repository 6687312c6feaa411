"""A watch list: images that arrive in a folder, matched against the identities of a gallery."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError
from pipelines.evaluation.calibrated import Calibrated, pair_of
from pipelines.evaluation.encoder import LoadedEncoder
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter, NoRowsError
from pipelines.retrieval.search import Hit, Query, query_by_image, search
from reid_core.datasets.files import ImageFiles
from reid_core.types import Modality

log = logging.getLogger(__name__)


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
        calibrated: of the encoder; its prior, if it has one, is the share of arriving images that
            show an enrolled identity, whichever. Each of K identities has a K-th of it.
        min_probability: of a match.
        top: matches per image.
        every_s: pause between two looks.
        rounds: looks, None for ever.

    Yields:
        {"image", "name", "probability", "similarity", "id"}, or {"image", "error"} of an image
        that cannot be read twice in a row: the first time it may not be complete. What cannot be
        listed, and pairs of modalities without a probability, are warned of once.

    Raises:
        UserError: nobody is enrolled, no such folder, or no calibration.
    """
    known = _required(gallery, folder, calibrated)
    arriving = loaded.modalities if modality is None else (modality,)
    _warn_of_pairs_without_a_map(gallery, arriving, known)
    arrivals = _Arrivals(folder)
    while True:
        for image in arrivals.new():
            try:
                query = query_by_image(
                    loaded, folder / image.name, modality=modality or _of_folder(image.name)
                )
            except UserError as error:
                if arrivals.failed_before(image):
                    yield json.dumps({"image": image.name, "error": str(error)})
                continue
            arrivals.done(image)
            hits = _matches(gallery, query, known, min_probability=min_probability, top=top)
            yield from (_line(image.name, hit) for hit in hits)
        if rounds is not None and (rounds := rounds - 1) <= 0:
            return
        time.sleep(every_s)


def _required(gallery: Gallery, folder: Path, calibrated: Calibrated | None) -> Calibrated:
    """What a watch cannot do without."""
    if not gallery.names():
        raise UserError("nobody is on the watch list: `crossreid gallery enroll GALLERY NAME ...`")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that images arrive in")
    if calibrated is None:
        raise UserError("a watch list needs a calibration: run `crossreid calibrate` on the run")
    return calibrated


def _matches(
    gallery: Gallery, query: Query, calibrated: Calibrated, *, min_probability: float, top: int
) -> list[Hit]:
    """The enrolled identities that a query may show; each has its part of the prior."""
    num_identities = len(gallery.names())
    if not num_identities:  # the last one was removed meanwhile; others may be enrolled
        return []
    if not calibrated.knows(query.modality):  # warned of at the start
        return []
    if calibrated.prior is not None:
        calibrated = calibrated.at_prior(calibrated.prior / num_identities)
    try:
        return search(
            gallery,
            query,
            top=top,
            where=Filter(enrolled=True),
            calibrated=calibrated,
            min_probability=min_probability,
        )
    except NoRowsError:  # removed just now
        return []


def _warn_of_pairs_without_a_map(
    gallery: Gallery, arriving: Sequence[Modality], calibrated: Calibrated
) -> None:
    """Such pairs never match, however alike they are."""
    enrolled = [m for m in Modality if gallery.count(Filter(modality=m, enrolled=True))]
    pairs = {pair_of(one, m) for one in arriving if one != Modality.TEXT for m in enrolled}
    if missing := sorted(pairs - calibrated.maps.keys()):
        log.warning(
            "nobody is matched between images that are %s: the calibration, fitted on %s, says "
            "nothing of such pairs. Run `crossreid calibrate RUN --labels val`, or enroll images "
            "of each modality that arrives",
            " or ".join(pair.replace(" ", " and ") for pair in missing),
            calibrated.source,
        )


class _Arrival(NamedTuple):
    """An image as it was when it was seen; a later change of the file is another arrival."""

    name: str
    changed: float


class _Arrivals:
    """Images of a folder that were not looked at yet, or not successfully and only once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused: set[str] = set()
        self._done: set[_Arrival] = set()
        self._failed: set[_Arrival] = set()

    def new(self) -> Iterator[_Arrival]:
        """What is to be looked at now."""
        for name in list(ImageFiles(self._folder, refused=self._warn_once).below()):
            try:
                arrival = _Arrival(name, (self._folder / name).stat().st_mtime)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._warn_once(error)
                continue
            if arrival not in self._done:
                yield arrival

    def _warn_once(self, error: Exception) -> None:
        """Of a folder that went away between two looks, or a name that is no image's."""
        if (said := str(error)) not in self._refused:
            self._refused.add(said)
            log.warning("passed over: %s", said)

    def done(self, arrival: _Arrival) -> None:
        """Never look at it again."""
        self._done.add(arrival)

    def failed_before(self, arrival: _Arrival) -> bool:
        """Note that it cannot be read; True the second time, after which it is done."""
        if arrival in self._failed:
            self.done(arrival)
            return True
        self._failed.add(arrival)
        return False


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
