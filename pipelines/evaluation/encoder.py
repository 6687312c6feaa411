"""A trained encoder, opened from a checkpoint for use: embedding, search, export, heat maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.config.run import RunConfig
from pipelines.data.decode import read_with_content
from pipelines.distributed.precision import autocast, set_tf32
from pipelines.errors import UserError
from pipelines.runs import checkpoint
from pipelines.runs.learned import Learned
from pipelines.runs.records import State
from reid_core.methods import METHODS
from reid_core.models import backbones
from reid_core.models.adaptation import merge_low_rank
from reid_core.models.backbones import Backbone
from reid_core.models.text_tower import TextTower
from reid_core.models.weight_files import Undrawn
from reid_core.stage import Encoder
from reid_core.types import Modality

log = logging.getLogger(__name__)
Space = Literal["descriptor", "joint"]
_SHOWN = 300  # characters of a library's reason


@dataclass(frozen=True)
class LoadedEncoder:
    """A trained encoder and what its users must know about it.

    Attributes:
        encoder: in eval mode on `device`, without gradients.
        modalities: what it embeds.
        tokenize: sentences -> (B, 77) int64 token ids, None where it embeds no text.
        config: of the run that trained it.
        device: where the encoder lies.
        fingerprint: of weights and space; vectors of different fingerprints cannot be compared.
        learned: what its weights do not tell.
    """

    encoder: Encoder
    modalities: tuple[Modality, ...]
    tokenize: Callable[[list[str]], Tensor] | None
    config: RunConfig
    device: torch.device
    fingerprint: str
    learned: Learned

    def embed_images(
        self, paths: Sequence[str | Path], modality: str, *, batch_size: int = 256
    ) -> np.ndarray:
        """Vectors of image files, decoded and resized as in training.

        Args:
            paths: of the images.
            modality: "visible" or "infrared", the kind of camera that saw them.
            batch_size: images per forward pass.

        Returns:
            (n, D) float32 unit rows, in the order of the paths.

        Raises:
            ValueError: a file that is no image, no list of paths, a modality that the encoder was
                not trained for.
        """
        images = [m for m in self.modalities if m != Modality.TEXT]
        if modality not in images:
            raise ValueError(f"{modality} images: this encoder embeds {' and '.join(images)}")
        kind = Modality(modality)
        if isinstance(paths, (str, Path)) or not all(isinstance(p, (str, Path)) for p in paths):
            raise ValueError("paths: give a list of paths of image files")
        vectors = np.empty((len(paths), self.encoder.feature_dim), dtype=np.float32)
        for start in range(0, len(paths), batch_size):
            rows = slice(start, start + batch_size)
            decoded = [self.read_image(Path(path))[0] for path in paths[rows]]
            vectors[rows] = self.vectors(torch.from_numpy(np.stack(decoded)), kind)
        return vectors

    def read_image(self, path: Path) -> tuple[np.ndarray, bytes]:
        """An image decoded and resized as in training, (3, H, W) uint8, and its file's content.

        Raises:
            ValueError: it cannot be read or decoded, or is larger than the run's
                `data.max_megapixels`; names the file.
        """
        size, limit = self.config.model, self.config.data.max_megapixels
        return read_with_content(path, height=size.height, width=size.width, max_megapixels=limit)

    @torch.inference_mode()
    def vectors(self, inputs: Tensor, modality: Modality) -> np.ndarray:
        """Unit rows (B, D) float32 of decoded images or tokens, in the precision of the run."""
        with autocast(self.device, self.config.trainer.precision):
            rows = self.encoder.embed(inputs.to(self.device), modality)
        return rows.float().cpu().numpy()


@runtime_checkable
class Projecting(Encoder, Protocol):
    """An encoder whose images can be taken to CLIP's joint space too."""

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Image features (B, E), not normalized."""


class JointSpace(torch.nn.Module):
    """Images and sentences in CLIP's joint space: unit rows of g and of the text tower.

    Descriptors of the image methods (f) lie in a space of their own; this is the one in which a
    sentence can be compared with an image.
    """

    def __init__(self, images: Projecting, text: TextTower) -> None:
        super().__init__()
        self.images, self.text = images, text
        self.feature_dim = text.embed_dim

    def embed(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Unit rows (B, E); see `reid_core.stage.Encoder`."""
        if modality == Modality.TEXT:
            return functional.normalize(self.text.encode_text(inputs).float(), dim=1)
        return functional.normalize(self.images.project(inputs, modality).float(), dim=1)


