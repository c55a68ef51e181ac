"""From evidence to a proposal: events of known shape, seen perfectly, leave weights that are nearly even."""

import math

import pytest
import torch
from scipy.stats import chi, norm

from builders import assert_means, linear_gaussian, two_sided
from ppl_risk.engine.adapt import adapt, log_tilt, spread_of
from ppl_risk.engine.fitting import DEFENSIVE, OVERALL, WIDE, Evidence, fit_mixture
from ppl_risk.importance.gated import Gated, Points
from ppl_risk.importance.ring import Ring


def ones(n):
    return torch.ones(n, dtype=torch.float64)


def near(d, directions, height, n=800, seed=0):
    """Points near places at a height along directions (k, d), half of them on either side."""
    torch.manual_seed(seed)
    u = torch.randn(n, d, dtype=torch.float64)
    along = directions[torch.arange(n) % len(directions)]
    wanted = height - 0.5 + torch.distributions.Exponential(1.5).sample((n,)).double()
    return u + (wanted - (u * along).sum(-1))[:, None] * along, along


def evidence_of(d, directions, height, normals=True):
    """What is known of {max over directions of direction . u >= height}."""
    seen, along = near(d, directions, height)
    hit = (seen @ directions.mT).max(-1).values >= height
    hits = seen[hit]
    weight = (-((hits @ directions.mT).max(-1).values - height) * (height - 1.5)).softmax(0)
    return Evidence(hits, weight, hits[:90], along[hit][:90] if normals else None, seen, hit, ones(90), 1.0)


def weights_of(mixture, hits, draws=20_000, seed=1):
    torch.manual_seed(seed)
    drawn = mixture.sample(draws)
    return torch.where(hits(drawn.points.u), -log_tilt(mixture, drawn.points, drawn.shares), -torch.inf)


@pytest.mark.parametrize("normals", [True, False])
@pytest.mark.parametrize("d", [1, 3, 30])
def test_one_flat_place(d, normals):
    direction = torch.nn.functional.normalize(torch.arange(1.0, d + 1).double(), dim=0)[None]
    if d == 30 and not normals:
        direction = torch.eye(30, dtype=torch.float64)[:1]
    mixture = fit_mixture(evidence_of(d, direction, 4.0, normals), inflate=1.1, narrow=0.05)
    log_weight = weights_of(mixture, lambda u: (u @ direction.mT)[:, 0] >= 4)
    assert_means((log_weight - norm.logsf(4)).exp(), 1.0)
    assert spread_of(log_weight) < (1.0 if normals else 2.0)
    assert sum(isinstance(law, Gated) for law in mixture.laws) == 2


@pytest.mark.parametrize("d", [2, 25])
def test_two_places_get_a_pair_of_gates_each(d):
    directions = torch.eye(d, dtype=torch.float64)[:1] * torch.tensor([[1.0], [-1.0]]).double()
    mixture = fit_mixture(evidence_of(d, directions, 4.0), inflate=1.1, narrow=0.05)
    gates = [law for law in mixture.laws if isinstance(law, Gated)]
    assert len(gates) == 4
    assert sorted(round(float(g.basis[0, 0])) for g in gates) == [-1, -1, 1, 1]
    log_weight = weights_of(mixture, lambda u: u[:, 0].abs() >= 4)
    assert_means((log_weight - math.log(2) - norm.logsf(4)).exp(), 1.0)
    assert spread_of(log_weight) < 1.0


def test_shares_add_up_and_keep_every_component_alive():
    mixture = fit_mixture(evidence_of(3, torch.eye(3).double()[:2], 3.5), inflate=1.1, narrow=0.1)
    assert float(mixture.shares.sum()) == pytest.approx(1.0)
    assert float(mixture.shares[0]) >= DEFENSIVE - 1e-9
    assert float(mixture.shares[1]) >= OVERALL - 1e-9
    gates = [float(s) for law, s in zip(mixture.laws, mixture.shares, strict=True) if isinstance(law, Gated)]
    places = len(gates) // 2
    assert places >= 2
    assert min(gates[::2]) >= 0.1 / places - 1e-9
    assert min(gates[1::2]) >= WIDE / places - 1e-9
    # The first component is the prior itself.
    assert float(mixture.laws[0].log_tilt(Points.of(torch.randn(9, 3).double())).abs().max()) == 0.0


