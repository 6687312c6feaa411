"""The encoder as ONNX, one file per modality, for use without this package.

Bytes in, unit vectors out: normalization is part of the graph, so that only the size and the
colour order of the pixels are left to get wrong. Both stand in the file's metadata.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder, Space, open_encoder
from reid_core.images import DECODING
from reid_core.models.text_tower import TextTower
from reid_core.models.weight_files import Pixels
from reid_core.stage import Encoder
from reid_core.types import Modality

OPSET = 18
CHECKED_BATCHES = (1, 3, 8)
MAX_DIFFERENCE = 1e-4  # of a unit vector's components; float32 convolutions differ by 1e-6
TOKENS = 77


@dataclass(frozen=True)
class Exported:
    """One model file.

    Attributes:
        path: of the file.
        modality: that it embeds.
        difference: largest difference to torch over batches of several sizes.
    """

    path: Path
    modality: Modality
    difference: float


def export(
    checkpoint: Path, out: Path, *, file_format: str = "onnx", space: Space = "descriptor"
) -> list[Exported]:
    """Write `<modality>.onnx` for each modality and check it with onnxruntime on the CPU.

    Args:
        checkpoint: checkpoint folder or run directory.
        out: folder of the files; older ones are replaced.
        file_format: "onnx".
        space: of the vectors, see `pipelines.evaluation.encoder.open_encoder`.

    Raises:
        UserError: another format, no encoder, onnx is not installed, `out` cannot be written, or a
            file that gives other vectors than torch.
    """
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
    loaded = open_encoder(checkpoint, space=space)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    written = []
    for modality in loaded.modalities:
        model = _OneModality(loaded.encoder, modality).cpu().eval()
        graph = _Sentences(loaded.encoder).eval() if modality == Modality.TEXT else model
        path = out / f"{modality}.onnx"
        _write(graph, path, example(loaded, modality, 2), facts(loaded, modality))
        difference = compare(model, path, [example(loaded, modality, n) for n in CHECKED_BATCHES])
        if not difference <= MAX_DIFFERENCE:
            raise UserError(
                f"{path} differs from torch by {difference:.1e}, more than {MAX_DIFFERENCE:g}: do "
                "not use it; please report the versions of torch, onnx and onnxruntime"
            )
        written.append(Exported(path, modality, difference))
    return written


def facts(loaded: LoadedEncoder, modality: Modality) -> dict[str, str]:
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
    return common | {
        "input": "(batch, 3, height, width) uint8, RGB",
        "height": str(size.height),
        "width": str(size.width),
        **DECODING,
        "mean": json.dumps(_pixels(loaded.encoder).mean),
        "std": json.dumps(_pixels(loaded.encoder).std),
        "normalised_inside": "true",
    }


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


@torch.inference_mode()
def compare(model: nn.Module, path: Path, inputs: list[Tensor]) -> float:
    """Largest difference between a file and the model it was made from, over some batches."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return max(
        float(np.abs(session.run(None, {"input": x.numpy()})[0] - model(x).numpy()).max())
        for x in inputs
    )


class _OneModality(nn.Module):
    """An encoder as a function of one tensor."""

    def __init__(self, encoder: Encoder, modality: Modality) -> None:
        super().__init__()
        assert isinstance(encoder, nn.Module)
        self.encoder: Encoder = encoder
        self.modality = modality

    def forward(self, inputs: Tensor) -> Tensor:
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


def _write(model: nn.Module, path: Path, inputs: Tensor, metadata: dict[str, str]) -> None:
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (inputs,),
            input_names=["input"],
            output_names=["vector"],
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            # The optimizer takes the 1e-12 under GeM's root for zero and drops it, which moves
            # channels that are silent by a thousandth. onnxruntime optimises while loading.
            optimize=False,
            verbose=False,
        )
    assert program is not None
    content = program.model_proto
    onnx.helper.set_model_props(content, metadata)
    onnx.save_model(content, path)


def _pixels(encoder: Encoder) -> Pixels:
    """Mean and deviation that the encoder, or the one inside it, normalizes with."""
    assert isinstance(encoder, nn.Module)
    pixels = (getattr(part, "pixels", None) for part in encoder.modules())
    return next(each for each in pixels if isinstance(each, Pixels))
