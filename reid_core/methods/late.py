"""Functions that are imported when they are first called.

A method's settings are asked where torch is not wanted: by `--help`, by a gate before any work.
What needs torch stands in modules of its own, and the `Method` holds a `Late` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Late:
    """A function by where it stands. Calls are passed on; copies to other processes are equal.

    For type checkers the function itself is imported in its place, so that its signature counts.

    Attributes:
        module: dotted name.
        name: of the function in it.
    """

    module: str
    name: str

    @property
    def function(self) -> Callable[..., Any]:
        """The function; imports its module."""
        function: Callable[..., Any] = getattr(import_module(self.module), self.name)
        return function

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        return self.function(*arguments)
