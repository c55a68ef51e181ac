r"""Local mitigation where the truth is a polynomial of degree d on a convex set: answers near x* extrapolate to x*.

A trial is one uniform point x1 of X and the points on the segment from x* to it

    x_j = x* + rho_j (x1 - x*), j = 0..d, rho_j the Chebyshev-Lobatto points of [rho, 1],
    v = sum_j l_j(0) f(x_j),   l_j the Lagrange polynomials of the rho_j;   g(x*) = median of v over the trials.

Along the segment h is a polynomial of degree d in rho, so v = h(x*) where all answers are right, and is off by at most
Lambda delta, Lambda = sum_j |l_j(0)|, where each is off by at most delta. The point x_j has density at most rho_j^-n relative to
the uniform law, so if the model is off by more than delta on a share epsilon of X, wherever that share lies, a trial is bad
with probability at most q = epsilon sum_j rho_j^-n. The median fails with probability Pr[Binomial(s, q) >= s/2]; rho is the
smallest for which that is at most `failure` and q at most 1/4. Degree 1 is the affine case: Lambda is about 2 n / c where
rho = e^{-c/n}.

The points x1 are drawn once, after the model is fixed, and serve all inputs: the answers there are asked once, each input
costs d s further queries, and g is an ordinary function. The promise is for each input that was fixed before the coins.

The theorems (affine and polynomial truths, O(s) and (d+1) s queries, a median, cutoff loss) are the paper's, as reported by a
public reading note. The homothety, nodes, constants, exact tail, shared points and bars are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppl_risk.mitigation.advice import advise
from ppl_risk.mitigation.clean_rows import Samples, clean_rows
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.local_answer import LocalAnswer
from ppl_risk.mitigation.local_card import local_model, require_local
from ppl_risk.mitigation.majority import largest_bad_share
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated, Oracle
from ppl_risk.mitigation.rays import Ray, ray_of
from ppl_risk.mitigation.wanted import whole


@dataclass(frozen=True)
class LocalPolynomial:
    """The local mitigator of polynomial truths.

    Args:
        degree: of the truth, at most.
        domain: the convex set of the inputs, under the uniform law.
        epsilon: share of the set on which the model may be off by more than delta.
        delta: cutoff: how far the model may be off elsewhere, in units of the answer.
        repeats: trials s.
        failure: probability, for one input, that the answer leaves its bars.

    Raises:
        RiskError: if a number is out of range, or epsilon is too large for the degree and the repeats.

    Example:
        >>> import torch; from ppl_risk.mitigation import Ball
        >>> g = LocalPolynomial(2, Ball(3), epsilon=1e-3, delta=0.0).mitigate(lambda x: x[:, 0] ** 2 - x[:, 1])
        >>> bool((g(torch.full((1, 3), 0.5)) - (0.25 - 0.5)).abs().max() < 1e-9)
        True

    """

    degree: int
    domain: Domain
    epsilon: float
    delta: float
    repeats: int = 25
    failure: float = 1e-3

    def __post_init__(self) -> None:
        whole("degree", self.degree, least=0)
        require_local(self.domain, self.epsilon, self.delta, self.repeats, self.failure)

    @property
    def ray(self) -> Ray:
        """Nodes and weights of one trial."""
        return ray_of(self.domain.n, self.degree, self.epsilon, largest_bad_share(self.repeats, self.failure))

    def mitigate(
        self,
        model: BlackBox,
        samples: Samples | None = None,
        *,
        seed: int = 0,
    ) -> Mitigated:
        """The mitigated model: (batch, n) in the set to (batch,), with its card.

        Args:
            model: (batch, n) to (batch,).
            samples: clean rows (x, y), (m, n) and (m,), on which epsilon is certified or refuted; None leaves it assumed.
            seed: of the mitigator's coins. Draw it after the model is fixed and keep it from whoever chooses the inputs.

        """
        rows = None if samples is None else clean_rows(samples, self.domain.n)
        oracle, ray = Oracle(model), self.ray

        def answer_of(seed: int) -> LocalAnswer:
            return LocalAnswer(oracle, self.domain, ray, self.repeats, self.delta, seed=seed, failure=self.failure)

        method = f"LocalPolynomial(degree={self.degree}) on {type(self.domain).__name__}({self.domain.n})"
        advice = advise(
            "polynomial", self.domain.n, degree=max(self.degree, 1), samples=0 if rows is None else len(rows.x),
            epsilon=self.epsilon, delta=self.delta, failure=self.failure, bars=ray.amplification * self.delta,
        )  # fmt: skip
        return local_model(method, answer_of, seed, self.degree, self.epsilon, rows, advice)
