"""The draws behind the number, and the verdict on two routes: what must be refused is refused, and nothing else."""

import math

import pytest
import torch

from builders import assert_means, linear_gaussian, two_sided
from ppl_risk import Status
from ppl_risk.engine.climbs import Climbs
from ppl_risk.engine.final import KEPT, chunk, name_of, posterior_rows, weigh
from ppl_risk.engine.verdict import Agreement, better_route, compare_routes, smc_alone, verdict
from ppl_risk.importance.gated import Gate, Gated, Tilted
from ppl_risk.importance.mixture import Mixture
from ppl_risk.parallel import plan_units, run_units

EXACT = -9.0


def results_of(log_weight, components=1):
    """A chunk whose draws all come from components that are as likely as each other."""
    n = len(log_weight)
    margin = torch.isfinite(log_weight).double() - 0.5
    tilts = torch.where(torch.isfinite(log_weight), -log_weight, 0.0).double()[:, None].expand(n, components)
    return [{"margin": margin, "tilts": tilts, "stratum": torch.arange(n) % components}]


def weights_of(log_weight):
    return weigh(results_of(log_weight), 1)


def even(n=2000, share=0.6):
    """Weights that differ little, on a share of the draws, of mean e^EXACT."""
    torch.manual_seed(0)
    log_weight = EXACT - math.log(share) + 0.1 * torch.randn(n, dtype=torch.float64) - 0.005
    return torch.where(torch.arange(n) < share * n, log_weight, -torch.inf)


def climbs(log_prob=EXACT, std_error=0.2, finished=4):
    empty = torch.zeros(0, 2, dtype=torch.float64)
    return Climbs(log_prob, std_error, finished, 4, empty, empty[:, 0] >= 0, empty, empty)


def judged(log_weight, second, at_particles=None, particles=100):
    weights = weights_of(log_weight)
    at_particles = torch.full((50,), EXACT, dtype=torch.float64) if at_particles is None else at_particles
    return verdict(weights, second, compare_routes(weights, second, particles, at_particles), "1.0e-04")


def test_two_routes_that_agree_are_believed():
    assert judged(even(), climbs()) == (Status.OK, "")
    assert judged(even(), climbs(EXACT - 1.0)) == (Status.OK, "")


@pytest.mark.parametrize(("off", "text"), [(3.0, "may be missing"), (-6.0, "went astray")])
def test_routes_that_disagree_are_refused(off, text):
    status, remedy = judged(even(), climbs(EXACT + off))
    assert status is Status.ROUTES_DISAGREE
    assert text in remedy


def test_smc_may_err_low_by_more_than_high():
    weights = weights_of(even())
    sigmas = [compare_routes(weights, climbs(EXACT + x), 100, torch.zeros(0).double()).sigmas for x in (1.0, -1.0)]
    assert sigmas[0] == pytest.approx(-sigmas[1], rel=0.05)
    for size, below, above in ((3.4, Status.OK, Status.OK), (4.5, Status.OK, Status.ROUTES_DISAGREE)):
        assert verdict(weights, climbs(), Agreement(0.3, -size, 0.0), "")[0] is below
        assert verdict(weights, climbs(), Agreement(0.3, size, 0.0), "")[0] is above
    assert verdict(weights, climbs(), Agreement(0.3, -6.5, 0.0), "")[0] is Status.ROUTES_DISAGREE


def test_four_runs_that_happen_to_agree_do_not_make_smc_exact():
    weights = weights_of(even())
    found = compare_routes(weights, climbs(EXACT + 0.5, std_error=0.001), 100, torch.zeros(0).double())
    assert found.smc_error > 0.1
    assert abs(found.sigmas) < 3.5


def test_particles_where_the_proposal_hardly_goes_are_refused():
    lost = torch.full((50,), EXACT, dtype=torch.float64)
    lost[:2] += math.log(1000)
    assert judged(even(), climbs(), lost)[0] is Status.OK
    lost[:4] += math.log(1000)
    status, remedy = judged(even(), climbs(), lost)
    assert status is Status.ROUTES_DISAGREE
    assert "8%" in remedy
    # Particles without any density under the proposal are what this is for.
    assert judged(even(), climbs(), lost + torch.inf)[0] is Status.ROUTES_DISAGREE


@pytest.mark.parametrize("finished", [0, 1])
def test_smc_that_did_not_finish_checks_nothing(finished):
    status, remedy = judged(even(), climbs(math.nan, math.nan, finished))
    assert status is Status.ONE_ROUTE
    assert f"{finished} of 4" in remedy


def test_smc_that_never_met_the_event_checks_nothing():
    assert judged(even(), climbs(math.nan, math.nan, 4), torch.zeros(0).double())[0] is not Status.OK


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_heavy_tails_are_refused(seed):
    """Weights u^-1.2 have no mean, and their k-hat is 1.2; of 700 draws the effective number is small."""
    torch.manual_seed(seed)
    heavy = -1.2 * torch.rand(700, dtype=torch.float64).log() + EXACT
    weights = weights_of(heavy)
    assert weights.k_hat > 0.7
    status, remedy = verdict(weights, climbs(weights.log_prob), Agreement(0.2, 0.0, 0.0), "")
    assert status is Status.KHAT_HIGH
    assert "k-hat" in remedy


def test_too_few_effective_draws_are_refused():
    few = torch.where(torch.arange(4000) < 60, EXACT + math.log(4000 / 60), -torch.inf).double()
    status, remedy = judged(few, climbs())
    assert status is Status.LOW_ESS
    assert "60 effective draws of 4,000" in remedy


