"""The text files that name identities and images of a split; shared by the loaders of real data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

_ID = re.compile(r"\s*[0-9]{1,18}\s*")


def read_ids(path: Path) -> list[int]:
    """Ids of one comma-separated list, ascending.

    Raises:
        ValueError: the file is missing, empty or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: it names the identities of a split, e.g. 1,2,5")
    fields = _text(path).replace("\n", ",").split(",")
    for field in filter(str.strip, fields):
        if not _ID.fullmatch(field):
            raise ValueError(f"{path} must hold comma-separated ids, e.g. 1,2,5, not {field!r:.40}")
    ids = sorted({int(field) for field in fields if field.strip()})
    if not ids:
        raise ValueError(f"{path} is empty: it should name the identities of a split, e.g. 1,2,5")
    return ids


def read_identities(path: Path, *, example: str) -> list[tuple[str, int]]:
    """Images of one list and whom they show.

    A line is "relative/path label". Labels start again in every list, so an identity's id is the
    number of the folder that the image lies in; the labels must tell the same identities apart.

    Args:
        path: the list.
        example: a line as it should look, for messages.

    Returns:
        (path relative to the root, id) in the order of the list.

    Raises:
        ValueError: the file is missing or empty, a line is not like the example, or labels and
            folders disagree.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: it lists the images of a split, e.g. {example!r}")
    images: list[tuple[str, int]] = []
    label_of: dict[int, str] = {}
    pid_of: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        image, _, label = line.strip().replace("\\", "/").rpartition(" ")
        try:
            pid = int(Path(image).parent.name)
            int(label)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {line!r} is not like {example!r}") from error
        if label_of.setdefault(pid, label) != label or pid_of.setdefault(label, pid) != pid:
            raise ValueError(
                f"{path}, line {number}: label {label} and folder {pid} do not stand for the same "
                "identity as in the lines before: one label belongs to one folder"
            )
        images.append((image, pid))
    if not images:
        raise ValueError(f"{path} is empty: it should list images, e.g. {example!r}")
    return images


def unlisted_identities(
    folders: Collection[str], listed: Collection[str], lists: str
) -> Iterator[str]:
    """A sentence about identities that have folders and stand in no list; none without any.

    Args:
        folders: names of the folders; what is no number is none of an identity.
        listed: names of the folders that are read.
        lists: what lists them.
    """
    left = sorted(name for name in folders if name.isdecimal() and name not in listed)
    if left:
        named = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        yield f"{len(left)} identities stand in no list of {lists} and are not read: {named}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
