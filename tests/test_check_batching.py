"""A model that is not written for a leading batch dimension is caught; Pyro itself says nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from builders import NETWORKS
from ppl_risk.activations import ActivationModel, check_batching
from ppl_risk.errors import RiskError


def model_with(score):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("f", score(x))

    return model


VALUES = {"x": torch.randn(7, 3, generator=torch.Generator().manual_seed(0))}


def test_a_good_model_passes():
    check_batching(model_with(lambda x: x.square().sum(-1)), VALUES)


@pytest.mark.parametrize("coordinates", ["activation", "noise"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_activation_models_pass(kind, coordinates):
    model = ActivationModel(NETWORKS[kind](), coordinates)
    check_batching(model, model.prior_draws(5), 0.5)


@pytest.mark.parametrize(
    "score",
    [
        lambda x: x.square().sum(),
        lambda x: x.square().sum(-1) - x.mean(0).sum(),
        lambda x: x.sum(-1).cumsum(0),
        lambda x: x.square(),
    ],
    ids=["sum over everything", "rows centred", "running sum", "no reduction"],
)
def test_rows_that_mix_are_caught(score):
    with pytest.raises(RiskError, match="dim=-1"):
        check_batching(model_with(score), VALUES)


def test_a_site_without_to_event_is_named():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0))

    with pytest.raises(RiskError, match=r'Site "x" has log density of shape \(7, 3\) for 7 rows'):
        from ppl_risk.activations import log_density

        log_density(model, VALUES)


def test_not_a_number_is_no_agreement():
    with pyro.validation_enabled(False), pytest.raises(RiskError, match="nan"):
        check_batching(model_with(lambda x: x.sum(-1) * torch.nan), VALUES)


def test_lost_batch_dimension_that_Pyro_accepts():
    """The trap itself: without the check the loss is wrong by a factor, in silence."""
    bad = model_with(lambda x: x.square().sum())
    with pyro.plate("particles", 64, dim=-1):
        trace = pyro.poutine.trace(bad).get_trace()
    assert float(trace.log_prob_sum()) != 0.0
    with pytest.raises(RiskError):
        check_batching(bad, VALUES)
