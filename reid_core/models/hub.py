"""Asking a hub for weights: once, and without its lines between ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import logging as lines

T = TypeVar("T")


@contextmanager
def asked() -> Iterator[str]:
    """Within the block the hub's client warns of nothing, and asks no hub that does not answer.

    Its client would ask a dozen times, for almost a minute, and warn of each. What it keeps on the
    disk is read all the same, and a hub that answers is asked as ever.

    Yields:
        Why the hub cannot be asked, "" where it can.
    """
    verbosity, offline = lines.get_verbosity(), constants.HF_HUB_OFFLINE
    lines.set_verbosity(logging.ERROR)
    try:
        why = _unreachable()
        constants.HF_HUB_OFFLINE = offline or bool(why)
        yield why
    finally:
        constants.HF_HUB_OFFLINE = offline
        lines.set_verbosity(verbosity)


def needed(error: BaseException | None) -> bool:
    """Whether something failed for want of a hub that could be asked."""
    while error is not None and not isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error.__context__
    return error is not None


def downloaded(name: str, tag: str, download: Callable[[], T]) -> T:
    """What a client of a hub gives back.

    Args:
        name: of the model, for messages.
        tag: of its weights.
        download: asks the client.

    Raises:
        ValueError: it could not be had; says why, and what to do.
    """
    with asked() as unreachable:
        try:
            return download()
        except Exception as error:  # each client raises its own kinds
            said = unreachable if needed(error) else ""
            raise ValueError(
                f"could not download the weights {tag!r} of {name!r}: "
                f"{said or str(error).rstrip('.')}. "
                "Download them elsewhere and give the path of the file as model.pretrained"
            ) from error


def _unreachable() -> str:
    try:
        huggingface_hub.get_session().head(
            constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except Exception as error:  # each version has an HTTP client of its own
        return f"{constants.ENDPOINT} does not answer ({error})"
    return ""
