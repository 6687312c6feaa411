"""A checkpoint goes on, and is opened, with the pixels and the activation of its weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from pipelines.config.sections import ModelConfig
from pipelines.runs.learned import Learned
from reid_core.models import backbones
from reid_core.models.weight_files import Pixels


def test_what_was_learned_stands_above_what_the_first_weights_say(tmp_path: Path) -> None:
    """A run of a file whose notes nobody read, or that lay elsewhere then."""
    path = tmp_path / "open_clip_model.safetensors"
    state = backbones.load(backbones.SMALL).model.state_dict()
    save_file({name: x.contiguous() for name, x in state.items()}, path)
    notes = {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.1, 0.1]}
    content = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": notes}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    model = ModelConfig(name=backbones.SMALL, pretrained=str(path))
    fresh = Learned().load(model, model.pretrained)
    assert (fresh.quick_gelu, fresh.pixels.mean) == (True, (0.5, 0.5, 0.5))
    before = {"quick_gelu": False, "pixels": [(0.2, 0.3, 0.4), (0.6, 0.7, 0.8)]}
    resumed = Learned.of(before).load(model, model.pretrained)  # type: ignore[typeddict-item]
    assert resumed.quick_gelu is False
    assert resumed.pixels == Pixels((0.2, 0.3, 0.4), (0.6, 0.7, 0.8))
    again = Learned.of({"quick_gelu": True}).load(model, None)  # type: ignore[typeddict-item]
    assert again.quick_gelu is True
