"""Where the images of a data set may lie: below its root, and where the user says besides.

A manifest is data: whoever wrote it must not decide which files of this machine are read, or which
servers every node of a cluster asks.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pipelines.errors import UserError
from pipelines.storage.http import is_http
from pipelines.storage.shards import location

_EXTRA = "list their folder or bucket in data.extra_roots (--extra-root) if you trust it"


@dataclass(frozen=True)
class Trusted:
    """What rows may name beside images below the root.

    Attributes:
        extra_roots: folders, or URIs as s3://bucket.
        allow_http: whether images may come by http(s).
    """

    extra_roots: tuple[Path, ...] = field(default=())
    allow_http: bool = False

    def require(self, root: Path, images: Iterable[str], *, follow_links: bool) -> None:
        """Refuse images that lie elsewhere.

        Args:
            root: folder or URI of the data set.
            images: as samples name them.
            follow_links: whether folders below the root may be links to elsewhere: those of a tree
                that was listed may, those that rows name may not.

        Raises:
            UserError: names the first such image.
        """
        allowed = [location(place).rstrip("/") for place in (root, *self.extra_roots)]
        local = [os.path.realpath(place) for place in allowed if "://" not in place]
        for image in images:
            reason = self._refusal(root, image, allowed, local, follow_links)
            if reason:
                raise UserError(f"{location(root)}: {image} {reason}")

    def _refusal(
        self, root: Path, image: str, allowed: list[str], local: list[str], follow_links: bool
    ) -> str:
        """Why an image is refused, "" where it is not."""
        name = location(image) if ":/" in image else image
        if is_http(name):
            return "" if self.allow_http else "comes by http: set data.allow_http=true to fetch it"
        if name.startswith("file:///"):
            name = name.removeprefix("file://")
        inside = posixpath.normpath(name)
        if "://" in name:
            scheme, _, path = name.partition("://")
            name = f"{scheme}://{posixpath.normpath(path)}"
            within = any(name.startswith(f"{place}/") for place in allowed)
            return "" if within else f"lies outside the data set: {_EXTRA}"
        if not posixpath.isabs(inside) and inside.split("/")[0] != "..":
            if follow_links or "://" in location(root):
                return ""
            inside = f"{root}/{inside}"
        elif "://" in location(root):
            return f"lies outside the data set: {_EXTRA}"
        folder, _, file = posixpath.join(str(root), inside).rpartition("/")
        real = f"{_real(folder)}/{file}"
        if os.path.islink(real):
            real = os.path.realpath(real)
        if any(real.startswith(f"{place}/".replace("//", "/")) for place in local):
            return ""
        return f"lies outside the data set: {_EXTRA}"


def without_detours(root: Path, image: str) -> str:
    """The name of an image that `Trusted.require` took, with no ".." in it.

    It means the file that was checked: below the root where it can be, else an absolute one.

    Args:
        root: a folder.
        image: as a row names it.
    """
    if ".." not in image.split("/"):
        return image
    name = location(image) if ":/" in image else image
    if "://" in name:
        scheme, _, path = name.partition("://")
        return f"{scheme}://{posixpath.normpath(path)}"
    inside = posixpath.normpath(name)
    leads_out = inside.split("/")[0] == ".."
    return posixpath.normpath(posixpath.join(str(root), inside)) if leads_out else inside


@lru_cache(maxsize=65536)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


ROOT_ALONE = Trusted()
