"""Where the encoder looks, before and after training: what makes a query and its answer alike.

Needs torch and a checkpoint, so the page imports it only where a run has one.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.data import roots
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder, open_start
from pipelines.report.ranklists import below, choose
from pipelines.storage.shards import read_bytes
from reid_core.attribution import heat_maps
from reid_core.datasets import LAYOUTS
from reid_core.images import open_rgb
from reid_core.stage import Encoder
from reid_core.types import Modality

NUM_PAIRS_PER_GROUP = 2
_HEIGHT_PX = 160
_OPACITY = 0.65  # of the hottest place; the image below must stay recognizable


@dataclass(frozen=True)
class Side:
    """An image, plain and with the heat maps of before and after training, as data URIs."""

    plain: str
    before: str
    after: str


@dataclass(frozen=True)
class Pair:
    """A query and its first answer.

    Attributes:
        query: None where the query is a sentence.
        caption: that sentence, or "".
        answer: the first answer.
        before, after: similarity of the two, before and after training.
        right: whether they show one identity.
    """

    query: Side | None
    caption: str
    answer: Side
    before: float
    after: float
    right: bool


def pairs(run_dir: Path, data: Mapping[str, object], final: Mapping[str, np.ndarray]) -> list[Pair]:
    """Some of the best and of the worst queries with their first answers.

    Args:
        run_dir: with a checkpoint.
        data: the configuration's data section, kind and root.
        final: arrays of evaluation/final.npz with rank lists.

    Raises:
        UserError: no trained encoder in the checkpoint.
        OSError, ValueError: an image or the weights of the start cannot be read, or the encoder
            has no places to look at.
    """
    loaded = open_encoder(run_dir, device=torch.device("cpu"))  # GPUs may be other runs'
    root = Path(str(data["root"]))
    encoders = (open_start(loaded), loaded.encoder)
    asked, searched = _modalities(str(data["kind"]), root)
    best, _, worst = choose(final["ap"], final["query_images"], num=NUM_PAIRS_PER_GROUP)
    return [_pair(loaded, encoders, final, q, root, asked, searched) for q in best + worst]


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """An image with a heat map on it: the hotter, the more of the map's color.

    Args:
        image: RGB; shown in gray, so that no color of the clothes is taken for heat.
        heat: (H, W) in [0, 1], stretched over the image.
    """
    size = (image.width, image.height)
    stretched = Image.fromarray(np.float32(heat)).resize(size, Image.Resampling.BILINEAR)
    values = np.clip(np.asarray(stretched), 0, 1)
    gray = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    colors = 255 * matplotlib.colormaps["inferno"](values)[..., :3]
    opacity = (_OPACITY * values)[..., None]
    return Image.fromarray(np.uint8((1 - opacity) * gray + opacity * colors))


def _modalities(kind: str, root: Path) -> tuple[Modality, Modality]:
    """Of the queries and of the answers of the headline protocol."""
    asked, searched = LAYOUTS[kind].asked
    if asked is None or searched is None:  # a converted data set knows what it was
        asked, searched = LAYOUTS[roots.read(kind, root).kind].asked
    return asked or Modality.INFRARED, searched or Modality.VISIBLE


def _pair(
    loaded: LoadedEncoder,
    encoders: tuple[Encoder, Encoder],
    final: Mapping[str, np.ndarray],
    query: int,
    root: Path,
    asked: Modality,
    searched: Modality,
) -> Pair:
    image = below(root, str(final["query_images"][query]))
    answer = below(root, str(final["gallery_images"][final["top"][query][0]]))
    caption, shown = "", _input(loaded, answer)
    if asked == Modality.TEXT:
        assert loaded.tokenize is not None
        caption = str(final["query_captions"][query])
        inputs = loaded.tokenize([caption]).to(loaded.device)
    else:
        inputs = _input(loaded, image)
    vectors = [(one.embed(inputs, asked), one.embed(shown, searched)) for one in encoders]
    before, after = (float((q * a).sum()) for q, a in vectors)
    side = partial(_side, loaded.config.data.max_megapixels)
    return Pair(
        query=None if caption else side(image, encoders, inputs, asked, [a for _, a in vectors]),
        caption=caption,
        answer=side(answer, encoders, shown, searched, [q for q, _ in vectors]),
        before=before,
        after=after,
        right=bool(final["top_correct"][query, 0]),
    )


def _side(
    max_megapixels: float,
    image: Path,
    encoders: tuple[Encoder, Encoder],
    inputs: Tensor,
    modality: Modality,
    targets: Sequence[Tensor],
) -> Side:
    opened = open_rgb(read_bytes(image), max_megapixels=max_megapixels)
    width = max(round(opened.width * _HEIGHT_PX / opened.height), 1)
    shown = opened.resize((width, _HEIGHT_PX), Image.Resampling.LANCZOS)
    hot = []
    for encoder, target in zip(encoders, targets, strict=True):
        assert isinstance(encoder, nn.Module)
        (heat,) = heat_maps(encoder, inputs, modality, target)
        hot.append(_uri(overlay(shown, heat.cpu().numpy())))
    return Side(_uri(shown), *hot)


def _input(loaded: LoadedEncoder, image: Path) -> Tensor:
    """One image as the encoder takes it: (1, 3, H, W) uint8."""
    return torch.from_numpy(loaded.read_image(image)[0][None]).to(loaded.device)


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
