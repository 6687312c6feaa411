"""Names and sentences by key. A new method adds entries here and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace


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


_COUPLED = (
    "Day groups were paired with the night groups that resemble them in {} of its epochs. Pairs "
    "are drawn together, so that both views of a person end up in the same place."
)

STAGES = {
    "prepare": Stage(
        "Stage 0",
        "prepare",
        "Day and night pictures are sorted into groups that look alike, each kind of camera apart. "
        "The encoder learns to pull a picture towards the centre of its group and away from the "
        "other groups; the groups are formed anew in every epoch.",
        _COUPLED,
    ),
    "prompts": Stage(
        "Stage 1",
        "prompts",
        "The encoder stands still. For every group of pictures, or every person where people are "
        "known, a short phrase of learned words is found that describes them, using the link "
        "between pictures and text that CLIP brings along.",
    ),
    "align": Stage(
        "Stage 2",
        "align",
        "Groups are formed again in every epoch. Where phrases were learned before, pictures are "
        "drawn towards the phrase of their group too.",
        _COUPLED,
    ),
    "intra": Stage(
        "Stage 1",
        "intra",
        "Day and night pictures are sorted into groups that look alike, each kind of camera apart. "
        "The encoder learns to pull a picture towards two centres of its group, the usual one and "
        "that of its odd pictures, and away from the other groups.",
    ),
    "joint": Stage(
        "Stage 2",
        "joint",
        "Now day and night pictures are also sorted together. So that a night picture does not "
        "only look at night pictures, half of those that it is compared with are from the day. A "
        "group has one centre for its day pictures and one for its night pictures, and all of its "
        "pictures are drawn to both.",
        "Groups with pictures of both kinds were formed in {} of its epochs.",
    ),
    "fusion": Stage(
        "Stage 2",
        "fusion",
        "The encoder stands still. The phrases of both kinds of camera are merged into one "
        "description per person.",
    ),
    "images": Stage(
        "Stage 3",
        "images",
        "The image encoder learns to place every picture of a person at that description.",
    ),
    "train": Stage(
        "Training",
        "train",
        "Pictures and captions are sorted into groups, and each is drawn towards the groups that "
        "belong to it on both sides.",
    ),
}

METHODS = {
    "cclnet": Method(
        "CCLNet",
        "The same person, by day and by night",
        "A person is seen by ordinary cameras during the day and by infrared cameras at night. Can "
        "a program tell which night picture shows which person of the day? It was given pictures "
        "only: no identity labels, no pairs, nobody who says who is who.",
    ),
    "bmil": Method(
        "BMIL",
        "The same person, by day and by night",
        "A person is seen by ordinary cameras during the day and by infrared cameras at night. Can "
        "a program tell which night picture shows which person of the day? It was given pictures "
        "only, and sorted those of both kinds of camera together.",
    ),
    "csdn": Method(
        "CSDN",
        "The same person, by day and by night",
        "A person is seen by ordinary cameras during the day and by infrared cameras at night. The "
        "program learned from labelled people, with descriptions in words as a bridge between the "
        "two kinds of picture, to find people that it has never seen.",
        is_told_who=True,
    ),
    "cpcl": Method(
        "CPCL",
        "Finding a person from a description",
        "Given a sentence about a person, find the pictures that show this person. The program "
        "learned from pictures with captions, without identity labels.",
    ),
}

ROWS = {
    "start": ("Start", "before training"),
    "final": ("Full method", "after the last epoch"),
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
    "start": "Score the start",
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
    found = METHODS.get(name, Method(name, "Report of a training run", ""))
    return replace(found, lead=found.lead + GIVEN_IDENTITIES) if labels == "identities" else found


def stage(name: str) -> Stage:
    """The stage's entry, or a plain one for a stage that has none."""
    return STAGES.get(name, Stage(name.capitalize(), name, ""))


def protocol_in_words(protocol: str) -> str:
    """Plain words for the terms that occur in a protocol's name, "" where none is known."""
    known = [words for term, words in PROTOCOL_TERMS.items() if term in protocol]
    return "; ".join(known).capitalize() + "." if known else ""
