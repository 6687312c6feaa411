"""What a service answers with: its settings, and what a gallery and a checkpoint say to them."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.evaluation.calibrated import Calibrated
from pipelines.evaluation.encoder import LoadedEncoder, describe, in_joint_space
from pipelines.retrieval.gallery import Gallery, tables
from pipelines.retrieval.search import encoder_of, probabilities_of, require_made_by, space_of
from pipelines.runs.checkpoint import find
from pipelines.service.desk import Desk, Input
from pipelines.service.guard import is_loopback
from reid_core.types import Modality

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a gallery is served.

    Attributes:
        gallery: folder or URI.
        space: of the vectors; None for descriptors, beside which the table of the joint space
            answers sentences where the gallery has one.
        checkpoint: where the encoder lies, None for where it lay.
        prior: see `pipelines.evaluation.calibrated.Calibrated`.
        host, port: to listen on.
        token: that requests must bear; needed where `host` is not loopback.
        uploads: folder for images that are added; None takes none.
        min_replicas, max_replicas: encoders; Ray starts more while requests queue.
        gpu: True waits for a free GPU per encoder, False takes none; None takes GPUs where enough
            are free, or else CPU cores.
        max_batch: images per forward pass.
        batch_wait_s: how long the first of a batch waits for others.
    """

    gallery: str
    space: str | None = None
    checkpoint: Path | None = None
    prior: float | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    uploads: Path | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    gpu: bool | None = None
    max_batch: int = 32
    batch_wait_s: float = 0.005

    def check(self) -> None:
        """Refuse what must not be served.

        Raises:
            UserError: no token although others can reach it, or a short one.
        """
        if not is_loopback(self.host) and not self.token:
            raise UserError(
                f"--host {self.host} can be reached by others: set CROSSREID_TOKEN to a secret "
                "that clients must send, or serve on 127.0.0.1"
            )
        if self.token and len(self.token) < 16:
            raise UserError("CROSSREID_TOKEN has fewer than 16 characters: it could be guessed")

    def check_port(self) -> None:
        """Refuse a port on which this machine cannot listen.

        Raises:
            UserError: it is in use, or not ours to take.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise UserError(
                    f"cannot listen on {self.host}:{self.port}: {error.strerror}; choose another "
                    "--port"
                ) from error


class Encoding:
    """Embeds batches of images and sentences.

    Args:
        loaded: the encoder.
        joint: the same one into the space of the table of words, None where there is none.
    """

    def __init__(self, loaded: LoadedEncoder, joint: LoadedEncoder | None = None) -> None:
        self._loaded, self._joint = loaded, joint

    def embed(self, inputs: Sequence[Input]) -> list[np.ndarray]:
        """(D,) unit rows, in the order of the inputs."""
        rows: list[np.ndarray] = [np.empty(0)] * len(inputs)
        for kind in dict.fromkeys((one.modality, one.joint) for one in inputs):
            places = [i for i, one in enumerate(inputs) if (one.modality, one.joint) == kind]
            loaded = self._joint if kind[1] else self._loaded
            assert loaded is not None
            own = [inputs[i].content for i in places]
            if kind[0] == Modality.TEXT:
                assert loaded.tokenize is not None
                batch = loaded.tokenize([str(one) for one in own])
            else:
                batch = torch.from_numpy(np.stack([np.asarray(one) for one in own]))
            for place, row in zip(places, loaded.vectors(batch, kind[0]), strict=True):
                rows[place] = row
        return rows


@dataclass(frozen=True)
class Plan:
    """What is served: small, for every replica, and the same for all of them.

    Attributes:
        settings: as they were given.
        checkpoint: folder of the encoder: a run that is trained on has others later, and a
            replica that starts again must find this one.
        calibrated: of the encoder, None where nothing was; routes that start again need no file.
        config: of the run that trained the encoder.
        space, fingerprint: of the table that is searched.
        words: fingerprint of the table of the joint space that sentences ask, "" without.
        modalities: that can be asked.
    """

    settings: Settings
    checkpoint: Path
    calibrated: Calibrated | None
    config: RunConfig
    space: str
    fingerprint: str
    words: str
    modalities: tuple[Modality, ...]

    def gallery(self) -> Gallery:
        """The table that is searched."""
        uri = self.settings.gallery
        return Gallery.open(uri, space=self.space, fingerprint=self.fingerprint)


def plan_of(settings: Settings) -> Plan:
    """What a gallery and the checkpoint of its encoder say; no encoder is built.

    Raises:
        UserError: no such gallery or checkpoint, one of other weights, or a prior that
            `probabilities_of` refuses.
    """
    gallery = Gallery.open(settings.gallery, space=settings.space)
    place = find(settings.checkpoint or Path(gallery.facts.checkpoint))
    encoder = describe(place)
    require_made_by(gallery, place, encoder.fingerprints[space_of(gallery)])
    calibrated = probabilities_of(gallery, place, settings.prior)
    words, asked = "", encoder.modalities
    if settings.space is None and gallery.facts.space != "joint" and Modality.TEXT not in asked:
        words = _words(settings.gallery, encoder.fingerprints["joint"])
    if (words or gallery.facts.space == "joint") and Modality.TEXT not in asked:
        asked = (*asked, Modality.TEXT)
    of = gallery.facts
    return Plan(settings, place, calibrated, encoder.config, of.space, of.fingerprint, words, asked)


def _words(uri: str, fingerprint: str) -> str:
    """The fingerprint of an encoder's joint space where a gallery has its table, else ""."""
    joint = {one.fingerprint for one in tables(uri) if one.space == "joint"}
    if joint and fingerprint not in joint:
        log.warning(
            "no sentences: the joint space of %s is another encoder's; `crossreid gallery add` "
            "with --space joint and --new-encoder adds this one's",
            uri,
        )
    return fingerprint if fingerprint in joint else ""


def desk_of(plan: Plan) -> Desk:
    """What answers."""
    settings, size, words = plan.settings, plan.config.model, None
    if plan.words:
        words = Gallery.open(settings.gallery, space="joint", fingerprint=plan.words)
    return Desk(
        plan.gallery(),
        words=words,
        calibrated=plan.calibrated,
        modalities=plan.modalities,
        size=(size.height, size.width),
        uploads=settings.uploads,
    )


def encoding_of(plan: Plan, device: torch.device | None = None) -> Encoding:
    """What embeds for it, on a device (None: a GPU if there is one); spaces share image weights.

    Raises:
        UserError: see `encoder_of`.
    """
    loaded = encoder_of(plan.gallery(), plan.checkpoint, device=device)
    return Encoding(loaded, in_joint_space(loaded, plan.words) if plan.words else None)
