r"""Mean, covariance and third cumulant of the activations of a network, carried layer by layer.

A Gaussian re-fit after every layer forgets that sums of ReLUs are skewed and share a fluctuating scale. Here activations x
have the law's first two cumulants in full, the third, T_abc = kappa(x_a, x_b, x_c), in factors, and of the fourth one number:

    T = sum_r w_r (m_r e_r e_r + e_r m_r e_r + e_r e_r m_r) + (m_r m_r d_r + m_r d_r m_r + d_r m_r m_r)
    kappa(x_a, x_b, x_c, x_d) = tau (S_ab S_cd + S_ac S_bd + S_ad S_bc)

with r over the units of the activations passed so far (w weights, m middles, e ends, d repeats; juxtaposition is the outer
product) and S the covariance: tau is the squared coefficient of variation of the common variance that the activations share.
Cost of L layers: 4 n^3 L FLOPs for the covariances, 6 n^3 L (L - 1) for the factors, which take 24 n^2 L bytes.

An affine map acts on the vectors m, e, d. An activation, with the Hermite coefficients c[p, k] of its centred powers g^p
(see `cumulants_activation`), correlations R, and T and the rest in units of the standard deviations, is expanded about the
Gaussian with the same means and covariance:

    E g_i^p              = c[p,0] + T_iii c[p,3] / 6 + tau c[p,4] / 8
    Cov(g_i^p, g_j^q)    = c_i[p,1] c_j[q,1] R_ij + c_i[p,2] c_j[q,2] ((1 + tau) R_ij^2 / 2 + tau / 4)
                           + (c_i[p,2] c_j[q,1] T_iij + c_i[p,1] c_j[q,2] T_ijj) / 2,       i != j
    kappa(g_i, g_j, g_k) = c_i[1,1] c_j[1,1] c_k[1,1] T_ijk + (c_i[1,1] R_ij c_j[1,2] R_jk c_k[1,1] + 2 rotations)

the last for distinct i, j, k: a path over a middle j, hence n new factors a layer. Where indices repeat, kappa(g_i, g_i, g_j)
= Cov(g_i^2, g_j) and kappa(g_i, g_i, g_i) = E g_i^3; what the paths get wrong there goes into the repeats d. tau is refitted
so that the full trace sum_ij kappa(g_i, g_i, g_j, g_j) is right.

Source of the expansion, the factors and the trace: "kprop" of order 3, Wu, Lecomte, Winer, Robinson, Hilton, Christiano 2026,
arXiv 2605.05179. Ours: the fourth cumulant lies along S, not along the identity, which lowers the squared error of means.
Theirs is the claim that squared errors of means fall as (layers / width)^3 in random networks. Nothing is certified: the
expansion is one in small cumulants, a unit that hardly ever switches may get a mean slightly below what f can give, and a
covariance need not come out positive semi-definite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.propagation.cumulants_activation import hermite_table, recentred
from ppl_risk.propagation.skewed import corrected_tail

#: Variances are kept above this share of the largest; negative ones beyond the second are no rounding.
SMALLEST_SHARE, ROUNDING = 1e-14, 1e-9
#: A correlation beyond this is of no law. Measured at order 3: where means still gain over order 2 correlations keep below 1, and
#: soon after one passed 1.05 they were worse, without bound in a network of 32 layers.
LARGEST_CORRELATION = 1.05


@dataclass(frozen=True)
class ThirdCumulant:
    """The factors of T: weights w, and middles, ends and repeats side by side in the columns of `legs`."""

    weights: Float[Tensor, " r"]
    legs: Float[Tensor, "n 3*r"]

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Middles, ends and repeats, (n, r) each."""
        middles, ends, repeats = self.legs.chunk(3, dim=1) if len(self.weights) else 3 * (self.legs,)
        return middles, ends, repeats

    def repeated(self) -> Float[Tensor, "n n"]:
        """T_iij at (i, j)."""
        m, e, d = self.parts
        squares = [self.weights * e**2 + 2 * m * d, 2 * self.weights * m * e, m**2]
        return torch.cat(squares, dim=1) @ self.legs.T

    def diagonal(self) -> Float[Tensor, " n"]:
        """T_iii."""
        m, e, d = self.parts
        return 3 * (m * (self.weights * e**2 + m * d)).sum(1)


