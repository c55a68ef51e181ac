"""Out of memory: batches are halved, every row is counted once, and what a caller sees does not change."""

import pytest
import torch
from torch import nn

from builders import standard
from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem

ERRORS = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
}


class Small(nn.Module):
    """A network for which more rows than `fit` are too many; `late` raises only on the way back."""

    def __init__(self, fit, error):
        super().__init__()
        self.inner, self.fit, self.error, self.seen = nn.Linear(3, 1), fit, error, []

    def forward(self, x):
        y = self.inner(x)[:, 0]
        self.seen.append(len(x))
        if len(x) > self.fit:
            raise self.error()
        return y


@pytest.mark.parametrize("error", ERRORS)
def test_halving_finds_what_fits_and_counts_rows_once(error):
    problem = RiskProblem(Small(100, ERRORS[error]), standard(3))
    u = torch.randn(21, 3)
    margin, gradient = problem.margin_and_gradient(u)
    values, _ = problem.activations(problem.from_normal(u))
    problem.network.fit = 6
    calls = {
        "margin": lambda: [problem.margin(problem.from_normal(u))],
        "normal": lambda: [problem.margin_of_normal(u)],
        "gradient": lambda: problem.margin_and_gradient(u),
        "activations": lambda: [problem.activations(problem.from_normal(u))[0]["inner"][:, 0]],
    }
    for name, call in calls.items():
        problem.batch_size, problem.network.seen = 21, []
        with problem.metered() as meter:
            found = call()
        assert problem.network.seen == [21, 10, 5, 5, 5, 5, 1]
        assert problem.batch_size == 5
        assert (meter.forward_calls, meter.gradient_calls) == (21, 21 if name == "gradient" else 0)
        for one, other in zip(found, (margin, gradient), strict=False):
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(values["inner"][:, 0], margin)


def test_a_failed_way_back_is_not_counted_either():
    problem = RiskProblem(Small(100, ERRORS["device"]), standard(3))

    class Late(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if len(gradient) > 4:
                raise torch.OutOfMemoryError
            return gradient

    late = RiskProblem(lambda x: problem.network(Late.apply(x)), standard(3))
    late.batch_size = 8
    with late.metered() as meter:
        margin, gradient = late.margin_and_gradient(u := torch.randn(10, 3))
    assert (meter.forward_calls, meter.gradient_calls) == (10, 10)
    for one, other in zip((margin, gradient), problem.margin_and_gradient(u), strict=True):
        torch.testing.assert_close(one, other)


def test_one_row_too_many_is_said_and_other_errors_pass():
    problem = RiskProblem(Small(0, ERRORS["device"]), standard(3))
    problem.batch_size = 4
    with pytest.raises(RiskError, match="One row through the network does not fit"):
        problem.margin(torch.zeros(9, 3))
    broken = RiskProblem(Small(0, lambda: RuntimeError("shapes")), standard(3))
    broken.batch_size = 4
    with pytest.raises(RuntimeError, match="shapes"):
        broken.margin(torch.zeros(9, 3))
