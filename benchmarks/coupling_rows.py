"""Rows, worlds and tables of `benchmarks.couplings`: recipes with what is changed in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ENCODERS = ("crossreid-small", "crossreid-small-vit")

NO_TEXT = ("demo.yaml", "cclnet.image_to_text=0")
SHARED = (*NO_TEXT, "cclnet.matching.shared=true")
OURS = ("cross_demo.yaml",)
BMIL = ("bmil_demo.yaml",)
VOTES = ("refine.labels=voted", "refine.weights=true", "refine.neighbors=12")
OWN_VOTES = tuple(f"cclnet.{vote}" for vote in VOTES)
TEACHER, LONGER = "cclnet.teacher=0.95", "cclnet.align.epochs=12"
TWO_VIEWS = ("cclnet.views.visible=2", "cclnet.views.channels=keep")
AUTHORS = ("cclnet.swap.when=step", "cclnet.swap.order=sequential")
PLAIN = "cclnet.matching.whitened=never"
CAMERAS = "cclnet.clustering.camera_scaling=0.5"
SCALED = "cclnet.matching.method=scaled"
ALONE, MODALITY = ", a softmax for each modality", "bmil.memory.softmax=modality"
TOGETHER = ("assigned", "overlap", "both", "either")
MATCHERS = ("mutual", "scaled", "transport", "joint", "both", "either", "consistent", "proposed")

MAIN: dict[str, tuple[str, ...]] = {
    "no coupling": (*NO_TEXT, "cclnet.swap.when=never"),
    "CCLNet, the authors' rule": ("demo.yaml", *AUTHORS),
    "the authors' rule without texts": (*NO_TEXT, *AUTHORS),
    "CCLNet": ("demo.yaml",),
    "swap once per epoch, without texts": NO_TEXT,
    "the same for CCLNet's time": (*NO_TEXT, "cclnet.align.epochs=10"),
    "shared prototypes": SHARED,
    "ours": OURS,
    "ours, 12 epochs": (*OURS, "cclnet.align.epochs=12"),
    "BMIL": BMIL,
    "true identities": (*NO_TEXT, "cclnet.labels=identities"),
}
TRIED: dict[str, tuple[str, ...]] = {
    "ours + guard": (*OURS, "cclnet.matching.guard=0.5"),
    "ours + voted labels": (*OURS, *OWN_VOTES),
    "ours + teacher": (*OURS, TEACHER),
    "ours + decay": (*OURS, "cclnet.align.schedule=coupled", "cclnet.align.warmup_epochs=0"),
    "ours + teacher + votes": (*OURS, TEACHER, *OWN_VOTES),
    "ours + teacher + votes, 12 epochs": (*OURS, TEACHER, *OWN_VOTES, LONGER),
    "ours, two views": (*OURS, *TWO_VIEWS),
    "ours, two views + teacher": (*OURS, *TWO_VIEWS, TEACHER),
    "ours, two views + teacher + votes": (*OURS, *TWO_VIEWS, TEACHER, *OWN_VOTES),
    "ours, two views + teacher, 12 epochs": (*OURS, *TWO_VIEWS, TEACHER, LONGER),
    "ours, two views + teacher + votes, 12 epochs": (
        *OURS,
        *TWO_VIEWS,
        TEACHER,
        *OWN_VOTES,
        LONGER,
    ),
    **{f"ours, pairs: {m}": (*OURS, PLAIN, f"cclnet.matching.method={m}") for m in MATCHERS},
    **{
        f"ours, cameras {c}, {m}{words}": (
            *OURS,
            f"cclnet.clustering.camera_scaling={c}",
            f"cclnet.matching.camera_scaling={m}",
            *more,
        )
        for c, m in ((0, 0), (0.5, 0.5), (0.5, 1), (1, 1))
        for words, more in (("", ()), (", pairs: scaled", (SCALED,)))
    },
    "ours, never whitened": (*OURS, PLAIN),
    "ours, always whitened": (*OURS, "cclnet.matching.whitened=always"),
    "ours, cameras 0.5": (*OURS, CAMERAS),
    "ours, centered": (*OURS, "cclnet.matching.centered=true"),
    "ours, 12 epochs, decay": (
        *OURS,
        "cclnet.align.epochs=12",
        "cclnet.align.schedule=coupled",
        "cclnet.align.warmup_epochs=0",
    ),
    "ours + cross term": (*OURS, "cclnet.refine.cross=1", *(f"cclnet.{v}" for v in VOTES)),
    "ours, pairs: consistent, others excluded": (
        *OURS,
        PLAIN,
        "cclnet.matching.method=consistent",
        "cclnet.matching.exclusion=0.25",
    ),
}
PARTS: dict[str, tuple[str, ...]] = {
    "BMIL without balance": (*BMIL, "bmil.clustering.balanced=false"),
    "BMIL, one prototype per cluster": (*BMIL, "bmil.memory.split=false"),
    "BMIL, mean bank alone": (*BMIL, "bmil.memory.banks=mean"),
    "BMIL, all scored": (*BMIL, "bmil.memory.scored=null"),
    "BMIL, joint steps alone": (*BMIL, "bmil.joint.separate_steps=false"),
    "BMIL, half of the visible images": (*BMIL, "bmil.clustering.subset=0.5"),
    "BMIL, plain views": (*BMIL, "bmil.views.visible=1", "bmil.views.jitter=0"),
    "BMIL, one channel view": (
        *BMIL,
        "bmil.views.visible=1",
        "bmil.views.jitter=0",
        "bmil.views.channels=adapt",
    ),
    f"BMIL{ALONE}": (*BMIL, MODALITY),
    **{
        f"BMIL on pairs: {t}{words}": (*BMIL, f"bmil.clustering.together={t}", *more)
        for words, more in (("", ()), (ALONE, (MODALITY,)))
        for t in TOGETHER
    },
    "BMIL, cameras 0.5": (*BMIL, "bmil.clustering.camera_scaling=0.5"),
    "BMIL + votes": (*BMIL, *(f"bmil.{v}" for v in VOTES)),
    "BMIL + teacher": (*BMIL, "bmil.teacher=0.95"),
    "true identities, BMIL's losses": (*BMIL, "bmil.labels=identities"),
}
METHODS: dict[str, tuple[str, ...]] = {"CSDN": ("csdn_demo.yaml",), "CPCL": ("cpcl_demo.yaml",)}
ROWS = {**MAIN, **TRIED, **PARTS, **METHODS}

# Worlds ------------------------------------------------------------------------------------------

CAPTIONS = "captions"
GENERATED: dict[str, dict[str, Any]] = {
    **{name: {"difficulty": name} for name in ("default", "easy", "hard")},
    **{f"mismatch-{share:g}": {"mismatch": share} for share in (0.0, 0.25, 0.5, 0.75, 1.0)},
    CAPTIONS: {"layout": "icfg", "num_identities": 300, "test_share": 0.3},
}
REAL = {"roadscene": "default", "roadscene-hard": "hard", "roadscene-easy": "easy"}
OWN = "own"  # the tree of --root
MISMATCHED = tuple(name for name in GENERATED if name.startswith("mismatch"))
IN_MISMATCH = (
    "no coupling", "CCLNet", "shared prototypes", "ours", "ours + guard", "ours, pairs: mutual",
    "ours, pairs: scaled", "BMIL", "true identities",
)  # fmt: skip
FIVE = ("default", "easy", "hard", "roadscene", "roadscene-hard")

Plan = tuple[Iterable[str], Iterable[str], Iterable[str]]
TABLES: dict[str, Plan] = {
    "joins": (MAIN, FIVE, ENCODERS[:1]),
    "tried": (TRIED, ("default", "roadscene"), ENCODERS[:1]),
    "parts": (PARTS, ("default", "roadscene"), ENCODERS[:1]),
    "mismatch": (IN_MISMATCH, MISMATCHED, ENCODERS[:1]),
    "encoders": (
        ("no coupling", "CCLNet", "BMIL", "ours", "true identities", *METHODS),
        ("default", "roadscene", CAPTIONS),
        ENCODERS,
    ),
}
"""Rows, worlds and encoders of each table; --rows, --worlds and --encoders choose from them."""
