"""Images that were sent to a service: they lie beside their gallery, and go when no row is left."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.retrieval.gallery import Facts, Gallery, tables
from pipelines.storage.files import reason

_FOLDER = "uploads"
_UPLOADED = re.compile(r"[0-9a-f]{24}|\.[0-9a-f]{24}\..+\.partial")  # named by `content_hash`
_ARRIVING_S = 600.0  # so long the row of an image may still be on its way


def remove_forgotten(uri: str | Path) -> int:
    """Delete the uploaded images that no row of any version names; returns how many.

    An image is written before its row. So the oldest version names each that was there before it
    and has a row since; those that came later stay as long as that version does.

    Args:
        uri: of the gallery; only those that are folders have uploads.

    Raises:
        UserError: the gallery cannot be read, or an image not deleted.
    """
    folder, removed = Path(uri) / _FOLDER, 0
    if "://" in str(uri) or not folder.is_dir():
        return 0
    named, before = set[str](), time.time() - _ARRIVING_S
    for facts in tables(uri):
        versions = _open(uri, facts).versions()
        if len(versions) > 1:
            before = min(before, versions[0][1].timestamp())
        for number in {versions[0][0], versions[-1][0]}:
            named |= _named(_open(uri, facts, number))
    for path in folder.iterdir():
        if path.name in named or not _UPLOADED.fullmatch(path.name):
            continue
        try:
            if path.lstat().st_mtime < before:
                path.unlink()
                removed += 1
        except OSError as error:
            raise UserError(f"{path} cannot be deleted: {reason(error)}") from error
    return removed


def _open(uri: str | Path, facts: Facts, version: int | None = None) -> Gallery:
    return Gallery.open(uri, space=facts.space, fingerprint=facts.fingerprint, version=version)


def _named(gallery: Gallery) -> set[str]:
    """Names of the uploaded images that have a row."""
    names: set[str] = set()
    for batch in gallery.scan(["image"]):
        images = batch["image"].filter(pc.starts_with(batch["image"], f"{_FOLDER}/"))
        names.update(image.removeprefix(f"{_FOLDER}/") for image in images.to_pylist())
    return names
