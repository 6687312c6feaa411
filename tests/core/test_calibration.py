"""Probabilities from cosines: right where the truth is known, bent to another prior by Bayes."""

from __future__ import annotations

import numpy as np
import pytest

from reid_core.calibration import Calibration, expected_error, fit, reliability


def drawn(count: int, *, prior: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of equal pairs around .6, of others around .2, deviation .15 each."""
    rng = np.random.default_rng(seed)
    same = rng.random(count) < prior
    return rng.normal(np.where(same, 0.6, 0.2), 0.15), same


def truth(cosines: np.ndarray, prior: float) -> np.ndarray:
    """P(same | cosine) of `drawn`, by Bayes' rule over two normal densities."""
    odds = (0.4 * cosines - 0.16) / 0.15**2 + np.log(prior / (1 - prior))
    return 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize(("count", "kind"), [(800, "logistic"), (40_000, "isotonic")])
def test_the_true_probability_is_recovered(count: int, kind: str) -> None:
    fitted = fit(*drawn(count, prior=0.3, seed=0))
    assert fitted.kind == kind
    cosines = np.linspace(0.2, 0.6, 9)
    np.testing.assert_allclose(fitted(cosines), truth(cosines, 0.3), atol=0.06)


@pytest.mark.parametrize("prior", [0.01, 0.5])
def test_another_share_of_equal_pairs_is_known_beforehand(prior: float) -> None:
    """Fitted where a third is equal, right where a hundredth is."""
    fitted = fit(*drawn(40_000, prior=0.3, seed=0))
    cosines, same = drawn(40_000, prior=prior, seed=1)
    assert expected_error(reliability(fitted(cosines, prior=prior), same)) < 0.02
    if prior == 0.01:
        assert expected_error(reliability(fitted(cosines), same)) > 0.05


@pytest.mark.parametrize("prior", [0.5, 1e-3, 1e-6, 2e-7, 1e-12])
def test_the_prior_moves_the_odds_by_its_own_however_small(prior: float) -> None:
    """Odds of nine to one where half of all pairs are equal, times those of the prior."""
    fitted = Calibration((-1.0, 1.0), (0.1, 0.9), prior=0.5, kind="logistic")
    odds = 9 * prior / (1 - prior)
    assert fitted(1.0, prior=prior) == pytest.approx(odds / (1 + odds), rel=1e-9)


def test_a_higher_cosine_is_never_less_likely() -> None:
    fitted = fit(*drawn(5000, prior=0.2, seed=2))
    assert (np.diff(fitted(np.linspace(-1, 1, 300))) >= 0).all()


def test_error_worked_by_hand() -> None:
    """Two bins: .25 said and 0 of 2 true, .75 said and 2 of 2 true: a quarter off in both."""
    table = reliability(
        np.array([0.25, 0.25, 0.75, 0.75]), np.array([False, False, True, True]), num_bins=2
    )
    np.testing.assert_allclose(table, [[0.5, 0.25, 0], [0.5, 0.75, 1]])
    assert expected_error(table) == pytest.approx(0.25)


def test_an_empty_bin_has_no_weight() -> None:
    table = reliability(np.array([0.1, 0.1]), np.array([False, False]), num_bins=10)
    assert table[5, 0] == 0
    assert expected_error(table) == pytest.approx(0.1)


class TestRefused:
    def test_pairs_of_one_kind(self) -> None:
        with pytest.raises(ValueError, match="0 equal and 3 different"):
            fit(np.zeros(3), np.zeros(3, dtype=bool))

    def test_no_number(self) -> None:
        with pytest.raises(ValueError, match="not finite"):
            fit(np.array([np.nan, 0.1]), np.array([True, False]))

    def test_a_prior_that_is_none(self) -> None:
        fitted = fit(*drawn(100, prior=0.5, seed=0))
        with pytest.raises(ValueError, match="between 0 and 1"):
            fitted(0.1, prior=1.0)
