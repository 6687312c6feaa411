"""CPCL: text-image retrieval from pairs, without identities.

Imports no torch; what needs it is imported when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid_core.method import Demo, Method
from reid_core.methods.cpcl import settings
from reid_core.methods.cpcl.settings import INPUTS, Config
from reid_core.methods.cpcl.words import WORDS
from reid_core.methods.late import Late

if TYPE_CHECKING:
    from reid_core.methods.cpcl.between_epochs import begin_epoch, cluster
    from reid_core.methods.cpcl.opening import load_encoder, open_stage
else:
    begin_epoch = Late(f"{__name__}.between_epochs", "begin_epoch")
    cluster = Late(f"{__name__}.between_epochs", "cluster")
    load_encoder = Late(f"{__name__}.opening", "load_encoder")
    open_stage = Late(f"{__name__}.opening", "open_stage")

METHOD = Method(
    name="cpcl",
    title="CPCL",
    config=Config,
    inputs=INPUTS,
    words=WORDS,
    demo=Demo(
        recipe="cpcl_demo.yaml",
        fast=("cpcl.train.epochs=2", "cpcl.train.warmup_epochs=0"),
        identities=300,
        test_share=0.3,
    ),
    supervision=settings.supervision,
    needs_text=settings.needs_text,
    stages=settings.stages,
    batch_rows=settings.batch_rows,
    augmentations=settings.augmentations,
    check=settings.check,
    cluster=cluster,
    begin_epoch=begin_epoch,
    open_stage=open_stage,
    load_encoder=load_encoder,
)
