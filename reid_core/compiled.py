"""Functions that numba compiles: kept on the disk where that can be, compiled anew where not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])
log = logging.getLogger(__name__)


def compiled(**options: Any) -> Callable[[Function], Function]:
    """`numba.njit` without the interpreter's lock, its result kept for later processes.

    Numba keeps it beside the package, in the home or in NUMBA_CACHE_DIR. A container's user may
    have none of these: then every process compiles for itself, which takes seconds.

    Args:
        options: further ones of `numba.njit`.
    """

    def decorate(function: Function) -> Function:
        try:
            made: Function = numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:  # "cannot cache function: no locator available"
            log.info("%s; NUMBA_CACHE_DIR names a folder that can be written", error)
            made = numba.njit(nogil=True, **options)(function)
        return made

    return decorate
