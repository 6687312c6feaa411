"""What a report for laymen says about CCLNet."""

from __future__ import annotations

from reid_core.method import StageWords, Words

_COUPLED = (
    "Day groups were paired with the night groups that resemble them in {} of its epochs. Pairs "
    "are drawn together, so that both views of a person end up in the same place."
)

WORDS = Words(
    title="The same person, by day and by night",
    lead="A person is seen by ordinary cameras during the day and by infrared cameras at night. "
    "Can a program tell which night picture shows which person of the day? It was given pictures "
    "only: no identity labels, no pairs, nobody who says who is who.",
    stages={
        "prepare": StageWords(
            "Stage 0",
            "Day and night pictures are sorted into groups that look alike, each kind of camera "
            "apart. The encoder learns to pull a picture towards the center of its group and away "
            "from the other groups; the groups are formed anew in every epoch.",
            _COUPLED,
        ),
        "prompts": StageWords(
            "Stage 1",
            "The encoder stands still. For every group of pictures, or every person where people "
            "are known, a short phrase of learned words is found that describes them, using the "
            "link between pictures and text that CLIP brings along.",
        ),
        "align": StageWords(
            "Stage 2",
            "Groups are formed again in every epoch. Where phrases were learned before, pictures "
            "are drawn towards the phrase of their group too.",
            _COUPLED,
        ),
    },
)
