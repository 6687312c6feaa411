"""CSDN, stage 3: images learn identities and the texts of these, and what retrieval sees of them.

Shapes: B rows of a worker's slice per modality, G of the global batch, C identities, D trunk
channels, E joint embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_core import losses
from reid_core.method import Labels
from reid_core.methods.csdn import optimization
from reid_core.methods.csdn.settings import INPUTS, Config, num_identities, seed_of
from reid_core.models.backbones import Backbone
from reid_core.models.encoders import Features, ImageEncoder
from reid_core.stage import Epoch, Gather, Terms, gather_together
from reid_core.types import Batch, Modality, Term


def build_encoder(config: Config, backbone: Backbone, *, height: int, width: int) -> ImageEncoder:
    """Two stems, one trunk, attention pool, GeM with a learnable exponent, neck with a bias."""
    encoder = ImageEncoder(
        backbone, height=height, width=width, stem_relu=config.stem_relu, learnable_gem=True
    )
    encoder.requires_grad_(True)
    return encoder


class Descriptor(nn.Module):
    """The encoder as retrieval sees it: the neck's f and the projected g side by side.

    f is taken behind its BatchNorm and g in front of its own. All parts of a descriptor have equal
    length, so that a product of two descriptors is the mean of the parts' cosines: the order of
    the reference, which adds them up.
    """

    def __init__(self, encoder: ImageEncoder, *, flip: bool) -> None:
        """Shares the encoder's parameters; with `flip` the mirrored image's parts come behind."""
        super().__init__()
        self.encoder = encoder
        self.flip = flip
        self.feature_dim = (encoder.feature_dim + encoder.embed_dim) * (2 if flip else 1)

    def embed(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Unit rows (B, D + E), twice as wide with `flip`, of (B, 3, H, W) uint8 images."""
        parts = self._parts(inputs, modality)
        if self.flip:
            parts += self._parts(inputs.flip(-1), modality)
        return torch.cat(parts, dim=1) / math.sqrt(len(parts))

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """CLIP's image features g (B, E), not normalized."""
        return self.encoder.project(inputs, modality)

    def _parts(self, inputs: Tensor, modality: Modality) -> list[Tensor]:
        if modality not in INPUTS:
            raise ValueError(f"no stem for {modality!r}: only for {' and '.join(INPUTS)} images")
        sides = {m: inputs if m == modality else None for m in INPUTS}
        features = self.encoder(*sides.values())
        return [
            functional.normalize(features.neck, dim=1),
            functional.normalize(features.projected.float(), dim=1),
        ]


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives for all rows of both modalities, visible ones first.

    Attributes:
        features: of the encoder.
        scores: (B, C) of identities, from the neck's feature.
        projected_scores: (B, C), from the batch-normalized projected feature.
    """

    features: Features
    scores: Tensor
    projected_scores: Tensor


class ImageModel(nn.Module):
    """The encoder with one classifier on each of its two features.

    Args:
        encoder: with the first weights; trained in place.
        num_identities: C.
        seed: of the classifiers' first values.
    """

    def __init__(self, encoder: ImageEncoder, num_identities: int, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = _classifier(encoder.feature_dim, num_identities, seed=seed)
        self.projected_neck = nn.BatchNorm1d(encoder.embed_dim)
        self.projected_classifier = _classifier(encoder.embed_dim, num_identities, seed=seed + 1)

    def forward(self, visible: Tensor, infrared: Tensor) -> Outputs:
        """Features and scores of uint8 images (B_v, 3, H, W) and (B_i, 3, H, W)."""
        features = self.encoder(visible, infrared)
        return Outputs(
            features,
            self.classifier(features.neck),
            self.projected_classifier(self.projected_neck(features.projected)),
        )


def _classifier(width: int, num_identities: int, *, seed: int) -> nn.Linear:
    layer = nn.Linear(width, num_identities, bias=False)
    drawn = torch.randn(num_identities, width, generator=torch.Generator().manual_seed(seed))
    layer.weight = nn.Parameter(0.001 * drawn)
    return layer


class Imaging:
    """Stage "images": the whole image side, with the identities and the frozen anchors.

    Args:
        config: the method's settings.
        encoder: with the first weights; trained in place.
        identities: per modality (n,) identities from 0, -1 unknown.
        guides: per modality (C, E) anchors, see `anchors`; None without text.
        seed: of the classifiers' first values.
    """

    def __init__(
        self,
        config: Config,
        encoder: ImageEncoder,
        *,
        identities: Labels,
        guides: Mapping[Modality, Tensor] | None,
        seed: int,
    ) -> None:
        self.config = config
        self.epochs = config.images.epochs
        self.evaluate_every = config.images.evaluate_every
        self.encoder = Descriptor(encoder, flip=config.flip_test)
        self.module = ImageModel(encoder, num_identities(identities), seed=seed_of(seed, "heads"))
        self._guides = guides

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Stage`."""
        return optimization.optimizer(self.config, "images", self.module)

    def learning_rate(self, epoch: int) -> float:
        """See `Stage`."""
        return optimization.learning_rate(self.config, "images", epoch)

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Bring the anchors to the images."""
        device = next(self.module.parameters()).device
        if self._guides is not None:
            self._guides = {m: x.to(device) for m, x in self._guides.items()}

    def on_host(self, batch: dict[Modality, Batch]) -> dict[Modality, Batch]:
        """As it is."""
        return batch

    def terms(self, model: nn.Module, batch: Mapping[Modality, Batch], gather: Gather) -> Terms:
        """See `image_terms`; the visible batch holds two views of each row, side by side."""
        outputs = model(*(batch[m].images for m in INPUTS))
        labels = [batch[m].labels for m in INPUTS]
        return image_terms(self.config, outputs, *labels, guides=self._guides, gather=gather)

    def update(self, gather: Gather) -> None:
        """No memory."""

    def hand_on(self) -> dict[str, Tensor]:
        """The last stage."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing beside the module."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing beside the module."""


def image_terms(
    config: Config,
    outputs: Outputs,
    visible: Tensor,
    infrared: Tensor,
    *,
    guides: Mapping[Modality, Tensor] | None,
    gather: Gather,
) -> Terms:
    """The losses of one step of stage 3.

    L = CE(scores) + CE(projected scores) + msel (MSEL(f) + MSEL(g))
        + lambda1 (WRT(f) + WRT(g)) + lambda2 CE(g_v T_v^T) + lambda3 CE(g_r T_r^T)

    f is the pooled feature, raw. The exchanged view of a visible image enters CE and WRT only.
    Row-wise losses are of this worker's rows; WRT and MSEL compare rows, so they are of the whole
    global batch, on every worker alike.

    Args:
        config: the method's settings.
        outputs: of 2 B visible images, two views of each row side by side, and B infrared ones.
        visible, infrared: (B,) identities of the rows.
        guides: per modality (C, E) anchors; None without text.
        gather: see `Gather`.

    Reference: CSDN, stage 3.
    """
    size = len(visible)
    identities = torch.cat([visible.repeat_interleave(2), infrared])
    result = {
        "identity": Term(
            losses.identity_cross_entropy(outputs.scores, identities), len(identities)
        ),
        "projected_identity": Term(
            losses.identity_cross_entropy(outputs.projected_scores, identities), len(identities)
        ),
    }
    projected = _by_view(outputs.features.projected, size)
    if guides is not None:
        weights = dict(zip(INPUTS, (config.lambda2, config.lambda3), strict=True))
        for m, g, y in zip(INPUTS, (projected[0], projected[2]), (visible, infrared), strict=True):
            text = losses.image_to_text(g, y, guides[m], smoothing=0.0)
            result[f"{m}_to_text"] = Term(text, size, weights[m])
    pooled = torch.cat(_by_view(outputs.features.pooled, size), dim=1)
    both = gather_together(gather, pooled, torch.cat(projected, dim=1), visible, infrared)
    for prefix, views in (("", both[0]), ("projected_", both[1])):
        for name, term in _compared(config, views, both[2], both[3]).items():
            result[prefix + name] = term
    return result


def _compared(config: Config, x: Tensor, visible: Tensor, infrared: Tensor) -> Terms:
    """WRT and, where it has a weight, MSEL of one kind of feature over the global batch."""
    views = x.tensor_split(3, dim=1)  # (G, 3 D) -> three times (G, D)
    triplet = losses.weighted_regularised_triplet(
        torch.cat(views),
        torch.cat([visible, visible, infrared]),
        stable=config.triplet == "stable",
    )
    result = {"triplet": Term(triplet, 3 * len(visible), config.lambda1)}
    if config.msel:
        shared = losses.modality_shared_enhancement(
            torch.cat([views[0], views[2]]),
            torch.cat([visible, infrared]),
            torch.arange(2, device=x.device).repeat_interleave(len(visible)),
        )
        result["shared"] = Term(shared, 2 * len(visible), config.msel)
    return result


def _by_view(x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a mixed batch -> visible view 1, visible view 2, infrared, each (size, ...)."""
    visible = x[: 2 * size].unflatten(0, (size, 2))
    return visible[:, 0], visible[:, 1], x[2 * size :]