@dataclass(frozen=True)
class Cumulants:
    """Law of a vector of activations up to its third cumulant, double precision; differentiable throughout.

    Attributes:
        mean: (n,), in units of the activations.
        covariance: (n, n), in their squares.
        factors: of the third cumulant, in their cubes.
        tau: the common fourth cumulant over squared covariances, no unit; 0 for a Gaussian. Any linear form of the
            activations has excess kurtosis 3 tau.

    Example:
        >>> x = Cumulants.gaussian(torch.zeros(2), torch.eye(2)).affine(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        >>> print(x.activation("relu").affine(torch.ones(1, 2)).mean)  # 2 sd / sqrt(2 pi)
        tensor([1.1284], dtype=torch.float64)
    """

    mean: Float[Tensor, " n"]
    covariance: Float[Tensor, "n n"]
    factors: ThirdCumulant
    tau: Float[Tensor, ""]

    @staticmethod
    def gaussian(mean: Float[Tensor, " n"], covariance: Float[Tensor, "n n"]) -> Cumulants:
        """N(mean, covariance)."""
        mean, covariance = mean.double(), covariance.double()
        return Cumulants(
            mean, covariance, ThirdCumulant(mean.new_zeros(0), mean.new_zeros(len(mean), 0)), mean.new_zeros(())
        )

    def affine(self, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"] | None = None) -> Cumulants:
        """Law of weight @ x + bias."""
        weight = weight.double()
        mean = weight @ self.mean
        return Cumulants(
            mean if bias is None else mean + bias.double(), weight @ self.covariance @ weight.T,
            ThirdCumulant(self.factors.weights, weight @ self.factors.legs), self.tau,
        )  # fmt: skip

    def activation(self, f: str | Callable[[Tensor], Tensor], *, order: int = 3) -> Cumulants:
        """Law of f(x), elementwise.

        Args:
            f: "relu", "gelu", "tanh", "sigmoid", "silu", or an elementwise function of a tensor, smooth if it can be.
            order: 3, or 2 for means and covariances only, as if x were Gaussian.

        Raises:
            RiskError: another order, or a name that is not known; covariances of no law, by which the expansion shows that
                the network is too narrow or too deep for it.

        Example:
            >>> x = Cumulants.gaussian(torch.zeros(1), torch.eye(1)).activation("relu")
            >>> f"{x.covariance.item():.4f} {x.third(torch.eye(1)).item():.4f}"  # 1/2 - 1/(2 pi); E (relu - mean)^3
            '0.3408 0.3265'
        """
        if order not in (2, 3):
            raise RiskError(f"Cumulants are carried to order 2 or 3, not {order}.")
        sd, correlation = _standardised(self.covariance)
        mean, table = hermite_table(f, self.mean, sd)
        if order == 2:
            slope, bend = table[0, 1], table[0, 2]
            shared = torch.outer(slope, slope) * correlation + torch.outer(bend, bend) * correlation**2 / 2
            return Cumulants.gaussian(mean, shared + torch.diag(table[1, 0]))
        mean_shift = self._expectations(table, sd)[0]
        table = recentred(table, mean_shift)
        # T_iij and the fourth cumulant of pairs, in units of the standard deviations
        skewed = _distinct(self.factors.repeated() / sd / sd[:, None] ** 2)
        curved = (1 + self.tau) * correlation**2 / 2 + _distinct(self.tau.expand_as(correlation)) / 4

        def paired(p: int, q: int) -> Tensor:
            """Cov(g_i^p, g_j^q) off the diagonal."""
            (one_p, two_p), (one_q, two_q) = table[p - 1, 1:3], table[q - 1, 1:3]
            mixed = torch.outer(two_p, one_q) * skewed + torch.outer(one_p, two_q) * skewed.T
            return torch.outer(one_p, one_q) * correlation + torch.outer(two_p, two_q) * curved + mixed / 2

        _, second, third, fourth = self._expectations(table, sd)
        second = _kept_positive(second, table[1, 0])
        covariance = paired(1, 1) + torch.diag(second)

        slope, bend = table[0, 1], table[0, 2]
        ends = slope[:, None] * correlation
        # what the other factors give at (i, i, j) and (i, i, i); the repeats make up the difference
        given = torch.outer(slope**2, slope) * skewed + bend * ends**2
        corner = (slope / sd) ** 3 * self.factors.diagonal()
        repeats = (paired(2, 1) - given).T + torch.diag((third - corner) / 3)
        middles, old_ends, old_repeats = self.factors.parts
        gain = (slope / sd)[:, None]
        legs = [gain * middles, torch.eye(len(sd)).to(sd), gain * old_ends, ends, gain * old_repeats, repeats]
        trace = (paired(2, 2) - 2 * _distinct(covariance) ** 2).sum() + (fourth - 3 * second**2).sum()
        tau = trace / (second.sum() ** 2 + 2 * (covariance**2).sum()).clamp(min=torch.finfo(sd.dtype).tiny)
        return Cumulants(
            mean + mean_shift, covariance, ThirdCumulant(torch.cat([self.factors.weights, bend]), torch.cat(legs, dim=1)), tau
        )  # fmt: skip

    def _expectations(self, table: Tensor, sd: Tensor) -> Tensor:
        """E g^p, (powers, n): the Gaussian's with the corrections for skewness and for tau."""
        return table[:, 0] + self.factors.diagonal() / sd**3 * table[:, 3] / 6 + self.tau * table[:, 4] / 8

    def third(self, directions: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
        """kappa_3 of the linear forms directions @ x, in cubes of their units."""
        return ThirdCumulant(self.factors.weights, directions.double() @ self.factors.legs).diagonal()

    def skewness(self) -> Float[Tensor, " n"]:
        """T_iii over the cubed standard deviation, no unit; not defined where the variance is 0."""
        return self.factors.diagonal() / self.covariance.diagonal() ** 1.5

    def log_tail(self, threshold: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log Pr[x_i > threshold_i], nats, of a law with these moments, see `corrected_tail`; for x after an affine map."""
        sd = self.covariance.diagonal().sqrt()
        return corrected_tail(self.mean, sd, self.skewness(), threshold, (3 * self.tau).expand_as(sd))


def _standardised(covariance: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Standard deviations and, with a zero diagonal, correlations."""
    variance = covariance.diagonal()
    smallest = SMALLEST_SHARE * float(variance.detach().amax()) + torch.finfo(variance.dtype).tiny
    sd = variance.clamp(min=smallest).sqrt()
    correlation = _distinct(covariance / sd / sd[:, None])
    largest, least = float(correlation.detach().abs().amax()), float(variance.detach().amin())
    if not largest <= LARGEST_CORRELATION or least < -ROUNDING * float(variance.detach().amax()):
        raise RiskError(
            f"These cumulants are of no law (largest correlation {largest:.3g}, least variance {least:.3g}): the expansion has "
            "broken down, as it does in narrow and deep networks. Carry cumulants to order 2, or sample."
        )
    return sd, correlation.clamp(-1, 1)


def _distinct(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The matrix with a zero diagonal."""
    return matrix - torch.diag(matrix.diagonal())


def _kept_positive(corrected: Float[Tensor, " n"], gaussian: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Variances g (1 + x) as g / (-4 x) where x < -1/2: units that hardly switch, whose expansion may turn negative."""
    x = corrected / gaussian.clamp(min=torch.finfo(gaussian.dtype).tiny) - 1
    return torch.where(x < -0.5, gaussian / (-4 * x.clamp(max=-0.5)), corrected)
