"""What a report for laymen says about BMIL."""

from __future__ import annotations

from reid_core.method import StageWords, Words

WORDS = Words(
    title="The same person, by day and by night",
    lead="A person is seen by ordinary cameras during the day and by infrared cameras at night. "
    "Can a program tell which night picture shows which person of the day? It was given pictures "
    "only, and sorted those of both kinds of camera together.",
    stages={
        "intra": StageWords(
            "Stage 1",
            "Day and night pictures are sorted into groups that look alike, each kind of camera "
            "apart. The encoder learns to pull a picture towards two centers of its group, the "
            "usual one and that of its odd pictures, and away from the other groups.",
        ),
        "joint": StageWords(
            "Stage 2",
            "Now day and night pictures are also sorted together. So that a night picture does not "
            "only look at night pictures, half of those that it is compared with are from the day. "
            "A group has one center for its day pictures and one for its night pictures, and all "
            "of its pictures are drawn to both.",
            "Groups with pictures of both kinds were formed in {} of its epochs.",
        ),
    },
)
