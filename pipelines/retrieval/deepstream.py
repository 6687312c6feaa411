"""What DeepStream needs beside an exported model: nvinfer's configuration and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.evaluation.encoder import LoadedEncoder
from pipelines.storage.files import replace_file
from reid_core.types import Modality

_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_BATCH = 16
_CONFIG = """\
# {modality} crops of a detector to vectors of {dim} numbers, as tensor meta of each object
[property]
onnx-file={modality}.onnx
model-engine-file={modality}.onnx_b{batch}_gpu0_{precision}.engine
batch-size={batch}
network-mode={mode}
infer-dims=3;{height};{width}
# pixels are normalized inside the model, each channel by its own deviation: here they stay as
# they are, 0 to 255
net-scale-factor=1.0
offsets=0;0;0
model-color-format=0
maintain-aspect-ratio=0
# Lanczos on the GPU, as in training
scaling-compute-hw=1
scaling-filter=4
# 100: the tensor itself is the answer
network-type=100
output-tensor-meta=1
output-blob-names=features
# 2: objects of the detector with id 1
process-mode=2
gie-unique-id=2
operate-on-gie-id=1
"""
_README = """\
{files} for DeepStream: a secondary GIE gives each object of the detector (GIE 1) a vector.
`... ! nvinfer config-file-path=detector.txt ! nvtracker ... ! nvinfer config-file-path={first}`
The vector is the object's tensor meta `features`, of length 1: dot products are cosines.
nvinfer builds the engine at its first start; to build it beforehand, where it will run:
`{trtexec}`
Vectors of other weights than {fingerprint} cannot be compared with these.
"""


def write(out: Path, loaded: LoadedEncoder, modalities: Sequence[Modality], precision: str) -> None:
    """`nvinfer_<modality>.txt` for each kind of images, and README.md.

    Args:
        out: where the models lie.
        loaded: the encoder.
        modalities: of the models.
        precision: "fp32", "fp16" or "int8".
    """
    size = loaded.config.model
    images = [modality for modality in modalities if modality != Modality.TEXT]
    for modality in images:
        text = _CONFIG.format(
            modality=modality,
            dim=loaded.encoder.feature_dim,
            batch=_BATCH,
            precision=precision,
            mode=_MODES[precision],
            height=size.height,
            width=size.width,
        )
        replace_file(out / f"nvinfer_{modality}.txt", text)
    readme = _README.format(
        files=", ".join(f"{modality}.onnx" for modality in images),
        first=f"nvinfer_{images[0]}.txt",
        trtexec=trtexec(images[0], size.height, size.width, precision),
        fingerprint=loaded.fingerprint,
    )
    replace_file(out / "README.md", readme)


def trtexec(modality: Modality, height: int, width: int, precision: str) -> str:
    """The command that builds nvinfer's engine."""
    shape = f"3x{height}x{width}"
    shapes = " ".join(
        f"--{name}Shapes=images:{batch}x{shape}"
        for name, batch in (("min", 1), ("opt", _BATCH), ("max", _BATCH))
    )
    reduced = "" if precision == "fp32" else f" --{precision}"
    engine = f"{modality}.onnx_b{_BATCH}_gpu0_{precision}.engine"
    return f"trtexec --onnx={modality}.onnx --saveEngine={engine} {shapes}{reduced}"
