"""Rows, worlds and tables of `benchmarks.couplings`: recipes with what is changed in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ENCODERS = ("crossreid-small", "crossreid-small-vit")

NO_TEXT = ("demo.yaml", "cclnet.image_to_text=0")
SHARED = (*NO_TEXT, "cclnet.matching.shared=true")
OURS = ("cross_demo.yaml",)
TEACHER, LONGER = "cclnet.teacher=0.95", "cclnet.align.epochs=12"
BMIL = ("bmil_demo.yaml",)
VOTES = ("refine.labels=voted", "refine.weights=true", "refine.neighbors=12")
OWN_VOTES = tuple(f"cclnet.{vote}" for vote in VOTES)
TWO_VIEWS = ("cclnet.views.visible=2", "cclnet.views.channels=keep")
UNMIRRORED = (*OURS, "cclnet.flip=false")
# ours without votes, teacher, second view and mirrored images
WHITENED = (
    *UNMIRRORED,
    "cclnet.teacher=0",
    "cclnet.refine={}",
    "cclnet.views={channels: adapt}",
)
DECAY = ("cclnet.align.schedule=coupled", "cclnet.align.warmup_epochs=0")
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
    "ours, 12 epochs": (*OURS, LONGER),
    "BMIL": BMIL,
    "true identities": (*NO_TEXT, "cclnet.labels=identities"),
}
TRIED: dict[str, tuple[str, ...]] = {
    "whitened": WHITENED,
    "whitened, 12 epochs": (*WHITENED, LONGER),
    "whitened + guard": (*WHITENED, "cclnet.matching.guard=0.5"),
    "whitened + voted labels": (*WHITENED, *OWN_VOTES),
    "whitened + teacher": (*WHITENED, TEACHER),
    "whitened + teacher + voted labels": (*WHITENED, TEACHER, *OWN_VOTES),
    "whitened + decay": (*WHITENED, *DECAY),
    "whitened, two views": (*WHITENED, *TWO_VIEWS),
    "whitened, two views + teacher": (*WHITENED, *TWO_VIEWS, TEACHER),
    **{f"pairs: {m}": (*WHITENED, PLAIN, f"cclnet.matching.method={m}") for m in MATCHERS},
    **{
        f"whitened, cameras {c}, {m}{words}": (
            *WHITENED,
            f"cclnet.clustering.camera_scaling={c}",
            f"cclnet.matching.camera_scaling={m}",
            *more,
        )
        for c, m in ((0, 0), (0.5, 0.5), (0.5, 1), (1, 1))
        for words, more in (("", ()), (", pairs: scaled", (SCALED,)))
    },
    "one channel": (*WHITENED, PLAIN),
    "always whitened": (*WHITENED, "cclnet.matching.whitened=always"),
    "whitened, cameras 0.5": (*WHITENED, CAMERAS),
    "whitened, centered": (*WHITENED, "cclnet.matching.centered=true"),
    "whitened, 12 epochs, decay": (*WHITENED, LONGER, *DECAY),
    "whitened + cross term": (*WHITENED, "cclnet.refine.cross=1", *OWN_VOTES),
    "pairs: consistent, others excluded": (
        *WHITENED,
        PLAIN,
        "cclnet.matching.method=consistent",
        "cclnet.matching.exclusion=0.25",
    ),
    # tried before descriptors were mirrored
    "ours + mixed channels": (*UNMIRRORED, "augmentation.mix=0.5"),
    "ours + relit rectangles": (*UNMIRRORED, "augmentation.relight=0.5"),
    "ours, one plain view": (*UNMIRRORED, "cclnet.views={}"),
    "ours, never whitened": (*UNMIRRORED, PLAIN),
    "ours, not mirrored": UNMIRRORED,
    "no coupling, mirrored": (*NO_TEXT, "cclnet.swap.when=never", "cclnet.flip=true"),
    "shared prototypes, mirrored": (*SHARED, "cclnet.flip=true"),
    "ours, one plain view, mirrored": (*OURS, "cclnet.views={}"),
    "ours + texts": (
        "demo.yaml",
        "cclnet.matching={shared: true, whitened: agreed}",
        "cclnet.views={visible: 2}",
        *OWN_VOTES,
        TEACHER,
        "cclnet.flip=true",
    ),
    "ours + decay": (*UNMIRRORED, *DECAY),
    "ours + guard": (*UNMIRRORED, "cclnet.matching.guard=0.5"),
    "true identities, ours": (*UNMIRRORED, "cclnet.labels=identities"),
    "true identities, ours, mirrored": (*OURS, "cclnet.labels=identities"),
}
PARTS: dict[str, tuple[str, ...]] = {
    "BMIL without balance": (*BMIL, "bmil.clustering.balanced=false"),
    "BMIL, one prototype per cluster": (*BMIL, "bmil.memory.split=false"),
    "BMIL, mean bank alone": (*BMIL, "bmil.memory.banks=mean"),
    "BMIL, all scored": (*BMIL, "bmil.memory.scored=null"),
    "BMIL, joint steps alone": (*BMIL, "bmil.joint.separate_steps=false"),
    "BMIL, half of the visible images": (*BMIL, "bmil.clustering.subset=0.5"),
    "BMIL, mirrored": (*BMIL, "bmil.flip=true"),
    "BMIL, mirrored, half of the visible images": (
        *BMIL,
        "bmil.flip=true",
        "bmil.clustering.subset=0.5",
    ),
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
    "no coupling", "CCLNet", "shared prototypes", "whitened", "whitened + guard", "ours",
    "ours + guard", "pairs: mutual", "pairs: scaled", "BMIL", "true identities",
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
