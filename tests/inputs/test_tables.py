"""Tabulated quantiles: accurate far out, gradients phi / f, laws with parameters of their own, and a thousand times faster."""

import math

import numpy as np
import pytest
import scipy.stats as st
import torch
import torch.distributions as td

from ppl_risk.inputs import quantiles, tables, transport_of
from ppl_risk.inputs.tables import table_of

#: (make the law of parameters, the same in SciPy, parameters): from tiny to large ones.
FAMILIES = {
    "gamma": (quantiles.GAMMA, lambda a: st.gamma(a), [(0.01,), (0.1,), (1.0,), (7.0,), (300.0,), (1e5,)]),
    "beta": (quantiles.BETA, lambda a, b: st.beta(a, b),
             [(0.1, 0.1), (0.05, 3.0), (1.1, 0.9), (2.0, 3.0), (40.0, 0.5), (1e4, 3e3)]),
    "student": (quantiles.STUDENT, lambda df: st.t(df), [(0.2,), (1.0,), (2.1,), (30.0,), (1e7,)]),
}  # fmt: skip
CASES = [(name, p) for name, (_, _, many) in FAMILIES.items() for p in many]


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=str)
def test_tail_probabilities_of_tabulated_values(name, parameters):
    """Values lie between knots; log tail probabilities of SciPy's laws agree to 1e-8 out to |u| = 8."""
    family, make, _ = FAMILIES[name]
    table = table_of(family, [torch.tensor(p, dtype=torch.float64) for p in parameters])
    assert table is not None
    u = np.linspace(-8.0, 8.0, 147)
    g, slope = table(torch.as_tensor(u), with_slope=True)
    x, law = family.value(g).numpy(), make(*parameters)
    held = (np.abs(x) > 1e-300) & ((1 - x > 1e-3) if name == "beta" else True)  # of 1 - x float64 holds too little
    exact = np.where(u < 0, st.norm.logcdf(u), st.norm.logsf(u))
    found = np.where(u < 0, law.logcdf(x), law.logsf(x))
    assert held.sum() > 20
    np.testing.assert_allclose(found[held], exact[held], rtol=0, atol=2e-8)
    expected = np.exp(st.norm.logpdf(u) - law.logpdf(x))
    np.testing.assert_allclose((slope * family.slope_of_value(g)).numpy()[held], expected[held], rtol=1e-7)


def test_every_pixel_its_own_law_and_beyond_the_table():
    """One table for many laws gives what each law's own inverse gives; so do normals that the table does not reach."""
    g = torch.Generator().manual_seed(0)
    a, b = (0.2 + 5 * torch.rand(3, 40, generator=g, dtype=torch.float64) for _ in range(2))
    u = 12 * torch.rand(6, 3, 40, generator=g, dtype=torch.float64) - 6
    u[0, 0, :2] = torch.tensor([-9.5, 11.0])
    u.requires_grad_()
    together = transport_of(td.Independent(td.Beta(a, b), 2))(u.reshape(6, -1))
    alone, slope = quantiles._inverse(quantiles.BETA, u, (a.expand_as(u), b.expand_as(u)))
    torch.testing.assert_close(together, torch.sigmoid(alone), rtol=1e-9, atol=0)
    (found,) = torch.autograd.grad(together.sum(), u)
    torch.testing.assert_close(found, slope * quantiles.BETA.slope_of_value(alone), rtol=1e-7, atol=1e-300)


def test_a_law_that_no_table_holds_takes_its_inverse(monkeypatch):
    u = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None]
    law = td.Independent(td.Gamma(torch.tensor([2.5], dtype=torch.float64), 1.0), 1)
    by_table = transport_of(law)(u)
    monkeypatch.setattr(tables, "LARGEST", 0)
    tables._made.cache_clear()
    assert table_of(quantiles.GAMMA, [torch.tensor([2.5], dtype=torch.float64)]) is None
    torch.testing.assert_close(transport_of(law)(u), by_table, rtol=1e-10, atol=0)
    tables._made.cache_clear()


def test_nan_stays_nan():
    x = transport_of(td.Beta(2.0, 3.0))(torch.tensor([[math.nan], [0.0]]))
    assert x.isnan().tolist() == [True, False]


def test_laws_that_recur_cost_no_inverse_a_row(monkeypatch):
    """A thousand rows of a thousand equal pixels: as many inverses as one table has knots, not a million."""
    asked = []

    def counting(u, *parameters):
        asked.append(np.broadcast(u, *parameters).size)
        return quantiles._gamma(u, *parameters)

    family = quantiles.GAMMA._replace(name="counted", inverse=counting)
    monkeypatch.setattr(quantiles, "GAMMA", family)
    transport = transport_of(td.Independent(td.Gamma(torch.full((1000,), 2.0), 1.0), 1))
    transport(torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)))
    assert sum(asked) < 2000
