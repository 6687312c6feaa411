"""Exported models in half precision and in 8 bits, and what that costs.

Pooling with powers, batch normalization behind it and the length of a vector stay in float32: their
small numbers are zero in half precision.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.data.listed import read
from pipelines.data.measurable import why_unmeasured
from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder
from pipelines.evaluation.evaluate import evaluate
from pipelines.retrieval.model_file import Exported, Form, prepared
from pipelines.retrieval.sources import Source
from pipelines.runs.console import console, say
from reid_core.types import Modality, Sample, Split

if TYPE_CHECKING:
    import onnx

CHECKED, MIN_COSINE = 256, 0.999
_BATCH = 32
_SENSITIVE = ("Pow", "Clip", "ReduceL2")
_SCALARS = ("Constant", "CastLike", "Expand", "Shape", "Identity")
_QUANTIZED = ["Conv", "MatMul", "Gemm"]


def shrink(
    loaded: LoadedEncoder, models: Sequence[Exported], form: Form, folder: Path | None
) -> list[Exported]:
    """Replace the files of image models by smaller ones; sentences keep theirs.

    Args:
        loaded: the encoder.
        models: in float32.
        form: with "fp16" or "int8".
        folder: of images to check and calibrate on, None for the run's data.

    Returns:
        The models with what changed: cosines, and the scores on the run's test images.

    Raises:
        UserError: no images for int8, or vectors in fp16 that are others.
    """
    images, where = _images(loaded, folder, needed=form.precision == "int8")
    small = []
    for model in models:
        if model.modality == Modality.TEXT:
            small.append(model)
            continue
        pixels = [_fed(loaded, form, batch) for batch in _batches(images[model.modality])]
        full = model.path.with_suffix(".fp32.onnx")
        shutil.move(model.path, full)
        if form.precision == "fp16":
            halve(full, model.path)
        else:
            quantize(full, model.path, pixels)
        cosine = _smallest_cosine(full, model.path, pixels)
        if form.precision == "fp16" and not cosine >= MIN_COSINE:
            model.path.unlink()
            raise UserError(
                f"in fp16 a vector of {where} has cosine {cosine:.4f} to that in fp32, less than "
                f"{MIN_COSINE}: export {model.modality} with --precision fp32 ({full} is that)"
            )
        small.append(replace(model, cosine=cosine, checked_on=where))
    try:
        return _scored(loaded, small, form)
    finally:
        for model in small:
            model.path.with_suffix(".fp32.onnx").unlink(missing_ok=True)


def halve(source: Path, target: Path) -> None:
    """Write a model whose weights and products are in half precision; inputs and outputs stay."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(source)
    _fold_transposes(model)
    remaining = _tail(model) + _turned_products(model)
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    small = convert_float_to_float16(model, keep_io_types=True, node_block_list=remaining)
    written: set[str] = set()
    for node in list(small.graph.node):  # the converter casts once per reader, by one name
        if node.output[0] in written:
            small.graph.node.remove(node)
        written.update(node.output)
    sorted_ = OnnxModel(small)
    sorted_.topological_sort()
    onnx.save_model(sorted_.model, target)


def quantize(source: Path, target: Path, batches: Sequence[np.ndarray]) -> None:
    """Write a model whose convolutions and matrix products have 8 bits, ranges taken from images.

    Args:
        source: in float32.
        target: to write.
        batches: of inputs, as the model takes them.
    """
    import onnx
    from onnxruntime import quantization

    model = onnx.load(source)
    (name,) = (given.name for given in model.graph.input)
    logging.getLogger().setLevel(logging.ERROR)  # it advises to preprocess
    quantization.quantize_static(
        source,
        target,
        _Reader(name, batches),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_QUANTIZED,
        nodes_to_exclude=_tail(model),
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},  # for TensorRT
    )


