"""Names and sentences by key; methods bring their own, see `reid_core.method.Words`."""

from __future__ import annotations

from dataclasses import dataclass

from reid_core.method import StageWords
from reid_core.methods import METHODS


@dataclass(frozen=True)
class Stage:
    """How a training stage is shown.

    Attributes:
        label: short name, as the paper counts.
        name: its name in configurations.
        description: what happens in it, in plain words.
        coupled: what was done with pairs of groups, in a number of epochs; "" where none is formed.
    """

    label: str
    name: str
    description: str
    coupled: str = ""


@dataclass(frozen=True)
class Method:
    """How a method is introduced.

    Attributes:
        name: as its paper writes it.
        title: headline of the page.
        lead: what was asked and what the program was told, in plain words.
        is_told_who: whether it is given the people, and forms no groups.
    """

    name: str
    title: str
    lead: str
    is_told_who: bool = False


ROWS = {
    "start": ("Start", "before training"),
    "final": ("Full method", "after the last epoch"),
    "selected": ("Epoch best on validation identities", "not the last epoch"),
}

SCORES = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mAP": "mAP",
    "mINP": "mINP",
}
SCORES_IN_WORDS = (
    "All numbers are percentages. Rank-k: share of the queries with a right answer among the "
    "first k. mAP: how early all right answers come, on average. mINP: how early the hardest right "
    "answer comes. The small number below is the difference to the start in percentage points."
)

PROTOCOL_TERMS = {
    "all-search": "answers are searched among all day cameras, indoors and outdoors",
    "indoor-search": "answers are searched among the indoor day cameras",
    "single-shot": "each camera contributes one picture per person",
    "multi-shot": "each camera contributes up to ten pictures per person",
    "10 galleries": "the pictures to search are drawn ten times and the mean is shown",
    "infrared query": "each query is a night picture, each answer a day picture",
    "every caption": "each query is a sentence, each answer a picture",
    "visible query": "each query is a day picture, each answer a night picture",
}

ROWS_TRAINED = {
    "visible": "visible pictures",
    "infrared": "infrared pictures",
    "text": "captions",
}

PHASES = {
    "embed": "pass all pictures through the encoder",
    "cluster": "form groups",
    "match": "pair groups of both kinds",
    "plan": "draw the batches",
    "input": "wait for decoded, augmented pictures",
    "step": "forward, backward, update",
    "checkpoint": "save everything needed to resume",
    "evaluate": "score on people never trained on",
}

WHOLE_RUN = {
    "generate": "Draw the people",
    "start": "Check and prepare",
    "train": "Train",
    "evaluate": "Score the result",
    "total": "Total",
}


GIVEN_IDENTITIES = (
    " This run is a yardstick: unlike the method itself, it was told who is who among the people "
    "that it trained on."
)


def method(name: str, *, labels: str = "") -> Method:
    """The method's entry, or a plain one for a method that has none.

    Args:
        name: of the method.
        labels: "identities" where an unsupervised method was given them, for comparison.
    """
    given = GIVEN_IDENTITIES if labels == "identities" else ""
    if name not in METHODS:
        return Method(name, "Report of a training run", given)
    title, words = METHODS[name].title, METHODS[name].words
    return Method(title, words.title, words.lead + given, words.is_told_who)


def stage(name: str, method: str = "") -> Stage:
    """The words of a method's stage, plain ones where none has a stage of this name.

    Without the method they are the first one's: methods that share a stage's name share its label.
    """
    candidates = [METHODS[method]] if method in METHODS else METHODS.values()
    known = [candidate.words.stages for candidate in candidates]
    plain = StageWords(name.capitalize(), "")
    words = next((stages[name] for stages in known if name in stages), plain)
    return Stage(words.label, name, words.description, words.coupled)


def protocol_in_words(protocol: str) -> str:
    """Plain words for the terms that occur in a protocol's name, "" where none is known."""
    known = [words for term, words in PROTOCOL_TERMS.items() if term in protocol]
    return "; ".join(known).capitalize() + "." if known else ""
