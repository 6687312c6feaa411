"""What a report for laymen says about CSDN."""

from __future__ import annotations

from reid_core.method import StageWords, Words

WORDS = Words(
    title="The same person, by day and by night",
    lead="A person is seen by ordinary cameras during the day and by infrared cameras at night. "
    "The program learned from labeled people, with descriptions in words as a bridge between the "
    "two kinds of picture, to find people that it has never seen.",
    stages={
        "prompts": StageWords(
            "Stage 1",
            "The encoder stands still. For every person and kind of camera a short phrase of "
            "learned words is found that describes them, using the link between pictures and text "
            "that CLIP brings along.",
        ),
        "fusion": StageWords(
            "Stage 2",
            "The encoder stands still. The phrases of both kinds of camera are merged into one "
            "description per person.",
        ),
        "images": StageWords(
            "Stage 3",
            "The image encoder learns to place every picture of a person at that description.",
        ),
    },
    is_told_who=True,
)
