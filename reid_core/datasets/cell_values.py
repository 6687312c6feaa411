"""What a cell of a table means, however somebody's program wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_UNKNOWN = frozenset(("", "nan", "nat", "none", "null", "na", "<na>"))
WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
"""A whole number, as text; 7.0 is one."""
_EARLIEST, _LATEST = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (1990, 2100))


def slashed(image: str) -> str:
    """A path as it is spelled everywhere: one slash between names, no "./"; a URI as it is."""
    image = image.replace("\\", "/")
    if "://" in image:
        return image
    names = [name for name in image.split("/") if name not in ("", ".")]
    return "/" * image.startswith("/") + "/".join(names)


def is_name(image: str) -> bool:
    """Whether a file can have this name."""
    try:
        return b"\0" not in image.encode()
    except UnicodeEncodeError:
        return False


def text(cells: Mapping[str, Any], name: str, where: str) -> str:
    """Without spaces around it; "" where there is none.

    Raises:
        ValueError: it is no text and no number; begins with `where`.
    """
    value = cells.get(name)
    if value is None or value != value:  # NaN: empty in a column of floats
        return ""
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    raise ValueError(f"{where}: {name} must be text, not {str(value)[:60]!r}")


def whole_number(value: Any, name: str, where: str, *, bits: int = 64) -> int:
    """A number of so many bits, however a table wrote it (7, "7", 7.0); -1 where there is none.

    Raises:
        ValueError: a fraction, a negative number, or none at all; begins with `where`.
    """
    if value is None or value != value:
        return -1
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    if isinstance(value, str):
        if value.strip().lower() in _UNKNOWN:
            return -1
        if len(value) < 40 and (whole := WHOLE.fullmatch(value.strip())):
            value = int(whole[1])
    if isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 2 ** (bits - 1):
        return value
    raise ValueError(
        f"{where}: {name} must be a whole number of {bits} bits, 0 or more, or empty, not "
        f"{str(value)[:60]!r}"
    )


def track(value: Any, where: str) -> str:
    """Name of a track; whole numbers are written in one way, so that 7.0 and 7 are one track."""
    if isinstance(value, str) and not WHOLE.fullmatch(value.strip()):
        return "" if value.strip().lower() in _UNKNOWN else value.strip()
    number = whole_number(value, "tracklet", where)
    return "" if number == -1 else str(number)


def moment(value: Any, where: str) -> datetime | None:
    """A time with its zone, UTC where none is said; None where there is no time.

    Args:
        value: a datetime; text as 2026-11-27T14:05:30; or a number, also as text, of seconds or
            milliseconds since 1970, between the years 1990 and 2100.
        where: begins the message.

    Raises:
        ValueError: none of these.
    """
    if value is None or value != value or str(value).strip().lower() in _UNKNOWN:
        return None
    try:
        if isinstance(value, datetime):
            known = value
        elif isinstance(value, str):
            known = _written_moment(value.strip())
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            known = _counted_moment(value)
        else:
            raise TypeError
    except (ValueError, TypeError, OverflowError, OSError):
        raise ValueError(
            f"{where}: time must be as 2026-11-27T14:05:30, or seconds or milliseconds since 1970 "
            f"that lie between 1990 and 2100, not {str(value)[:60]!r}"
        ) from None
    return known if known.tzinfo else known.replace(tzinfo=UTC)


def _written_moment(text: str) -> datetime:
    """Digits alone could be a date, a time of day, or seconds: only a dash makes them a date."""
    return datetime.fromisoformat(text) if "-" in text[1:] else _counted_moment(float(text))


def _counted_moment(number: float) -> datetime:
    for seconds in (number, number / 1000):
        if _EARLIEST <= seconds < _LATEST:
            return datetime.fromtimestamp(seconds, UTC)
    raise ValueError
