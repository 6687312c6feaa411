"""The terminal: what commands print, and how."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# A name may hold what moves the cursor, clears the screen or types into some terminals.
_SHOWN = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
_SHOWN |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
_SHOWN |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)  # bytes of a name that is not UTF-8


def printable(text: str) -> str:
    """Text whose control characters, but for lines and tabs, and broken ones show as symbols."""
    return text.translate(_SHOWN)


class _Terminal(Console):
    """A console that writes no control character out of what it is given."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


console = _Terminal(highlight=False, soft_wrap=True, emoji=False)


def say(text: str, *, style: str | None = None) -> None:
    """Print a sentence as it is: brackets in a path are no markup, words in colons no emoji."""
    console.print(text, style=style, markup=False)
