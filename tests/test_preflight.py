"""Each mistake that torch lets through in silence has its own finding, and stops every estimator."""

import re

import pytest
import torch
from torch import nn

from builders import first, residual_problem, standard
from ppl_risk import monte_carlo
from ppl_risk.errors import PreflightError
from ppl_risk.layerwise import fit_layerwise
from ppl_risk.preflight import check
from ppl_risk.problem import RiskProblem
from ppl_risk.smc import run_smc
from ppl_risk.svi import fit_svi


def net(*inside: nn.Module, width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *inside, nn.Linear(5, width))


class Fill(nn.Module):
    """Passes its input on, but for one thing that it does to it."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


def with_weight(value: float) -> nn.Module:
    made = net().eval()
    made[1].weight.data[1, 2] = value
    return made


def two_devices() -> nn.Module:
    made = net().eval()
    made[1].register_buffer("pos", torch.zeros(2, device="meta"))
    return made


def two_types() -> nn.Module:
    made = net().eval()
    made[1].double()
    return made


LOGNAN = Fill(lambda x: (x * 0 - 1).log())
ERRORS = {
    "nan weight": (lambda: with_weight(float("nan")), first, "weights", r'1 of 43 weights.*"1.weight"'),
    "infinite weight": (lambda: with_weight(float("inf")), first, "weights", "NaN or infinite"),
    "nan buffer": (lambda: _bn_nan(), first, "weights", "running_mean"),
    "dropout": (lambda: net(nn.Dropout(0.1)), first, "mode", r'Dropout at "1" makes it random.*eval\(\)'),
    "batch norm": (lambda: net(nn.BatchNorm1d(5)), first, "mode", r'BatchNorm1d at "1" mixes the rows.*eval\(\)'),
    "noisy": (lambda: net(Fill(lambda x: x + 0.1 * torch.randn_like(x))).eval(), first, "deterministic", "two answers"),
    "functional dropout": (lambda: net(Fill(nn.functional.dropout)).eval(), first, "deterministic", "two answers"),
    "row mixing": (lambda: net(Fill(lambda x: x - x.mean(0))).eval(), first, "deterministic", "rows influence"),
    "softmax over rows": (lambda: net(Fill(lambda x: x.softmax(0))).eval(), first, "deterministic", "rows influence"),
    "booleans": (lambda: net().eval(), lambda y: y[:, 0] > 0, "shapes", "booleans.*score - threshold"),
    "integers": (lambda: net().eval(), lambda y: y.argmax(-1), "shapes", r"torch\.int64.*margin\.float"),
    "whole output": (lambda: net().eval(), None, "shapes", r"shape \(3, 3\) for 3 inputs.*y\[:, 3\]"),
    "column": (lambda: net(width=1).eval(), None, "shapes", r"shape \(3, 1\)"),
    "scalar": (lambda: net().eval(), lambda y: y.sum(), "shapes", r"shape \(\).*dim=-1"),
    "mean of rows": (lambda: net(width=7).eval(), lambda y: y.mean(0), "shapes", r"one margin per row"),
    "as many outputs as rows tried": (lambda: net().eval(), lambda y: y.mean(0), "shapes", r"one margin per row"),
    "python number": (lambda: net().eval(), lambda y: float(y.sum()), "shapes", "returned float"),
    "detector fails": (lambda: net().eval(), lambda y: y[:, 9], "shapes", r"detector rejects.*\(3, 3\).*out of bounds"),
    "two devices": (two_devices, first, "placement", r"cpu, meta.*1\.pos.*network\.to"),
    "two types": (two_types, first, "placement", r"float32, torch\.float64"),
    "nan output": (lambda: net(LOGNAN, nn.ReLU()).eval(), first, "outputs", r'64 of 64 margins.*return one is "1"'),
    "overflow in detector": (lambda: net().eval(), lambda y: y[:, 0] / 0, "outputs", "64 margins are NaN or inf"),
}  # fmt: skip


def _bn_nan() -> nn.Module:
    made = net(nn.BatchNorm1d(5)).eval()
    made[1].running_mean[0] = torch.nan
    return made


@pytest.mark.parametrize("mistake", ERRORS)
def test_each_mistake_has_its_finding(mistake):
    network, detector, name, text = ERRORS[mistake]
    result = check(RiskProblem(network(), standard(4), detector), draws=50)
    assert not result.ok
    assert [f.level for f in result.findings].count("error") == 1
    last = result.findings[-1]
    assert (last.check, last.level) == (name, "error")
    assert re.search(text, last.message), last.message
    assert f"ERROR {name}" in repr(result)


@pytest.mark.parametrize(
    ("network", "law", "text"),
    [
        (net().eval(), standard(64), r'\(3, 64\).*mat1 and mat2.*"0" expects 4 features'),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), standard(2, 6, 6), r'"0" expects 1 channels'),
        (
            net().eval(),
            torch.distributions.Independent(torch.distributions.Poisson(torch.ones(4)).expand((4,)), 1),
            None,
        ),
        (net().eval(), torch.distributions.Categorical(torch.ones(4)), r"type torch\.int64"),
    ],
)
def test_inputs_that_do_not_fit(network, law, text):
    result = check(RiskProblem(network, law, first), draws=50)
    if text is None:  # Poisson draws are floating counts: they fit
        assert result.ok
        return
    assert re.search(text, result.findings[-1].message), result.findings[-1].message


@pytest.mark.parametrize("estimator", [monte_carlo, fit_svi, run_smc, fit_layerwise], ids=lambda e: e.__name__)
@pytest.mark.parametrize("mistake", ["nan weight", "dropout", "scalar", "noisy"])
def test_every_estimator_refuses(estimator, mistake):
    network, detector, name, text = ERRORS[mistake]
    problem = RiskProblem(network(), standard(4), detector, name="bad")
    with pytest.raises(PreflightError, match=rf"\[bad: {name}\].*{text}"):
        estimator(problem, progress=False)


def test_a_sound_problem_passes_every_check_and_costs_nothing():
    problem = residual_problem()
    state = torch.get_rng_state()
    with problem.metered() as meter:
        result = check(problem, draws=500)
    assert result.ok
    assert {f.level for f in result.findings} == {"ok"}, result
    assert meter.forward_calls == meter.gradient_calls == 0
    assert torch.equal(state, torch.get_rng_state())


def test_batch_norm_statistics_survive_the_check():
    network = net(nn.BatchNorm1d(5))
    check(RiskProblem(network, standard(4), first))
    assert (network[1].running_mean == 0).all()
    assert check(RiskProblem(network.eval(), standard(4), lambda y: y[:, 0] - 1)).ok
