"""What a report for laymen says about CPCL."""

from __future__ import annotations

from reid_core.method import StageWords, Words

WORDS = Words(
    title="Finding a person from a description",
    lead="Given a sentence about a person, find the pictures that show this person. The program "
    "learned from pictures with captions, without identity labels.",
    stages={
        "train": StageWords(
            "Training",
            "Pictures and captions are sorted into groups, and each is drawn towards the groups "
            "that belong to it on both sides.",
        )
    },
)
