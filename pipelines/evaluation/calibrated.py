"""What a cosine of a run's vectors means: its calibration, as a file beside the checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.runs import checkpoint
from pipelines.storage.files import write_json
from reid_core.calibration import Calibration

FILE = "calibration.json"
FORMAT = 1
VALIDATION = "validation identities"
TRAINED = "validation identities that training used too"
PSEUDO = "pseudo-labels of the last epoch"


@dataclass(frozen=True)
class Calibrated:
    """Probabilities for the vectors of one encoder.

    Attributes:
        fingerprint: of the encoder, in its space of descriptors.
        source: `VALIDATION`, `TRAINED` or `PSEUDO`.
        maps: per pair of modalities, "infrared visible", in the order of the alphabet.
        error: per pair, expected calibration error on the pairs of the fit, at `Calibration.prior`.
        reliability: per pair, rows of weight, mean probability and share of equal pairs.
        prior: share of equal pairs to assume, None for that of the fit.
        of_all: whether the priors of the fit are shares of all labeled images; those of older
            versions are too high where there were more images than a fit takes.
    """

    fingerprint: str
    source: str
    maps: dict[str, Calibration]
    error: dict[str, float]
    reliability: dict[str, list[list[float]]]
    prior: float | None = None
    of_all: bool = True

    @property
    def caution(self) -> str:
        """Why the probabilities are too sure of themselves, "" where they need not be."""
        if self.source == TRAINED:
            return "the encoder knows these identities: expect less of others (data.fit=train)"
        if self.source == PSEUDO:
            return "these come from the same vectors and know easy pairs alone: expect less"
        return ""

    def knows(self, modality: str) -> bool:
        """Whether a query of a modality has a probability with anything."""
        return any(modality in name.split() for name in self.maps)

    def described(self) -> str:
        """What the probabilities rest on, in words."""
        text = f"probabilities were fitted on {self.source}"
        return f"{text}: {self.caution}" if self.caution else text

    def probability(self, cosine: float, one: str, other: str) -> float | None:
        """P(same identity) of a pair, None where its modalities were not calibrated."""
        fitted = self.maps.get(pair_of(one, other))
        return None if fitted is None else float(fitted(cosine, prior=self.prior))

    def at_prior(self, prior: float | None) -> Calibrated:
        """The same for another share of equal pairs.

        Raises:
            UserError: it is no share.
        """
        if prior is not None and not 0 < prior < 1:
            raise UserError(f"--prior {prior}: the share of rows that show the queried identity")
        return replace(self, prior=prior)


def pair_of(one: str, other: str) -> str:
    """Name of an unordered pair of modalities."""
    return " ".join(sorted((str(one), str(other))))


def save(path: Path, calibrated: Calibrated) -> Path:
    """Write beside the checkpoint that a path means; returns the file."""
    target = checkpoint.find(path) / FILE
    content = asdict(calibrated) | {"format": FORMAT}
    del content["prior"]
    write_json(target, content)
    return target


def load(path: Path, *, fingerprint: str | None = None) -> Calibrated | None:
    """The calibration of the checkpoint that a path means, None where there is none.

    Args:
        path: checkpoint folder or run directory.
        fingerprint: of the vectors; those of other weights have no calibration here.

    Raises:
        UserError: the file is damaged, or of another format.
    """
    try:
        file = checkpoint.find(path) / FILE
    except UserError:
        return None
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise UserError(f"{file} has another format: run `crossreid calibrate` again")
        content.setdefault("of_all", False)
        maps = {name: _map(one) for name, one in content.pop("maps").items()}
        known = Calibrated(maps=maps, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: run `crossreid calibrate` again ({error})") from error
    return known if fingerprint in (None, known.fingerprint) else None


def _map(content: dict[str, Any]) -> Calibration:
    numbers = {name: tuple(content[name]) for name in ("knots", "probabilities")}
    return Calibration(**numbers, prior=float(content["prior"]), kind=str(content["kind"]))
