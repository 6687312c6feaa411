"""What a run warned of, as its page shows it: each warning once, with how often and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.report import words
from pipelines.runs import warned
from pipelines.runs.records import EpochLine

SHOWN = 12


@dataclass(frozen=True)
class Warned:
    """One warning of a run.

    Attributes:
        text: of it.
        when: last, and how often.
    """

    text: str
    when: str


def of_run(epochs: Sequence[EpochLine], log: Sequence[str]) -> list[Warned]:
    """All warnings of a run, those of its epochs first.

    Args:
        epochs: in the order of training.
        log: lines of warnings.log; one that has no time continues the one before.
    """
    return [*_once(_of_epochs(epochs)), *_once((text, when) for when, text in warned.messages(log))]


def _once(warnings: Iterable[tuple[str, str]]) -> list[Warned]:
    """Each text once, where it came first."""
    every: dict[str, list[str]] = {}
    for text, when in warnings:
        every.setdefault(text, []).append(when)
    return [
        Warned(text, times[-1] if len(times) == 1 else f"{len(times)} times, last {times[-1]}")
        for text, times in every.items()
    ]


def _of_epochs(epochs: Sequence[EpochLine]) -> Iterable[tuple[str, str]]:
    for epoch in epochs:
        warnings = epoch.get("warnings")
        for text in warnings if isinstance(warnings, list) else []:
            yield str(text), f"{words.stage(epoch['stage']).name} epoch {epoch['epoch'] + 1}"