def open_encoder(
    path: Path, *, space: Space = "descriptor", device: torch.device | None = None
) -> LoadedEncoder:
    """The encoder of a checkpoint.

    Args:
        path: checkpoint folder or run directory.
        space: "descriptor", what the method was trained to rank by, or "joint", where sentences
            can be compared with images.
        device: to lie on, None for a GPU if there is one.

    Raises:
        UserError: no such checkpoint, one without a trained encoder or with weights that are not
            finite, or no such space, of a model without texts too.
    """
    if space not in get_args(Space):
        raise UserError(f"--space {space}: choose {' or '.join(get_args(Space))}")
    folder = checkpoint.find(path)
    state = checkpoint.load(folder)
    config = checkpoint.config_of(state, folder)
    method = METHODS[config.method]
    try:
        with Undrawn():
            start = Learned.of(state).load(config.model, None)
            encoder = _encoder(config, start, state["module"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        progress = state.get("progress")
        stage = progress.get("stage") if isinstance(progress, dict) else None
        said = " ".join(str(error).split())[:_SHOWN]  # torch lists every weight
        raise UserError(
            f"{folder} was written in stage {stage!r} and holds no trained encoder of its "
            "model and method: wait for a later stage, or give another checkpoint folder "
            f"({type(error).__name__}: {said})"
        ) from error
    assert isinstance(encoder, torch.nn.Module)
    for name, weights in encoder.state_dict().items():
        if not torch.isfinite(weights).all():
            raise UserError(
                f"{folder}: {name} holds numbers that are not finite: give an older checkpoint "
                "folder, and train again with a lower learning rate"
            )
    text = getattr(encoder, "text", None) if Modality.TEXT in method.inputs else None
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_tf32(config.trainer.allow_tf32)
    loaded = LoadedEncoder(
        encoder=encoder.to(device).eval().requires_grad_(False),
        modalities=method.inputs,
        tokenize=None if text is None else text.tokenize,
        config=config,
        device=device,
        fingerprint=_fingerprint(state, space),
        learned=Learned.of(state),
    )
    return in_joint_space(loaded, loaded.fingerprint) if space == "joint" else loaded


def in_joint_space(loaded: LoadedEncoder, fingerprint: str) -> LoadedEncoder:
    """An encoder of descriptors that embeds into the joint space; it shares the image weights.

    Args:
        loaded: itself where its descriptors can be compared with sentences.
        fingerprint: in the joint space.

    Raises:
        UserError: its model has no texts.
    """
    if loaded.tokenize is not None:
        return loaded
    text = _text_tower(loaded)
    assert isinstance(loaded.encoder, Projecting)
    if not METHODS[loaded.config.method].needs_text(loaded.config.settings):
        log.warning(
            "--space joint: this run trained its images without texts, so what they are compared "
            "with sentences by is the starting model's and was not trained along: try such answers "
            "before you trust them, or train with texts (cclnet.image_to_text above 0, or CPCL)"
        )
    encoder = JointSpace(loaded.encoder, text).to(loaded.device).eval().requires_grad_(False)
    return replace(
        loaded,
        encoder=encoder,
        modalities=(*loaded.modalities, Modality.TEXT),
        tokenize=text.tokenize,
        fingerprint=fingerprint,
    )


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of its encoder, which is not built.

    Attributes:
        config: of the run.
        modalities: what it embeds into its space of descriptors.
        fingerprints: of each space, see `LoadedEncoder`.
    """

    config: RunConfig
    modalities: tuple[Modality, ...]
    fingerprints: dict[Space, str]


def describe(path: Path) -> Description:
    """What an encoder of a checkpoint folder or run directory would be.

    Raises:
        UserError: no such checkpoint.
    """
    folder = checkpoint.find(path)
    state = checkpoint.load(folder)
    config = checkpoint.config_of(state, folder)
    fingerprints = {space: _fingerprint(state, space) for space in get_args(Space)}
    return Description(config, METHODS[config.method].inputs, fingerprints)


def _fingerprint(state: State, space: Space) -> str:
    parts: dict[str, object] = {"module": state.get("module"), "space": space}
    model = state["config"].get("model")
    if isinstance(model, dict) and str(model.get("name")).startswith("solider/"):
        parts["maps"] = "padded before they are shifted"  # as its authors'
    return checkpoint.content_hash(parts)[:16]


def _text_tower(loaded: LoadedEncoder) -> TextTower:
    """The sentences' half of the model that training started from."""
    model = loaded.config.model
    if not backbones.has_text(model.name):
        raise UserError(f"--space joint: {backbones.without_text(model.name)}")
    return loaded.learned.load(model, model.pretrained).text


def open_start(loaded: LoadedEncoder) -> Encoder:
    """What an encoder was before training, on the same device.

    Raises:
        ValueError: the weights that training started from are not at hand.
    """
    model = loaded.config.model
    encoder = _encoder(loaded.config, loaded.learned.load(model, model.pretrained), None)
    return encoder.to(loaded.device).eval().requires_grad_(False)


def _encoder(config: RunConfig, start: Backbone, state: dict[str, Tensor] | None) -> Encoder:
    """The method's encoder: of a module state, or as `start` has it."""
    size = config.model
    encoder = METHODS[config.method].load_encoder(
        config.settings, start, size.height, size.width, state
    )
    assert isinstance(encoder, torch.nn.Module)
    merge_low_rank(encoder)
    return encoder
