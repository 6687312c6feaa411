"""The encoder as ONNX, one file per modality, for use without this package.

Bytes in, unit vectors out: normalization is part of the graph, so that only the size and the
color order of the pixels are left to get wrong. Both stand in the file's metadata. Trackers that
feed normalized numbers, or plain ones as DeepStream does, get a graph that takes those instead.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from pipelines.retrieval import deepstream, smaller
from pipelines.retrieval.model_file import (
    BYTES,
    Exported,
    Form,
    facts,
    pixels_of,
    prepared,
    set_facts,
)
from pipelines.retrieval.sources import Source
from reid_core.models.text_tower import TextTower
from reid_core.stage import Encoder
from reid_core.types import Modality

OPSET = 18
CHECKED_BATCHES = (1, 3, 8)
MAX_DIFFERENCE = 1e-4  # of a unit vector's components; float32 convolutions differ by 1e-6


def export(
    checkpoint: Path,
    out: Path,
    *,
    file_format: str = "onnx",
    space: Space = "descriptor",
    form: Form = BYTES,
    images: Path | None = None,
) -> list[Exported]:
    """Write `<modality>.onnx` for each modality and check it with onnxruntime on the CPU.

    Args:
        checkpoint: checkpoint folder or run directory.
        out: folder of the files; older ones are replaced.
        file_format: "onnx".
        space: of the vectors, see `pipelines.evaluation.encoder.open_encoder`.
        form: of inputs and numbers.
        images: folder that a smaller model is checked and calibrated on; None for the run's data.

    Raises:
        UserError: another format, no encoder, onnx is not installed, `out` cannot be written, no
            image to calibrate on, or a file that gives other vectors than torch.
    """
    _require(file_format)
    if form.target:
        form = replace(form, inputs="pixels")
    if images is not None and form.precision == "fp32":
        raise UserError("--images is for --precision fp16 and int8: fp32 is checked without images")
    if images is not None:
        Source(images)  # refuses what is none
    loaded = open_encoder(checkpoint, space=space)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error.strerror}; choose another folder"
        ) from error
    written = [_exported(loaded, modality, form, out) for modality in loaded.modalities]
    if form.precision != "fp32":
        written = smaller.shrink(loaded, written, form, images)
    for model in written:
        set_facts(model.path, facts(loaded, model.modality, form))
    if form.target:
        deepstream.write(out, loaded, [model.modality for model in written], form.precision)
    return written


def _require(file_format: str) -> None:
    if file_format != "onnx":
        raise UserError(f"--format {file_format}: only onnx can be written")
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise UserError(
            f'{error.name} is not installed: pip install -c constraints.txt -e ".[export]"'
        ) from error
    del onnx, onnxruntime, onnxscript


def _exported(loaded: LoadedEncoder, modality: Modality, form: Form, out: Path) -> Exported:
    """A file in float32, compared with torch."""
    graph = (
        _Sentences(loaded.encoder)
        if modality == Modality.TEXT
        else _OneModality(loaded.encoder, modality, numbers=form.inputs == "pixels")
    )
    path = out / f"{modality}.onnx"

    def feed(inputs: Tensor) -> Tensor:
        return prepared(inputs, loaded, form)

    _write(graph.cpu().eval(), path, feed(example(loaded, modality, 2)), form.names(modality))
    model = _OneModality(loaded.encoder, modality).cpu().eval()
    inputs = [example(loaded, modality, n) for n in CHECKED_BATCHES]
    difference = compare(model, path, inputs, feed=feed)
    if not difference <= MAX_DIFFERENCE:
        raise UserError(
            f"{path} differs from torch by {difference:.1e}, more than {MAX_DIFFERENCE:g}: do "
            "not use it; please report the versions of torch, onnx and onnxruntime"
        )
    return Exported(path, modality, difference)


def example(loaded: LoadedEncoder, modality: Modality, count: int) -> Tensor:
    """(count, ...) inputs of the right kind, drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(count)
    if modality == Modality.TEXT:
        assert loaded.tokenize is not None
        words = ["a man in a red coat", "a woman", "somebody with a bag and black trousers"]
        return loaded.tokenize([words[i % len(words)] for i in range(count)]).cpu()
    size = loaded.config.model
    shape = (count, 3, size.height, size.width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _same(inputs: Tensor) -> Tensor:
    return inputs


@torch.inference_mode()
def compare(
    model: nn.Module, path: Path, inputs: list[Tensor], *, feed: Callable[[Tensor], Tensor] = _same
) -> float:
    """Largest difference between a file and the model it was made from, over some batches.

    Args:
        model: takes bytes, or token ids.
        path: of the file.
        inputs: of the model.
        feed: makes of them what the file takes.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return max(
        float(np.abs(session.run(None, {name: feed(x).numpy()})[0] - model(x).numpy()).max())
        for x in inputs
    )


class _OneModality(nn.Module):
    """An encoder as a function of one tensor; `numbers` are pixels as floats from 0 to 255."""

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder, modality: Modality, *, numbers: bool = False) -> None:
        super().__init__()
        assert isinstance(encoder, nn.Module)
        self.encoder: Encoder = encoder
        self.modality, self.numbers = modality, numbers
        own = pixels_of(encoder)
        mean, std = (torch.tensor(values)[:, None, None] for values in (own.mean, own.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", mean / std, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.numbers:
            inputs = inputs * self.scale - self.shift
        return self.encoder.embed(inputs, self.modality)


class _Sentences(nn.Module):
    """A text tower over all 77 positions: a graph cannot cut a batch at its last EOT."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.text: TextTower = encoder.text  # type: ignore[attr-defined]

    def forward(self, inputs: Tensor) -> Tensor:
        tower = self.text
        x = tower.token_embedding(inputs) + tower.positional_embedding
        x = tower.transformer(x, attn_mask=tower.attn_mask)
        # not len(x): that would fix the batch's size
        at_end = x[torch.arange(x.shape[0]), inputs.argmax(dim=-1)]
        return functional.normalize(tower.ln_final(at_end) @ tower.text_projection, dim=1)


def _write(model: nn.Module, path: Path, inputs: Tensor, names: tuple[str, str]) -> None:
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (inputs,),
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            # The optimizer takes the 1e-12 under GeM's root for zero and drops it, which moves
            # channels that are silent by a thousandth. onnxruntime optimizes while loading.
            optimize=False,
            verbose=False,
        )
    assert program is not None
    onnx.save_model(program.model_proto, path)
