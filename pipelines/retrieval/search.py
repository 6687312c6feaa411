"""One query against a gallery: by an image, by a sentence, or by a row of the gallery itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from pipelines.errors import UserError
from pipelines.evaluation.calibrated import Calibrated, pair_of
from pipelines.evaluation.calibrated import load as load_calibration
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter, Match
from reid_core.datasets.files import require_utf8
from reid_core.models import backbones
from reid_core.reranking import rerank
from reid_core.types import Modality

log = logging.getLogger(__name__)
_RERANKED = 200  # candidates whose order re-ranking may change
MAX_TOP = 10_000


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        vector: (D,) unit row.
        name: file, sentence or id.
        modality: of the query.
        image: image file, None for a sentence.
        pid: identity, -1 where unknown.
        id: of its row in the gallery, "" where it has none.
    """

    vector: np.ndarray
    name: str
    modality: Modality
    image: Path | None = None
    pid: int = -1
    id: str = ""


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        id: as embedded: the image below the root, of a sentence with its hash.
        image: image file.
        similarity: cosine.
        probability: that both are of one identity, None where nothing was calibrated.
        modality, camera, pid, tracklet: -1 where unknown.
        images: that the vector is the mean of.
        time: when it was seen, None where unknown.
        name: of an identity on the watch list, else "".
        right: whether it shows the query's identity, None where either is unknown.
    """

    id: str
    image: Path | None
    similarity: float
    probability: float | None
    modality: str
    camera: int
    pid: int
    tracklet: int
    images: int
    time: datetime | None
    name: str
    right: bool | None


def ask(
    gallery: Gallery,
    *,
    image: str | None,
    text: str | None,
    seen_as: Modality | None,
    pid: int = -1,
    checkpoint: Path | None = None,
) -> Query:
    """The query that a command line means: a sentence, an image file, or an id of the gallery.

    Raises:
        UserError: not exactly one of image and text, no such file or id, a name that no table can
            hold, or an image of unknown modality.
    """
    if (image is None) == (text is None):
        raise UserError("give an image file or an id of the gallery, or --text, and not both")
    if text is not None:
        return query_by_text(encoder_of(gallery, checkpoint), text)
    assert image is not None
    try:
        require_utf8(image)
    except ValueError as error:
        raise UserError(str(error)) from error
    if (known := query_by_id(gallery, image)) is not None:
        return known
    if not Path(image).is_file():
        raise UserError(
            f"{image} is neither a file nor an id of this gallery; `crossreid gallery info` shows "
            "some ids"
        )
    loaded = encoder_of(gallery, checkpoint)
    return query_by_image(loaded, Path(image), modality=image_modality(loaded, seen_as), pid=pid)


def image_modality(loaded: LoadedEncoder, seen_as: Modality | None) -> Modality:
    """The kind of camera that a query's image was seen by.

    Raises:
        UserError: the encoder knows more than one and none was named, or never saw the one named.
    """
    known = [m for m in loaded.modalities if m != Modality.TEXT]
    if seen_as is None and len(known) == 1:
        return known[0]
    if seen_as is None:
        raise UserError(f"which camera saw the image? Say --as {' or --as '.join(known)}")
    if seen_as not in known:
        raise UserError(f"--as {seen_as}: this encoder embeds images as {' or '.join(known)}")
    return seen_as


def query_by_id(gallery: Gallery, name: str) -> Query | None:
    """The row of the gallery that is called so, None where there is none."""
    row = gallery.get(name)
    if row is None:
        return None
    assert row.vector is not None
    return Query(
        vector=row.vector,
        name=name,
        modality=Modality(row.modality),
        image=row.file,
        pid=row.pid,
        id=name,
    )


def query_by_image(
    loaded: LoadedEncoder, image: Path, *, modality: Modality, pid: int = -1
) -> Query:
    """An image file, embedded by `encoder_of` the gallery.

    Raises:
        UserError: it cannot be read, or the encoder embeds no such images.
    """
    try:
        (vector,) = loaded.embed_images([image], str(image_modality(loaded, modality)))
    except ValueError as error:
        raise UserError(str(error)) from error
    return Query(vector, str(image), modality, image, pid)


def query_by_text(loaded: LoadedEncoder, sentence: str) -> Query:
    """A sentence, embedded by the text tower of `encoder_of` the gallery.

    Raises:
        UserError: it is empty, or the gallery is in a space without sentences.
    """
    name = loaded.config.model.name
    if loaded.tokenize is None and not backbones.has_text(name):
        raise UserError(f"nothing can be asked in words: {backbones.without_text(name)}")
    if loaded.tokenize is None:
        raise UserError(
            "the vectors of this gallery cannot be compared with sentences: add the images again "
            "with --space joint"
        )
    if not sentence.strip():
        raise UserError("--text is empty: describe who is searched for")
    (vector,) = loaded.vectors(loaded.tokenize([sentence]), Modality.TEXT)
    return Query(vector, sentence, Modality.TEXT)


def encoder_of(
    gallery: Gallery, checkpoint: Path | None = None, *, device: torch.device | None = None
) -> LoadedEncoder:
    """The encoder that made a gallery.

    Args:
        gallery: an opened gallery.
        checkpoint: where it lies now, None for where it lay when the gallery was made.
        device: to lie on, None for a GPU if there is one.

    Raises:
        UserError: there is no checkpoint, or one of other weights.
    """
    path = checkpoint or Path(gallery.facts.checkpoint)
    loaded = open_encoder(path, space=space_of(gallery), device=device)
    require_made_by(gallery, path, loaded.fingerprint)
    return loaded


def space_of(gallery: Gallery) -> Space:
    """That its vectors lie in."""
    return "joint" if gallery.facts.space == "joint" else "descriptor"


def require_made_by(gallery: Gallery, checkpoint: Path, fingerprint: str) -> None:
    """Refuse to compare vectors of different weights.

    Args:
        gallery: an opened gallery.
        checkpoint: where an encoder lies.
        fingerprint: of that encoder, in the gallery's space.

    Raises:
        UserError: another encoder made the gallery.
    """
    if fingerprint != gallery.facts.fingerprint:
        raise UserError(
            f"{checkpoint} holds other weights than those that made this gallery: add the images "
            "again, or give the old checkpoint with --checkpoint"
        )


def probabilities_of(
    gallery: Gallery, checkpoint: Path | None, prior: float | None
) -> Calibrated | None:
    """How likely an answer of a gallery is right; None where its encoder is not calibrated.

    Args:
        gallery, checkpoint: as in `encoder_of`.
        prior: share of rows that show the queried identity; None for that of the fit.

    Raises:
        UserError: a prior that is no share, or without a calibration that it could move.
    """
    facts = gallery.facts
    place = checkpoint or Path(facts.checkpoint)
    fitted = load_calibration(place, fingerprint=facts.fingerprint)
    if fitted is not None:
        if prior is None and not fitted.of_all:
            log.warning(
                "the calibration at %s is of an older version: where it was fitted on more than "
                "3,000 images, probabilities are too high; run `crossreid calibrate` again",
                place,
            )
        return fitted.at_prior(prior)
    if prior is not None:
        raise UserError(
            f"--prior {prior:g} needs a calibration, and {place} has none of this gallery's "
            "vectors: run `crossreid calibrate` on the run first; the joint space has none"
        )
    if space_of(gallery) == "descriptor":
        log.warning(
            "no calibration of this gallery's encoder at %s: answers are ordered by cosine and "
            "have no probability; `crossreid calibrate` fits one, --checkpoint says where it lies",
            place,
        )
    return None


def search(
    gallery: Gallery,
    query: Query,
    *,
    top: int = 10,
    where: Filter | None = None,
    reranked: bool = False,
    calibrated: Calibrated | None = None,
    min_probability: float = 0.0,
) -> list[Hit]:
    """The best answers, the query itself left out.

    A cosine means less between modalities than within one: where each of them has a probability,
    that orders the answers, among the nearest of each modality.

    Args:
        gallery: an opened gallery.
        query: what is searched for.
        top: answers, 1 to `MAX_TOP`; fewer where the gallery holds fewer.
        where: what answers may be.
        reranked: order the nearest rows by k-reciprocal re-ranking.
        calibrated: gives answers their probability.
        min_probability: answers below are left out; needs `calibrated` for the query's modality.

    Raises:
        UserError: no row is left by the filter, a number out of range, or a least probability
            where none is known.
    """
    if not 1 <= top <= MAX_TOP:
        raise UserError(f"--top {top}: between 1 and {MAX_TOP:,} answers")
    if min_probability and calibrated is None:
        raise UserError(
            "--min-probability needs a calibration: run `crossreid calibrate` on the run first"
        )
    if min_probability and calibrated is not None and not calibrated.knows(query.modality):
        raise UserError(
            f"--min-probability: the calibration, fitted on {calibrated.source}, says nothing of "
            f"{query.modality} queries; leave it out"
        )
    count = max(top, _RERANKED) if reranked else top
    parts: dict[Filter, int | None] = {where or Filter(): None}
    by_probability = False
    if calibrated is not None and not reranked:
        parts, by_probability = _parts(
            gallery, query, where or Filter(), calibrated, unknown=not min_probability
        )
    rows: list[Match] = []
    for one, allowed in parts.items():
        nearest = gallery.search(
            query.vector, count + 1, where=one, vectors=reranked, allowed=allowed
        )
        rows += [row for row in nearest if row.id != query.id][:count]
    if reranked and rows:
        rows = [rows[i] for i in _reranked(query, rows)]
    hits = [_hit(query, row, calibrated) for row in rows]
    if by_probability:
        hits.sort(key=lambda hit: (-(hit.probability or 0.0), -hit.similarity))
    return [hit for hit in hits if (hit.probability or 0.0) >= min_probability][:top]


def _parts(
    gallery: Gallery, query: Query, where: Filter, calibrated: Calibrated, *, unknown: bool
) -> tuple[dict[Filter, int | None], bool]:
    """What is searched, with its number of rows, and whether probabilities can order the answers.

    They can where every modality that a filter leaves rows of has a map to the query's; without
    `unknown`, modalities that have none are left out.
    """
    modalities = tuple(Modality) if where.modality is None else (where.modality,)
    counts = {one: gallery.count(replace(where, modality=one)) for one in modalities}
    known: dict[Filter, int | None] = {
        replace(where, modality=one): count
        for one, count in counts.items()
        if count and pair_of(query.modality, one) in calibrated.maps
    }
    if known and (not unknown or len(known) == sum(map(bool, counts.values()))):
        return known, True
    return {where: sum(counts.values())}, False


def _reranked(query: Query, rows: Sequence[Match]) -> np.ndarray:
    vectors = np.stack([row.vector for row in rows if row.vector is not None])
    distance = rerank(_unit(query.vector[None]), _unit(vectors))
    return np.argsort(distance[0], kind="stable")


def _unit(rows: np.ndarray) -> np.ndarray:
    """Exactly unit again: half precision rounds lengths."""
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _hit(query: Query, row: Match, calibrated: Calibrated | None) -> Hit:
    probability = None
    if calibrated is not None:
        probability = calibrated.probability(row.similarity, query.modality, row.modality)
    return Hit(
        id=row.id,
        image=row.file,
        similarity=row.similarity,
        probability=probability,
        modality=row.modality,
        camera=row.camera,
        pid=row.pid,
        tracklet=row.tracklet,
        images=row.images,
        time=row.time,
        name=row.name,
        right=None if row.pid < 0 or query.pid < 0 else row.pid == query.pid,
    )
