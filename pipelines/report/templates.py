"""The one environment in which every page is made: escaped, strict, one file without links."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """A page as HTML.

    Args:
        template: file name in the folder `templates`.
        values: what it shows; a name that it uses and that is missing is an error.
    """
    return _environment().get_template(template).render(**values)


def duration(seconds: float) -> str:
    """ "8.2 s", "4 min 05 s" or "2 h 07 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def unbroken(text: str) -> str:
    """With every percent sign kept on the line of its number."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["unbroken"] = unbroken
    return environment
