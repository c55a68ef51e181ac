"""The ELBO is a lower bound, and where the best one is known the optimiser reaches it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import log_expit
from scipy.stats import norm

from builders import linear_gaussian
from ppl_risk.activations import ActivationModel
from ppl_risk.guides import Block, Full, FullNormal, LowRank, LowRankNormal, MeanField, Network
from ppl_risk.svi import fit_guide

PILOT, TEMPERATURE, SEED = 512, 0.05, 3


def temperature_of(known) -> float:
    """In units of the margin, as the pilot of the same seed saw it."""
    model = ActivationModel(known.problem, "noise", resolution=0.0, pilot=PILOT, seed=SEED)
    return TEMPERATURE * model.margin_spread


def log_relaxed(known, temperature: float, extra: float = 0.0) -> float:
    """log E sigmoid(margin / T) for a normal margin, by quadrature around the peak of the integrand."""
    std = float(np.hypot(known.std, extra))

    def log_f(m):
        return norm.logpdf(m, known.mean, std) + log_expit(m / temperature)

    grid = np.linspace(known.mean - 2 * std, known.mean + 14 * std, 20_001)
    top = log_f(grid).max()
    area, _ = quad(lambda m: np.exp(log_f(m) - top), grid[0], grid[-1], points=[0.0], limit=500)
    return float(top + np.log(area))


def best_gaussian_elbo(known, temperature: float) -> float:
    """Only the direction of the margin matters: maximise over mean and scale in one dimension, by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()

    def loss(parameters):
        m, s = parameters[0], np.exp(parameters[1])
        x = m + s * nodes
        return -(weights @ (norm.logpdf(x) + log_expit((known.mean + known.std * x) / temperature)) + 0.5 + np.log(s)
                 + 0.5 * np.log(2 * np.pi))  # fmt: skip

    return float(-minimize(loss, [-known.mean / known.std, -1.0], method="Nelder-Mead", options={"xatol": 1e-6}).fun)


@pytest.mark.parametrize(("d", "law"), [(2, FullNormal()), (2, LowRankNormal(2)), (10, FullNormal())], ids=repr)
def test_network_family_reaches_the_best_gaussian(d, law):
    known = linear_gaussian(d, 4.0)
    temperature = temperature_of(known)
    fit = fit_guide(known.problem, Network(input=law), steps=500, particles=32, pilot=PILOT, seed=SEED)
    best, bound = best_gaussian_elbo(known, temperature), log_relaxed(known, temperature)
    assert best < bound < known.log_prob + 0.2
    assert fit.converged
    assert fit.elbo_error < 0.05
    assert fit.elbo < best + 4 * fit.elbo_error
    assert fit.elbo > best - 0.15 - 4 * fit.elbo_error
    assert bound - best < 0.6, "a Gaussian should come this near"


@pytest.mark.parametrize("family", [MeanField(), Block(), LowRank(2), Full(), Full(coordinates="noise")], ids=repr)
def test_elbo_is_a_lower_bound_in_every_family(family):
    """With resolution the margin of the model is wider; its relaxed probability is known, too."""
    known = linear_gaussian(3, 3.0)
    temperature = temperature_of(known)
    model = ActivationModel(known.problem, family.coordinates, resolution=family.resolution, pilot=PILOT, seed=SEED)
    behind = float(known.problem.network[1].weight.detach().norm())
    extra = float(np.hypot(behind * model.sigma["0"], model.sigma["1"]))
    fit = fit_guide(known.problem, family, steps=200, particles=32, pilot=PILOT, seed=SEED)
    assert fit.elbo < log_relaxed(known, temperature, extra) + 4 * fit.elbo_error


def test_richer_families_have_a_better_bound():
    """Nested families on one model: mean-field, block and full may not come out in the wrong order."""
    known = linear_gaussian(3, 3.0)
    elbos = [
        fit_guide(known.problem, f, steps=250, particles=32, pilot=PILOT, seed=SEED)
        for f in (MeanField(), Block(), Full())
    ]
    for worse, better in pairwise(elbos):
        assert better.elbo > worse.elbo - 4 * np.hypot(worse.elbo_error, better.elbo_error)
    assert elbos[2].elbo > elbos[0].elbo + 1.0


def test_the_quadrature_itself_in_the_limit_of_a_hard_event():
    known = linear_gaussian(3, 3.0)
    assert log_relaxed(known, 1e-4 * known.std) == pytest.approx(known.log_prob, abs=1e-3)
    assert torch.isfinite(torch.tensor(log_relaxed(known, known.std)))
