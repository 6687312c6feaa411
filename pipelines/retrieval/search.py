"""One query against an index: by an image, by a sentence, or by a row of the index itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from pipelines.data.decode import read_image
from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.retrieval.index import Index
from reid_core.reranking import rerank
from reid_core.types import Modality

_RERANKED = 200  # candidates whose order re-ranking may change


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        vector: (D,) unit row.
        name: file, sentence or id.
        picture: image file, None for a sentence.
        pid: person, -1 where unknown.
        row: its row in the index, -1 where it has none.
    """

    vector: np.ndarray
    name: str
    picture: Path | None = None
    pid: int = -1
    row: int = -1


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        id: as embedded: the image below the root, of a sentence with its hash.
        picture: image file.
        similarity: cosine.
        modality, camera, pid: -1 where unknown.
        right: whether it shows the query's person, None where either person is unknown.
    """

    id: str
    picture: Path
    similarity: float
    modality: str
    camera: int
    pid: int
    right: bool | None


def ask(
    index: Index,
    *,
    image: str | None,
    text: str | None,
    seen_as: Modality | None,
    pid: int = -1,
    checkpoint: Path | None = None,
) -> Query:
    """The query that a command line means: a sentence, an image file, or an id of the index.

    Raises:
        UserError: not exactly one of image and text, no such file or id, or an image of unknown
            modality.
    """
    if (image is None) == (text is None):
        raise UserError("give an image file or an id of the index, or --text, and not both")
    if text is not None:
        return query_by_text(encoder_of(index, checkpoint), text)
    assert image is not None
    if (known := query_by_id(index, image)) is not None:
        return known
    if not Path(image).is_file():
        raise UserError(
            f"{image} is neither a file nor an id of this index; ids look like {index.ids[0]}"
        )
    loaded = encoder_of(index, checkpoint)
    images = [m for m in loaded.modalities if m != Modality.TEXT]
    if seen_as is None and len(images) > 1:
        raise UserError(f"which camera saw {image}? Say --as {' or --as '.join(images)}")
    return query_by_image(loaded, Path(image), modality=seen_as or images[0], pid=pid)


def query_by_id(index: Index, name: str) -> Query | None:
    """The row of the index that is called so, None where there is none."""
    row = index.find(name)
    if row < 0:
        return None
    return Query(
        vector=index.vectors(np.array([row]))[0],
        name=name,
        picture=picture_of(index, name),
        pid=int(index.pids[row]),
        row=row,
    )


def query_by_image(
    loaded: LoadedEncoder, image: Path, *, modality: Modality, pid: int = -1
) -> Query:
    """An image file, embedded by `encoder_of` the index.

    Raises:
        UserError: it cannot be read, or the encoder embeds no such images.
    """
    if modality not in loaded.modalities or modality == Modality.TEXT:
        known = [str(m) for m in loaded.modalities if m != Modality.TEXT]
        raise UserError(f"--as {modality}: this encoder embeds images as {' or '.join(known)}")
    size = loaded.config.model
    try:
        pixels = read_image(image, height=size.height, width=size.width)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Query(_embed(loaded, torch.from_numpy(pixels[None]), modality), str(image), image, pid)


def query_by_text(loaded: LoadedEncoder, sentence: str) -> Query:
    """A sentence, embedded by the text tower of `encoder_of` the index.

    Raises:
        UserError: it is empty, or the index is in a space without sentences.
    """
    if loaded.tokenize is None:
        raise UserError(
            "the vectors of this index cannot be compared with sentences: embed the images again "
            "with --space joint, and index that"
        )
    if not sentence.strip():
        raise UserError("--text is empty: describe the person")
    return Query(_embed(loaded, loaded.tokenize([sentence]), Modality.TEXT), sentence)


def encoder_of(index: Index, checkpoint: Path | None = None) -> LoadedEncoder:
    """The encoder that made an index.

    Args:
        index: an opened index.
        checkpoint: where it lies now, None for where it lay when the vectors were made.

    Raises:
        UserError: there is no checkpoint, or one of other weights.
    """
    info = index.info
    path = checkpoint or Path(info["checkpoint"])
    loaded = open_encoder(path, space=info["space"])
    if loaded.fingerprint != info["fingerprint"]:
        raise UserError(
            f"{path} holds other weights than those that made this index: embed and index again, "
            "or give the old checkpoint with --checkpoint"
        )
    return loaded


def search(
    index: Index,
    query: Query,
    *,
    top: int = 10,
    modality: Modality | None = None,
    cameras: Sequence[int] = (),
    reranked: bool = False,
) -> list[Hit]:
    """The best answers, the query itself left out.

    Args:
        index: an opened index.
        query: what is searched for.
        top: answers, 1 or more.
        modality: of the answers, None for any.
        cameras: of the answers, none for any.
        reranked: order the nearest rows by k-reciprocal re-ranking.

    Raises:
        UserError: no row has this modality and these cameras.
    """
    if top < 1:
        raise UserError(f"--top {top}: at least one answer")
    mask = index.mask(modality=modality, cameras=cameras)
    count = max(top, _RERANKED) if reranked else top
    found = index.search(query.vector[None], count + 1, mask=mask)
    kept = (found.rows[0] >= 0) & (found.rows[0] != query.row)
    rows, similarity = found.rows[0][kept][:count], found.similarity[0][kept][:count]
    if reranked and len(rows):
        order = _reranked(index, query, rows)
        rows, similarity = rows[order], similarity[order]
    return [
        _hit(index, query, int(row), float(value))
        for row, value in zip(rows[:top], similarity[:top], strict=True)
    ]


def table(query: Query, hits: Sequence[Hit]) -> Table:
    """The answers for a terminal."""
    shown = Table(title=f"nearest to {escape(query.name)}", title_justify="left")
    columns = ("", "similarity", "modality", "camera", "person", "id")
    for name, side in zip(
        columns, ("right", "right", "left", "right", "right", "left"), strict=True
    ):
        shown.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    for rank, hit in enumerate(hits, start=1):
        mark = {True: " \N{CHECK MARK}", False: " \N{BALLOT X}", None: ""}[hit.right]
        shown.add_row(
            str(rank),
            f"{hit.similarity:.3f}",
            hit.modality,
            str(hit.camera) if hit.camera >= 0 else "",
            (str(hit.pid) if hit.pid >= 0 else "") + mark,
            escape(hit.id),
        )
    return shown


def described(index: Index, *, modality: str | None, cameras: Sequence[int], reranked: bool) -> str:
    """What was searched, in words."""
    where = f"{len(index):,} vectors"
    if modality is not None:
        where += f", {modality} only"
    if cameras:
        where += f", camera {', '.join(map(str, cameras))} only"
    return where + (", re-ranked by shared neighbours" if reranked else "")


def picture_of(index: Index, name: str) -> Path:
    """The image file of a row, by its id."""
    return Path(index.info["root"]) / PurePosixPath(name.partition("#")[0])


def _reranked(index: Index, query: Query, rows: np.ndarray) -> np.ndarray:
    distance = rerank(_unit(query.vector[None]), _unit(index.vectors(rows)))
    return np.argsort(distance[0], kind="stable")


def _unit(rows: np.ndarray) -> np.ndarray:
    """Exactly unit again: half precision rounds lengths."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _hit(index: Index, query: Query, row: int, similarity: float) -> Hit:
    name, pid = index.ids[row].as_py(), int(index.pids[row])
    return Hit(
        id=name,
        picture=picture_of(index, name),
        similarity=similarity,
        modality=index.modalities[row].as_py(),
        camera=int(index.cameras[row]),
        pid=pid,
        right=None if pid < 0 or query.pid < 0 else pid == query.pid,
    )


@torch.inference_mode()
def _embed(loaded: LoadedEncoder, inputs: torch.Tensor, modality: Modality) -> np.ndarray:
    return loaded.encoder.embed(inputs.to(loaded.device), modality)[0].float().cpu().numpy()
