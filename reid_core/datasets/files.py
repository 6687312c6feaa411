"""Which files of a tree are images: the one answer for readers, embedding, conversion and check.

Suffixes count without case. Hidden files and the folders that tools leave behind are passed over
and counted. A linked folder is walked like any other, once. Names that are not UTF-8 and anything
that is no regular file (a pipe, a device) are refused by name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_OF_TOOLS = frozenset(
    ("@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "lost+found")
)
_SHOWN = 5


class _Folder(NamedTuple):
    """A folder that is being walked."""

    below: str  # path from the root, "" for the root itself
    real: str  # without links


class ImageFiles:
    """Images below a root, and what was passed over while they were listed.

    Args:
        root: folder of the data set.
        refused: is given what cannot be listed or is no image's name, which is passed over then;
            None raises it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        refused: Callable[[ValueError], None] | None = None,
    ) -> None:
        self._root, self._refused = Path(root), refused
        self._hidden: Counter[str] = Counter()
        self._links: list[str] = []
        self._deeper: list[str] = []

    def below(self, top: str = "") -> Iterator[str]:
        """Images of a folder and of all folders in it, folder by folder in the order of names.

        Args:
            top: folder below the root, with forward slashes; "" is the root.

        Yields:
            Paths relative to the root, with forward slashes; none where there is no such folder.

        Raises:
            ValueError: names a file that is none, a name that is not UTF-8, or a folder that cannot
                be listed.
        """
        if not (self._root / top).is_dir():
            return
        real_top = os.path.realpath(self._root / top)
        followed = {real_top}
        stack = [iter(self._entries(_Folder(top, real_top), followed))]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif isinstance(entry, str):
                yield entry
            else:
                stack.append(iter(self._entries(entry, followed)))

    def further_cameras(self, folder: str, known: Collection[int]) -> Iterator[str]:
        """A sentence about folders `cam<n>` that hold something and are none of the data set's.

        Args:
            folder: below the root, that holds them; "" is the root.
            known: numbers of the data set's cameras.
        """
        names = {f"cam{number}" for number in known}
        folders = (self._root / folder).glob("cam*")
        further = sorted(p.name for p in folders if p.name not in names and _holds_something(p))
        if further:
            yield (
                f"{', '.join(str(Path(folder, name)) for name in further)}: not read, since the "
                f"data set has {', '.join(sorted(names, key=lambda x: (len(x), x)))} alone; list "
                "more cameras in a manifest (data.kind=manifest)"
            )

    def besides(self, folder: str, read: Collection[str]) -> tuple[list[str], int]:
        """What of a folder holds images and is not read.

        Args:
            folder: below the root; "" is the root.
            read: names of the folders in it that are read.

        Returns:
            Paths of other folders that hold images somewhere, and the number of images right in it.
        """
        listing = ImageFiles(self._root, refused=lambda _: None)  # whose notes nobody asks for
        place = _Folder(folder, os.path.realpath(self._root / folder))
        entries = list(listing._entries(place, set()))
        others = [
            entry.below
            for entry in entries
            if isinstance(entry, _Folder)
            and Path(entry.below).name not in read
            and listing._has_images(entry.below)
        ]
        return others, sum(isinstance(entry, str) for entry in entries)

    def directly_in(self, folder: str) -> list[str]:
        """Images of one folder alone, sorted; none where there is no such folder. See `below`."""
        if not (self._root / folder).is_dir():
            return []
        entries = self._entries(_Folder(folder, ""), None)
        return [entry for entry in entries if isinstance(entry, str)]

    def notes(self) -> tuple[str, ...]:
        """Sentences about what was passed over so far."""
        notes = []
        if self._hidden:
            names = ", ".join(name for name, _ in self._hidden.most_common(_SHOWN))
            notes.append(
                f"passed over: {self._hidden.total():,} hidden files and folders of tools ({names})"
            )
        if self._links:
            more = f" and {len(self._links) - _SHOWN} more" if len(self._links) > _SHOWN else ""
            notes.append(
                f"passed over: {len(self._links):,} linked folders whose images are listed by "
                f"another path ({', '.join(self._links[:_SHOWN])}{more})"
            )
        listing = ImageFiles(self._root, refused=lambda _: None)
        if deeper := [folder for folder in self._deeper if listing._has_images(folder)]:
            more = f" and {len(deeper) - _SHOWN} more" if len(deeper) > _SHOWN else ""
            notes.append(
                f"not read: {len(deeper):,} folders within those of identities that hold images "
                f"({', '.join(deeper[:_SHOWN])}{more})"
            )
        return tuple(notes)

    def _has_images(self, folder: str) -> bool:
        return next(self.below(folder), None) is not None

    def _entries(self, folder: _Folder, followed: set[str] | None) -> Iterator[str | _Folder]:
        """Images and folders of a folder, by name; `followed` is None where only images count."""
        try:
            with os.scandir(self._root / folder.below) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            place = self._root / folder.below
            self._refuse(ValueError(f"{place} cannot be listed: {error.strerror}"))
            return
        prefix = f"{folder.below}/" if folder.below else ""
        for entry in ordered:
            is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
            is_folder = entry.is_dir()
            if not is_image and not is_folder:
                continue
            if entry.name.startswith(".") or entry.name.lower() in _OF_TOOLS:
                # of a resource fork the kind is shown, not one name per image
                self._hidden["._*" if entry.name.startswith("._") else entry.name] += 1
                continue
            path = prefix + entry.name
            try:
                require_utf8(entry.name, folder.below)
                if not is_folder:
                    _check_regular(entry, self._root / path)
            except ValueError as error:
                self._refuse(error)
                continue
            if not is_folder:
                yield path
            elif followed is None:
                self._deeper.append(path)
            else:
                is_link = entry.is_symlink()
                real = (
                    os.path.realpath(self._root / path)
                    if is_link
                    else f"{folder.real}/{entry.name}"
                )
                if real in followed or (is_link and self._leads_back(real, followed)):
                    self._links.append(path)
                    continue
                if is_link:
                    followed.add(real)
                yield _Folder(path, real)

    def _refuse(self, error: ValueError) -> None:
        if self._refused is None:
            raise error
        self._refused(error)

    def _leads_back(self, real: str, followed: set[str]) -> bool:
        """Whether a link leads into what is walked anyway, or to a folder that the root is in."""
        inside = any(parent in followed for parent in map(str, Path(real).parents))
        return inside or _within(os.path.realpath(self._root), real)


def _holds_something(path: Path) -> bool:
    try:
        return path.is_dir() and any(path.iterdir())
    except OSError:  # what cannot be listed may
        return True


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def require_utf8(name: str, folder: str = "") -> None:
    """Refuse a name that no table can hold.

    Args:
        name: of a file or folder, or a path.
        folder: that it lies in, "" for the root.

    Raises:
        ValueError: it is not UTF-8; says what to do.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        where = f" in {folder}" if folder else ""
        raise ValueError(
            f"the name {shown}{where} is not UTF-8, which tables and reports need: rename "
            "it (convmv -f latin1 -t utf8 does so for a whole tree)"
        ) from None


def _check_regular(entry: os.DirEntry[str], path: Path) -> None:
    """A link to nowhere passes: whoever reads the image names it."""
    if entry.is_file() or not os.path.exists(path):
        return
    raise ValueError(f"{path} is no regular file (a pipe, socket or device): remove it")
