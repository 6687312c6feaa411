"""CSDN: supervised visible-infrared re-identification with texts.

Imports no torch; what needs it is imported when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reid_core.method import Demo, Method, Released
from reid_core.methods.csdn import settings
from reid_core.methods.csdn.settings import INPUTS, Config
from reid_core.methods.csdn.words import WORDS
from reid_core.methods.late import Late

if TYPE_CHECKING:
    from reid_core.methods.csdn.between_epochs import begin_epoch
    from reid_core.methods.csdn.opening import load_encoder, open_stage
    from reid_core.methods.csdn.released import module_state
else:
    begin_epoch = Late(f"{__name__}.between_epochs", "begin_epoch")
    load_encoder = Late(f"{__name__}.opening", "load_encoder")
    open_stage = Late(f"{__name__}.opening", "open_stage")
    module_state = Late(f"{__name__}.released", "module_state")

METHOD = Method(
    name="csdn",
    title="CSDN",
    config=Config,
    inputs=INPUTS,
    words=WORDS,
    demo=Demo(
        recipe="csdn_demo.yaml",
        fast=(
            "csdn.prompts.epochs=2",
            "csdn.fusion.epochs=2",
            "csdn.images.epochs=2",
            "csdn.images.batches_per_epoch=4",
        ),
    ),
    supervision=settings.supervision,
    needs_text=settings.needs_text,
    stages=settings.stages,
    batch_rows=settings.batch_rows,
    augmentations=settings.augmentations,
    check=settings.check,
    begin_epoch=begin_epoch,
    open_stage=open_stage,
    load_encoder=load_encoder,
    reads_features=False,
    of_weights=("stem_relu",),
    released=Released(
        stage="images",
        model={"name": "RN50", "pretrained": "openai", "height": 288, "width": 144},
        settings={"profile": "reference", "variant": "head"},
        module_state=module_state,
    ),
)