def test_smcs_number_replaces_one_that_no_weights_carry_and_no_other():
    uneven = weights_of(torch.where(torch.arange(900) < 6, EXACT + 2.0 * torch.arange(900), -torch.inf).double())
    assert uneven.ess < 100
    second = climbs(EXACT - 0.3)
    answer = better_route(uneven, second)
    assert (answer.log_prob, answer.std_error, answer.ess) == (EXACT - 0.3, 0.2, uneven.ess)
    assert better_route(weights_of(even()), second).log_prob == pytest.approx(EXACT, abs=0.02)
    assert better_route(uneven, climbs(math.nan, math.nan, 4)) is uneven
    assert better_route(uneven, climbs(EXACT, 0.2, 1)) is uneven


def test_no_hit_is_a_bound_and_no_number():
    weights = weights_of(torch.full((100,), -torch.inf, dtype=torch.float64))
    assert math.isnan(weights.log_prob)
    status, remedy = judged(torch.full((100,), -torch.inf, dtype=torch.float64), climbs(math.nan, math.nan, 4))
    assert status is Status.NO_HITS
    assert "P < 1.0e-04" in remedy


def test_smc_alone_is_one_route_with_its_number():
    """SMC met the event and no draw of the proposal did: its number is shown and not believed."""
    none = torch.full((100,), -torch.inf, dtype=torch.float64)
    status, remedy = judged(none, climbs())
    assert status is Status.ONE_ROUTE
    assert "SMC alone met the event" in remedy
    assert smc_alone(weights_of(none), climbs()).log_prob == climbs().log_prob


def test_a_flag_gives_smc_nothing_to_rise_by():
    assert judged(even(), climbs()._replace(values=2))[0] is Status.ONE_ROUTE


def test_one_undefined_margin_is_one_too_many():
    results = results_of(even())
    results[0]["margin"][17] = math.nan
    weights = weigh(results, 1)
    assert math.isnan(weights.log_prob)
    status, remedy = verdict(weights, climbs(), Agreement(0.2, 0.0, 0.0), "")
    assert status is Status.REFUSED
    assert "NaN" in remedy


# Draws.


def mixture(d, z):
    """The prior and one gate, along the first axis."""
    axis, none, one = torch.eye(d, 1).double(), torch.zeros(0).double(), torch.ones(1).double()
    prior = Tilted(axis[:, :0], none, none)
    return Mixture([prior, Gated(axis, one, one, gate=Gate(z, 0.3, none, none))], torch.tensor([0.2, 0.8]).double())


def drawn(problem, made, sizes, seed=0):
    plan = plan_units("p", "draws", [{"draws": n} for n in sizes], seed=seed)
    return run_units(plan, chunk, (problem, made), progress=False)


def test_chunks_are_one_sample():
    known, made = two_sided(2.5, d=3), mixture(3, 2.5)
    with known.problem.metered() as meter:
        results = drawn(known.problem, made, [400, 400, 123])
    weights = weigh(results, 2)
    assert weights.draws == meter.forward_calls == len(weights.margin) == 923
    assert weights.hits == int((weights.margin >= 0).sum()) > 300
    assert bool((torch.isfinite(weights.log_weight) == (weights.margin >= 0)).all())
    for r in results:
        assert bool((known.problem.margin_of_normal(r["kept"]) >= 0).all())
        assert len(r["kept"]) == KEPT


def test_unbiased_though_the_gate_sees_one_side_only():
    """The prior's share sees the other side: 100 seeds."""
    known, made = two_sided(1.8, d=2), mixture(2, 1.8)
    ratios = [
        math.exp(weigh(drawn(known.problem, made, [300, 200], seed), 2).log_prob - known.log_prob)
        for seed in range(100)
    ]
    assert_means(torch.tensor(ratios), 1.0)


def test_posterior_rows_follow_the_mass_of_their_chunks():
    results = [
        {"mass": math.log(mass) - 50, "kept": torch.full((KEPT, 1), float(k))} for k, mass in enumerate([6.0, 3.0, 1.0])
    ]
    rows = posterior_rows(results, 100)[:, 0].long()
    assert torch.bincount(rows).tolist() == pytest.approx([60, 30, 10], abs=1)
    assert len(rows) <= 100
    empty = {"mass": -math.inf, "kept": torch.zeros(0, 1)}
    assert len(posterior_rows([empty, *results], 100)) == len(rows)


def test_rows_kept_follow_the_law_given_the_event():
    known, made = linear_gaussian(1, 2.0), mixture(1, 2.0)
    sign = float(known.problem.margin_and_gradient(torch.zeros(1, 1))[1].sign())
    made = Mixture([made.laws[0], Gated(sign * made.laws[1].basis, *(torch.ones(1).double(),) * 2, gate=made.laws[1].gate)],
                   made.shares)  # fmt: skip
    kept = torch.stack([r["kept"].abs().mean() for r in drawn(known.problem, made, [500] * 40)])
    assert_means(kept, math.exp(-2) / math.sqrt(2 * math.pi) / math.exp(known.log_prob))


def test_a_mixtures_name_is_its_own():
    state = torch.get_rng_state()
    names = {name_of(m) for m in (mixture(3, 2.5), mixture(3, 2.500001), mixture(4, 2.5), mixture(3, 2.5))}
    assert len(names) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_no_number_of_smc_where_there_is_none_to_replace():
    """Without a hit the verdict speaks of no number; SMC's must not slip in."""
    assert math.isnan(better_route(weights_of(torch.full((100,), -torch.inf).double()), climbs()).log_prob)
