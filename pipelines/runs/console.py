"""The terminal: what commands print, and how."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a sentence as it is: brackets in a path are no markup."""
    console.print(text, markup=False)
