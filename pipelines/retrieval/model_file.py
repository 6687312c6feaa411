"""The file of an exported model: how it takes images, what it says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder
from reid_core.images import DECODING
from reid_core.models.weight_files import Pixels
from reid_core.stage import Encoder
from reid_core.types import Modality

TOKENS = 77
Inputs = Literal["bytes", "float", "pixels"]
Precision = Literal["fp32", "fp16", "int8"]
_NAMES = {"bytes": ("input", "vector")}
_FLOATS = ("images", "features")  # what DeepStream, BoxMOT and Triton's examples expect


@dataclass(frozen=True)
class Form:
    """How a model takes images, and what it computes with.

    Attributes:
        inputs: "bytes" of RGB, "float" for numbers that were normalized with mean and deviation,
            or "pixels" for floats from 0 to 255.
        precision: of what is multiplied; sentences stay in "fp32".
        target: "deepstream" also writes nvinfer's configuration, and takes "pixels".
    """

    inputs: Inputs = "bytes"
    precision: Precision = "fp32"
    target: str | None = None

    def __post_init__(self) -> None:
        if self.target not in (None, "deepstream"):
            raise UserError(f"--for {self.target}: only deepstream has files of its own")

    def names(self, modality: Modality) -> tuple[str, str]:
        """Of input and output."""
        return _FLOATS if self.inputs != "bytes" and modality != Modality.TEXT else _NAMES["bytes"]


BYTES = Form()


@dataclass(frozen=True)
class Exported:
    """One model file.

    Attributes:
        path: of the file.
        modality: that it embeds.
        difference: largest difference to torch over batches of several sizes, before the file was
            made smaller.
        cosine: smallest cosine to the float32 file's vectors where it was, 1 where it was not.
        checked_on: which images that is measured on, "" where it is not.
        rank1: in percent on the run's test images, before and after; None where not measured.
    """

    path: Path
    modality: Modality
    difference: float
    cosine: float = 1.0
    checked_on: str = ""
    rank1: tuple[float, float] | None = None

    def described(self) -> str:
        """What was checked, in words."""
        text = f"largest difference to torch {self.difference:.1e}"
        if self.checked_on:
            text += f"; made smaller: smallest cosine {self.cosine:.4f} on {self.checked_on}"
        if self.rank1:
            text += f", Rank-1 {self.rank1[0]:.1f} -> {self.rank1[1]:.1f} %"
        return text


def facts(loaded: LoadedEncoder, modality: Modality, form: Form = BYTES) -> dict[str, str]:
    """What a user of the file must know, for its metadata."""
    size = loaded.config.model
    common = {
        "producer": "crossreid",
        "modality": str(modality),
        "fingerprint": loaded.fingerprint,
        "dim": str(loaded.encoder.feature_dim),
    }
    if modality == Modality.TEXT:
        return common | {"input": f"(batch, {TOKENS}) int64 token ids of CLIP's tokenizer"}
    kind = {
        "bytes": "uint8, RGB",
        "float": "float32, RGB, (value / 255 - mean) / std",
        "pixels": "float32, RGB, from 0 to 255",
    }
    return common | {
        "input": f"(batch, 3, height, width) {kind[form.inputs]}",
        "height": str(size.height),
        "width": str(size.width),
        **DECODING,
        "mean": json.dumps(pixels_of(loaded.encoder).mean),
        "std": json.dumps(pixels_of(loaded.encoder).std),
        "normalized_inside": str(form.inputs != "float").lower(),
        "precision": form.precision,
    }


def prepared(inputs: Tensor, loaded: LoadedEncoder, form: Form) -> Tensor:
    """Bytes of images as a form takes them; token ids as they are."""
    if inputs.dtype != torch.uint8 or form.inputs == "bytes":
        return inputs
    if form.inputs == "pixels":
        return inputs.float()
    own = pixels_of(loaded.encoder)
    mean, std = (torch.tensor(values)[:, None, None] for values in (own.mean, own.std))
    return (inputs.float() / 255 - mean) / std


def set_facts(path: Path, metadata: dict[str, str]) -> None:
    """Write the metadata of a model file."""
    import onnx

    content = onnx.load(path)
    onnx.helper.set_model_props(content, metadata)
    onnx.save_model(content, path)


def pixels_of(encoder: Encoder) -> Pixels:
    """Mean and deviation that the encoder, or the one inside it, normalizes with."""
    assert isinstance(encoder, nn.Module)
    pixels = (getattr(part, "pixels", None) for part in encoder.modules())
    return next(each for each in pixels if isinstance(each, Pixels))
