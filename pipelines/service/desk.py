"""The answers of the service: from an encoded query to rows without any path of the server."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from threading import Lock

import numpy as np

from pipelines.errors import UserError
from pipelines.evaluation.calibrated import Calibrated
from pipelines.report.ranklists import thumbnail
from pipelines.retrieval.embedder import content_hash
from pipelines.retrieval.fill import rows_of
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter, NoRowsError
from pipelines.retrieval.search import Hit, Query, query_by_id, search
from pipelines.service.indexer import Indexer
from pipelines.storage.files import replace_file
from reid_core.images import decode
from reid_core.types import Modality, Sample

log = logging.getLogger(__name__)
MAX_TOP = 100
MAX_BYTES = 20 * 2**20
MAX_MEGAPIXELS = 25.0
_REMEMBERED = 10_000


class RefusedError(Exception):
    """A request that cannot be answered; its text is for the client and names no path."""


class UnavailableError(RefusedError):
    """A request that could not be answered now, for a reason that is the server's."""


@dataclass(frozen=True)
class Input:
    """What is embedded for a request.

    Attributes:
        content: an image (3, H, W) uint8, or a sentence.
        modality: of it.
        joint: whether into the joint space, for the table that sentences ask.
    """

    content: np.ndarray | str
    modality: Modality
    joint: bool = False


@dataclass(frozen=True)
class Facts:
    """What a client must know to ask.

    Attributes:
        rows: of the gallery.
        image_modalities: that the encoder was trained for.
        sentences: whether sentences can be asked.
        cameras: that there are.
        calibrated: what the probabilities of answers were fitted on, "" where they have none.
        calibrated_sentences: whether answers to sentences have them too.
    """

    rows: int
    image_modalities: list[str]
    sentences: bool
    cameras: list[int]
    calibrated: str
    calibrated_sentences: bool


@dataclass(frozen=True)
class Answer:
    """A row of the gallery, as a client sees it; None is not known.

    Attributes:
        id: of the row, without a place of the server.
        similarity: cosine.
        probability: that both show one identity; None where nothing was calibrated.
        modality, camera, time, tracklet, images, name: as in `pipelines.retrieval.search.Hit`.
        thumbnail: the image, small, as a data URI.
    """

    id: str
    similarity: float
    probability: float | None
    modality: str
    camera: int | None
    time: str | None
    tracklet: int | None
    images: int
    name: str | None
    thumbnail: str | None


@dataclass(frozen=True)
class Stored:
    """An image that was added: its id, whether it is new, and rows of the gallery now."""

    id: str
    new: bool
    rows: int


@contextmanager
def _without_places() -> Iterator[None]:
    """What a search refuses, for a client: errors of the database may name places of the server.

    Raises:
        RefusedError: no row is left by a filter.
        UnavailableError: in the place of another `UserError`.
    """
    try:
        yield
    except NoRowsError as error:
        raise RefusedError(str(error)) from error
    except UserError as error:
        log.error("%s", error)
        raise UnavailableError(
            "the gallery cannot be searched now: the log of the service says why"
        ) from error


