"""From a cosine to the probability that two images show one identity.

A map of cosines to probabilities is fitted on pairs whose answer is known, and bent to other shares
of equal pairs by Bayes' rule. Shapes: M pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

_ISOTONIC_FROM = 1000  # pairs of either kind; with fewer its steps follow single pairs
_KNOTS = 64
_FLOOR = 1e-6  # no pair is certain


@dataclass(frozen=True)
class Calibration:
    """A rising map of cosines to probabilities.

    Attributes:
        knots: (n,) cosines, rising.
        probabilities: (n,) at the knots, as if half of all pairs were of one identity; between
            knots the logarithm of the odds is interpolated.
        prior: share of equal pairs among all of the images that it was fitted on.
        kind: "isotonic" or "logistic".
    """

    knots: tuple[float, ...]
    probabilities: tuple[float, ...]
    prior: float
    kind: str

    def __call__(self, cosines: np.ndarray | float, *, prior: float | None = None) -> np.ndarray:
        """P(same identity | cosine).

        Args:
            cosines: of pairs, any shape.
            prior: share of equal pairs where it is used; None for that of the fit.

        Raises:
            ValueError: a prior outside (0, 1).
        """
        prior = self.prior if prior is None else prior
        if not 0 < prior < 1:
            raise ValueError(f"a prior is a share between 0 and 1, not {prior}")
        odds = np.interp(
            cosines, self.knots, _log_odds(np.clip(self.probabilities, _FLOOR, 1 - _FLOOR))
        )
        probability: np.ndarray = expit(odds + _log_odds(np.asarray(prior)))
        return probability


def fit(cosines: np.ndarray, same: np.ndarray) -> Calibration:
    """Isotonic regression where there are many pairs, else logistic regression.

    Either is fitted as if there were as many equal pairs as others: their share is a property of
    who is compared, not of the encoder, and `Calibration.prior` remembers it.

    Args:
        cosines: (M,) of the pairs.
        same: (M,) bool, whether both images show one identity.

    Raises:
        ValueError: no pair of one of the two kinds, or a cosine that is not finite.

    Reference: Zadrozny and Elkan, KDD 2002 (isotonic); Platt, 1999 (logistic).
    """
    cosines, same = np.asarray(cosines, dtype=np.float64), np.asarray(same, dtype=bool)
    counts = int(same.sum()), int((~same).sum())
    if not min(counts):
        raise ValueError(f"{counts[0]} equal and {counts[1]} different pairs: both are needed")
    if not np.isfinite(cosines).all():
        raise ValueError("a cosine is not finite")
    weights = np.where(same, 0.5 / counts[0], 0.5 / counts[1])
    if min(counts) >= _ISOTONIC_FROM:
        knots, probabilities, kind = *_isotonic(cosines, same, weights), "isotonic"
    else:
        knots, probabilities, kind = *_logistic(cosines, same, weights), "logistic"
    return Calibration(
        knots=tuple(knots.tolist()),
        probabilities=tuple(probabilities.clip(_FLOOR, 1 - _FLOOR).tolist()),
        prior=counts[0] / len(same),
        kind=kind,
    )


def reliability(
    probabilities: np.ndarray,
    same: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    num_bins: int = 15,
) -> np.ndarray:
    """(num_bins, 3): weight, mean probability and share of equal pairs per bin of equal width.

    Empty bins have weight 0 and NaN beside it. The weights sum to 1.
    """
    weights = np.ones(len(same)) if weights is None else np.asarray(weights, dtype=np.float64)
    bins = np.minimum((np.asarray(probabilities) * num_bins).astype(int), num_bins - 1)
    total = np.bincount(bins, weights, num_bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(bins, weights * probabilities, num_bins) / total
        share = np.bincount(bins, weights * same, num_bins) / total
    return np.stack([total / total.sum(), mean, share], axis=1)


def expected_error(table: np.ndarray) -> float:
    """Expected calibration error of a table of `reliability`: weighted mean of |share - mean|.

    Reference: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.
    """
    used = table[table[:, 0] > 0]
    return float((used[:, 0] * np.abs(used[:, 1] - used[:, 2])).sum())


def _isotonic(
    cosines: np.ndarray, same: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At knots that hold equal weight each, so that the map is small."""
    from sklearn.isotonic import IsotonicRegression  # its package takes a second

    fitted = IsotonicRegression(y_min=_FLOOR, y_max=1 - _FLOOR, out_of_bounds="clip")
    fitted.fit(cosines, same.astype(np.float64), sample_weight=weights)
    order = np.argsort(cosines)
    shares = np.cumsum(weights[order])
    places = np.searchsorted(shares / shares[-1], np.linspace(0, 1, _KNOTS)).clip(0, len(order) - 1)
    knots = np.unique(cosines[order][places])
    return knots, fitted.predict(knots)


def _logistic(
    cosines: np.ndarray, same: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e3, max_iter=1000)
    fitted.fit(cosines[:, None], same, sample_weight=weights * len(same))
    knots = np.linspace(-1, 1, _KNOTS)
    odds = knots * max(float(fitted.coef_[0, 0]), 0.0) + float(fitted.intercept_[0])
    return knots, 1 / (1 + np.exp(-odds))


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    odds: np.ndarray = np.log(probabilities) - np.log1p(-probabilities)
    return odds
