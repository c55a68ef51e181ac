"""A law of one's own in a guide: its own tail is used, and what is no family is refused."""

from dataclasses import dataclass, field

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from builders import assert_means, first, standard, two_sided
from ppl_risk import fit_layerwise, fit_svi, guides
from ppl_risk.activations import ActivationModel
from ppl_risk.errors import RiskError
from ppl_risk.guides.believed import GuideMap, margin_of_values
from ppl_risk.guides.families import require_family
from ppl_risk.problem import RiskProblem


class StudentLaw(guides.Law):
    """Independent Student t coordinates, fitted by moments."""

    def __init__(self, dimension, df, device):
        super().__init__(dimension, device)
        self.df = df

    def marginal(self, part):
        return dist.StudentT(self.df, self.loc[part], self.scale[part]).to_event(1)

    @torch.no_grad()
    def fit(self, draws):
        self.loc.copy_(draws.mean(0))
        self.set_scale(draws.std(0) * ((self.df - 2) / self.df) ** 0.5)


@dataclass(frozen=True)
class Student:
    df: float = 3.0

    def bind(self, dimension, device="cpu"):
        return StudentLaw(dimension, self.df, device)


class UnmappedLaw(StudentLaw):
    def marginal(self, part):
        return dist.VonMises(self.loc[part], self.scale[part]).to_event(1)


class Unmapped(Student):
    def bind(self, dimension, device="cpu"):
        return UnmappedLaw(dimension, self.df, device)


@dataclass(frozen=True)
class OwnFamily:
    """Mean-field with a law of one's own."""

    law: object
    coordinates: str = "activation"
    resolution: float = 0.1
    label: str = field(init=False, default="own")

    def bind(self, sites):
        return guides.Guide([([site], self.law) for site in sites.values()])


def problem():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
    return RiskProblem(network, standard(4), lambda y: y[:, 1] - y[:, 0] - 1.0)


LAWS = {
    "student 2.1": Student(2.1),
    "student 30": Student(30.0),
    "mixture": guides.Mixture(3),
    "full": guides.FullNormal(),
}


@pytest.mark.parametrize("law", LAWS)
def test_own_tail_is_that_of_the_guide_s_own_draws(law):
    risk = problem()
    estimate = fit_layerwise(risk, OwnFamily(LAWS[law]), draws=1000, tail="count", progress=False)
    guide = estimate.guide
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = margin_of_values(risk, guide.sample(10_000)).double()
        mapped = GuideMap(guide)
        pushed = mapped.margin_of_normals(risk, torch.randn(10_000, mapped.normals())).double()
    ends = drawn.quantile(torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64))
    gap = (pushed[:, None] > ends).double() - (drawn[:, None] > ends).double()
    assert_means(gap, torch.zeros(5))


def test_a_heavy_tail_changes_the_tail():
    """The same moments and other tails: at two degrees of freedom a decade more than at thirty, and than a Gaussian."""
    risk, found = problem(), {}
    for name, law in {"heavy": Student(2.5), "light": Student(30.0), "normal": guides.Normal()}.items():
        model = ActivationModel(risk, resolution=1e-3, pilot=500)
        guide = OwnFamily(law).bind(model.sites)
        guide.fit(model.pilot)
        mapped = GuideMap(guide)
        with torch.no_grad():
            values = mapped.values(torch.full((1, mapped.normals()), 4.5))
        found[name] = {n: float(v.abs().max()) for n, v in values.items()}
    for site in found["normal"]:
        assert found["heavy"][site] > 1.3 * found["light"][site] > 1.3 * found["normal"][site], site


def test_a_law_without_a_map_or_a_floor_says_what_to_write():
    with pytest.raises(RiskError, match=r"map from standard normals.*input.*part_of"):
        fit_layerwise(problem(), OwnFamily(Unmapped()), draws=200, progress=False)
    with pytest.raises(RiskError, match=r"Independent.*has_rsample.*fit_layerwise"):
        fit_svi(problem(), OwnFamily(Unmapped()), steps=2, draws=100, progress=False)


def test_a_family_without_parameters_is_for_layerwise_alone():
    with pytest.raises(RiskError, match=r"empirical.*fit_layerwise"):
        fit_svi(problem(), guides.Empirical(), steps=2, draws=100, progress=False)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (guides.MeanField, r"did you mean MeanField\(\)\?"),
        ("MeanField", r"text 'MeanField'.*guides\.MeanField\(\)"),
        (nn.Linear(2, 2), r"Linear.*guide or a network"),
        (nn.Linear, "class Linear"),
        (3, "int is no guide family.*bind"),
        (guides.Normal(), "Normal is no guide family.*label"),
    ],
    ids=str,
)
def test_what_is_no_family(family, text):
    with pytest.raises(RiskError, match=text):
        require_family(family)


@pytest.mark.parametrize("family", [OwnFamily(Student()), guides.MeanField(input=Student()), guides.Empirical()])
def test_what_is_a_family(family):
    require_family(family)


def test_svi_says_where_all_families_are_one():
    plain = two_sided(2.0).problem
    estimate = fit_svi(plain, guides.MeanField(), steps=5, draws=100, progress=False)
    assert "only site" in estimate.remedy
    assert estimate.evidence["sites"] == 1
    layer = nn.Linear(2, 1)
    wrapped = RiskProblem(lambda x: layer(x), standard(2), first)
    layered = fit_svi(wrapped, steps=5, draws=100, progress=False)
    assert "only site" not in layered.remedy
    assert layered.evidence["sites"] == 2