def test_an_event_all_round_gets_a_ring():
    """|u| >= R in ten dimensions: no gate holds it, a ring does."""
    radius = 6.0
    torch.manual_seed(0)
    seen = torch.nn.functional.normalize(torch.randn(1500, 10).double(), dim=-1)
    seen = seen * (radius - 0.6 + 1.2 * torch.rand(1500, 1).double())
    length = seen.norm(dim=-1)
    hits = seen[length >= radius]
    weight = (-(length[length >= radius] - radius) * 5).softmax(0)
    normals = torch.nn.functional.normalize(hits[:90], dim=-1)
    evidence = Evidence(hits, weight, hits[:90], normals, seen, length >= radius, ones(90), 1.0)
    mixture = fit_mixture(evidence, inflate=1.1, narrow=0.05)
    share = sum(float(s) for law, s in zip(mixture.laws, mixture.shares, strict=True) if isinstance(law, Ring))
    assert share > 0.5
    log_weight = weights_of(mixture, lambda u: u.norm(dim=-1) >= radius)
    assert_means((log_weight - chi.logsf(radius, 10)).exp(), 1.0)
    assert spread_of(log_weight) < 1.5


# Rounds.


def test_rounds_improve_a_poor_start_and_stop_at_their_budget():
    """Of x_0 >= 4 only a point beside the design point is known at first."""
    known = linear_gaussian(4, 4.0, dtype=torch.float64)
    _, gradient = known.problem.margin_and_gradient(torch.zeros(1, 4).double())
    direction = torch.nn.functional.normalize(gradient, dim=-1)
    beside = 4.3 * direction + torch.linalg.svd(direction).Vh[1:2] * 1.5
    torch.manual_seed(0)
    seen = torch.randn(200, 4).double()
    poor = Evidence(beside, ones(1), beside, direction, seen, torch.zeros(200, dtype=torch.bool), ones(1), 0.25)
    with known.problem.metered() as meter, torch.no_grad():
        mixture, rounds, evidence = adapt(known.problem, poor, meter, draws=400, until=4000)
    assert 2 <= len(rounds) <= 10
    assert 800 <= meter.calls <= 4000
    assert rounds[-1].spread < rounds[0].spread
    assert rounds[-1].spread < 1.0
    assert rounds[-1].log_prob == pytest.approx(known.log_prob, abs=0.2)
    assert rounds[-1].places == 1
    assert float(evidence.weight.sum()) == pytest.approx(1.0)
    assert bool((known.problem.margin_of_normal(evidence.hits) >= 0).all())
    log_weight = weights_of(mixture, lambda u: known.problem.margin_of_normal(u).detach() >= 0)
    assert_means((log_weight - known.log_prob).exp(), 1.0)


def test_rounds_find_a_place_that_exploration_missed_if_draws_meet_it():
    """Of |x_0| >= 2.2 one side is known; the prior's share of the draws meets the other."""
    known = two_sided(2.2)
    evidence = evidence_of(2, torch.eye(2).double()[:1], 2.2)
    torch.manual_seed(0)
    with known.problem.metered() as meter, torch.no_grad():
        mixture, rounds, _ = adapt(known.problem, evidence, meter, draws=800, until=8000)
    assert rounds[-1].places == 2
    log_weight = weights_of(mixture, lambda u: u[:, 0].abs() >= 2.2)
    assert_means((log_weight - known.log_prob).exp(), 1.0)


def test_no_budget_no_round():
    known = two_sided(3.0)
    with known.problem.metered() as meter:
        _, rounds, evidence = adapt(
            known.problem, evidence_of(2, torch.eye(2).double()[:1], 3.0), meter, draws=400, until=400
        )
    assert rounds == []
    assert meter.calls == 0
    assert len(evidence.anchors) == 90


def test_spread_by_hand():
    log_weight = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64) - 900
    assert spread_of(log_weight) == pytest.approx(math.sqrt(0.5))
    assert spread_of(torch.full((4,), -torch.inf)) == math.inf