def _tail(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes from the pooling with powers on, and of the constants that they read."""
    nodes, names = list(model.graph.node), list[str]()
    tensors: set[str] = set()
    for node in nodes:
        if node.op_type in _SENSITIVE or tensors.intersection(node.input):
            names.append(node.name)
            tensors.update(node.output)
    chosen = set(names)
    needed = {given for node in nodes if node.name in chosen for given in node.input}
    for node in reversed(nodes):
        if node.op_type in _SCALARS and node.name not in chosen and needed & set(node.output):
            names.append(node.name)
            needed.update(node.input)
    return names


def _fold_transposes(model: onnx.ModelProto) -> None:
    """Weights that a graph turns before every product are stored turned."""
    from onnx import numpy_helper

    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "Transpose" or node.input[0] not in weights:
            continue
        order = next(one.ints for one in node.attribute if one.name == "perm")
        turned = numpy_helper.to_array(weights[node.input[0]]).transpose(order)
        graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(turned), node.output[0])
        )
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for weight in weights.values():
        if weight.name not in used:
            graph.initializer.remove(weight)


def _turned_products(model: onnx.ModelProto) -> list[str]:
    """Products of transposed activations, and what transposes them.

    Of these in half precision onnxruntime 1.31 makes a fused product on the CPU, and dies.
    """
    turns = {node.output[0]: node for node in model.graph.node if node.op_type == "Transpose"}
    names: list[str] = []
    for node in model.graph.node:
        given = [turns[name].name for name in node.input if name in turns]
        if node.op_type == "MatMul" and given:
            names += [node.name, *given]
    return names


class _Reader:
    """Batches for onnxruntime's calibration, which asks one by one."""

    def __init__(self, name: str, batches: Sequence[np.ndarray]) -> None:
        self._name, self._left = name, iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        batch = next(self._left, None)
        return None if batch is None else {self._name: batch}


def _images(
    loaded: LoadedEncoder, folder: Path | None, *, needed: bool
) -> tuple[dict[Modality, np.ndarray], str]:
    """(n, 3, H, W) bytes per kind of images, and where they are from."""
    kinds: list[Modality] = [m for m in loaded.modalities if m != Modality.TEXT]
    try:
        if folder is not None:
            only = kinds[0] if len(kinds) == 1 else None
            samples: Sequence[Sample] = tuple(Source(folder, modality=only).samples())
            root = Source(folder, modality=only).root
        else:
            dataset = read(loaded.config)
            samples, root = dataset.train.samples, dataset.root
        result = {m: _decoded(loaded, _spread(samples, m), root) for m in kinds}
    except UserError as error:
        if needed or folder is not None:
            raise UserError(f"{error}; --images takes another folder") from error
        return _noise(loaded, kinds), f"{CHECKED} images of noise"
    if missing := [m for m in kinds if not len(result[m])]:
        raise UserError(f"no {' and no '.join(missing)} image in {folder or root}: --images FOLDER")
    least = min(len(result[m]) for m in kinds)
    return result, f"{least} images of {folder or 'the training data'}"


def _spread(samples: Sequence[Sample], modality: Modality) -> list[Sample]:
    own = [sample for sample in samples if sample.modality == modality]
    places = np.unique(np.linspace(0, len(own) - 1, min(CHECKED, len(own))).astype(int))
    return [own[place] for place in places]


def _decoded(loaded: LoadedEncoder, samples: Sequence[Sample], root: Path) -> np.ndarray:
    size = loaded.config.model
    images = np.empty((len(samples), 3, size.height, size.width), dtype=np.uint8)
    for row, sample in enumerate(samples):
        try:
            images[row] = loaded.read_image(root / sample.image)[0]
        except ValueError as error:
            raise UserError(str(error)) from error
    return images


def _noise(loaded: LoadedEncoder, kinds: Sequence[Modality]) -> dict[Modality, np.ndarray]:
    shape = (CHECKED, 3, loaded.config.model.height, loaded.config.model.width)
    drawn = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return dict.fromkeys(kinds, drawn)


def _fed(loaded: LoadedEncoder, form: Form, batch: np.ndarray) -> np.ndarray:
    return prepared(torch.from_numpy(batch), loaded, form).numpy()


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _run(session: Any, batch: np.ndarray) -> np.ndarray:
    (vectors,) = session.run(None, {session.get_inputs()[0].name: batch})
    return np.asarray(vectors)


def _smallest_cosine(one: Path, other: Path, batches: Sequence[np.ndarray]) -> float:
    pairs = [[_run(session, batch) for batch in batches] for session in map(_session, (one, other))]
    a, b = (np.concatenate(rows) for rows in pairs)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / lengths).min())


def _scored(loaded: LoadedEncoder, models: list[Exported], form: Form) -> list[Exported]:
    """With Rank-1 on the run's test images before and after, where that can be measured."""
    images = [model for model in models if model.modality != Modality.TEXT]
    try:
        dataset = read(loaded.config)
        embedded = [model.modality for model in images]
        if why := why_unmeasured(dataset.kind, dataset.test, embedded):
            raise UserError(f"of the test split {why}")
        console.print(f"ranking {len(dataset.test):,} test images with both sizes of the models")
        scores = []
        for suffix in (".fp32.onnx", ".onnx"):
            paths = {model.modality: model.path.with_suffix(suffix) for model in images}
            rows = _features(loaded, dataset.test, dataset.root, paths, form)
            scores.append(evaluate(dataset.kind, dataset.test, rows).headline["rank1"])
    except UserError as error:
        say(f"what smaller models cost in Rank-1 is not measured: {error}")
        return models
    rank1 = scores[0], scores[1]
    return [replace(model, rank1=rank1) if model in images else model for model in models]


def _features(
    loaded: LoadedEncoder, split: Split, root: Path, paths: dict[Modality, Path], form: Form
) -> np.ndarray:
    """Unit rows (N, D) of model files."""
    shape = (len(split), loaded.encoder.feature_dim)
    features = np.full(shape, np.nan, dtype=np.float32)  # of what no file embeds
    for modality, path in paths.items():
        session, rows = _session(path), split.rows(modality)
        for places in np.array_split(rows, max(1, len(rows) // _BATCH)):
            if len(places):
                images = _decoded(loaded, [split.samples[i] for i in places], root)
                features[places] = _run(session, _fed(loaded, form, images))
    lengths: np.ndarray = np.linalg.norm(features, axis=1, keepdims=True)
    unit: np.ndarray = features / lengths
    return unit