class Desk:
    """Answers queries of one gallery.

    Args:
        gallery: to ask.
        words: the gallery's table in the joint space, which sentences ask; None where `gallery`
            answers everything.
        calibrated: of its encoder, None where nothing was calibrated.
        modalities: that the encoder embeds.
        size: height and width that images are decoded to.
        uploads: folder for images that are added, None where none are taken.
    """

    def __init__(
        self,
        gallery: Gallery,
        *,
        words: Gallery | None = None,
        calibrated: Calibrated | None,
        modalities: tuple[Modality, ...],
        size: tuple[int, int],
        uploads: Path | None = None,
    ) -> None:
        self._gallery, self._words, self._calibrated = gallery, words, calibrated
        self._modalities, self._size, self._uploads = modalities, size, uploads
        self._hidden: OrderedDict[str, str] = OrderedDict()
        self._lock, self._indexer = Lock(), Indexer()

    @property
    def has_words(self) -> bool:
        """Whether sentences ask a table of their own."""
        return self._words is not None

    def facts(self) -> Facts:
        """What there is."""
        known = self._calibrated
        return Facts(
            rows=len(self._gallery),
            image_modalities=[str(m) for m in self._modalities if m != Modality.TEXT],
            sentences=Modality.TEXT in self._modalities,
            cameras=self._gallery.cameras(),
            calibrated=known.source if known else "",
            calibrated_sentences=bool(known and self._words is None and known.knows(Modality.TEXT)),
        )

    def modality(self, name: str, *, text: bool = False) -> Modality:
        """A modality that the encoder embeds.

        Raises:
            RefusedError: it does not.
        """
        known = [m for m in self._modalities if text or m != Modality.TEXT]
        if not name and len(known) == 1:
            return known[0]
        if name not in known:
            raise RefusedError(
                f"modality {name!r}: this service knows {' and '.join(map(str, known))}"
            )
        return Modality(name)

    def pixels(self, data: bytes) -> np.ndarray:
        """(3, H, W) uint8 of an uploaded image.

        Raises:
            RefusedError: no image, a broken one, or too many pixels.
        """
        height, width = self._size
        try:
            return decode(data, height=height, width=width, max_megapixels=MAX_MEGAPIXELS)
        except ValueError as error:
            raise RefusedError(f"the image cannot be used: {error}") from error

    def known(self, public: str) -> Query:
        """A row of the gallery as a query.

        Raises:
            RefusedError: there is none, or the gallery cannot be read.
        """
        with self._lock:
            name = self._hidden.get(public, public)
        for gallery in (self._gallery, self._words):
            with _without_places():
                query = None if gallery is None else query_by_id(gallery, name)
            if query is not None:
                return query
        raise RefusedError(f"no row is called {public}")

    def search(
        self, query: Query, *, top: int, where: Filter, min_probability: float = 0.0
    ) -> list[Answer]:
        """The best answers.

        Raises:
            RefusedError: no row is left, a number out of range, or a probability that answers to
                such a query do not have.
            UnavailableError: the gallery cannot be read.
        """
        if not 1 <= top <= MAX_TOP:
            raise RefusedError(f"top {top}: between 1 and {MAX_TOP}")
        with _without_places():
            gallery = self._table_of(query)
            known = self._calibrated if gallery is self._gallery else None
            if min_probability and not (known and known.knows(query.modality)):
                raise RefusedError(
                    f"min_probability {min_probability:g}: answers to this "
                    f"{'sentence' if query.modality == Modality.TEXT else 'image'} have no "
                    "probability; send 0, or leave it out"
                )
            hits = search(
                gallery,
                query,
                top=top,
                where=where,
                calibrated=known,
                min_probability=min_probability,
            )
        return [self._shown(hit) for hit in hits]

    def _table_of(self, query: Query) -> Gallery:
        """Sentences ask the table of words, and so do rows that it alone holds."""
        if self._words is None:
            return self._gallery
        alone = query.id and self._gallery.get(query.id) is None
        return self._words if alone or query.modality == Modality.TEXT else self._gallery

    def add(
        self,
        data: bytes,
        vector: np.ndarray,
        modality: Modality,
        *,
        in_words: np.ndarray | None = None,
        camera: int = -1,
        time: datetime | None = None,
    ) -> Stored:
        """Store an image and its vector; `in_words` is that for the table of words.

        A camera and a time that are known already stay where none is given.

        Raises:
            RefusedError: this service takes no images.
            UnavailableError: they cannot be stored; says what was. The log says why.
        """
        if self._uploads is None:
            raise RefusedError("this service takes no images: it was started with --read-only")
        name = content_hash(data)
        root, image = str(self._uploads), f"uploads/{name}"
        try:
            if before := self._gallery.get(image):
                camera = before.camera if camera == -1 else camera
                time = before.time if time is None else time
            sample = Sample(image, modality, camera=camera, time=time)
            rows = rows_of([sample], vector[None], root=root, contents=[name])
            (self._uploads / "uploads").mkdir(parents=True, exist_ok=True)
            replace_file(self._uploads / image, data)
            added = self._gallery.add(rows, more_follow=True)
            self._indexer.ask(self._gallery)
        except (OSError, UserError) as error:
            log.error("an image could not be stored: %s", error)
            raise UnavailableError(
                "the image could not be stored, and no row was changed: the log of the service "
                "says why"
            ) from error
        try:
            if self._words is not None and in_words is not None:
                words = rows_of([sample], in_words[None], root=root, contents=[name])
                self._words.add(words, more_follow=True)
                self._indexer.ask(self._words)
        except UserError as error:
            log.error("an image could not be stored for sentences: %s", error)
            raise UnavailableError(
                "the image was stored, but no sentence finds it as it is now: send it again"
            ) from error
        return Stored(id=sample.image, new=bool(added.new), rows=added.total)

    def _shown(self, hit: Hit) -> Answer:
        probability, image = hit.probability, hit.image
        return Answer(
            id=self._public(hit.id),
            similarity=round(hit.similarity, 4),
            probability=None if probability is None else round(probability, 4),
            modality=hit.modality,
            camera=hit.camera if hit.camera >= 0 else None,
            time=hit.time.isoformat() if hit.time else None,
            tracklet=hit.tracklet if hit.tracklet >= 0 else None,
            images=hit.images,
            name=hit.name or None,
            thumbnail=None if image is None else thumbnail(image.parent, image.name),
        )

    def _public(self, name: str) -> str:
        """An id without a place of the server: absolute ones are named by a hash."""
        if not name.startswith("/") and "://" not in name and ".." not in name:
            return name
        digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        public = f"{digest}/{PurePosixPath(name).name}"
        with self._lock:
            self._hidden[public] = name
            while len(self._hidden) > _REMEMBERED:
                self._hidden.popitem(last=False)
        return public
