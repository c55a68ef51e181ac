r"""Hermite coefficients of an activation and of its centred powers under a Gaussian pre-activation.

For z ~ N(m, s^2), standardised Z = (z - m) / s, and g = f(z) - E f(z), the table holds

    c[p - 1, k] = E[g^p He_k(Z)] = s^k E[d^k g^p / dz^k],   p = 1..4, k = 0..4

(the second form by Stein's identity k times). They are all that a propagation of cumulants asks of an activation: p = 1 gives
means, p = 2 variances, p = 3 and 4 the higher cumulants; k >= 1 couples them to the cumulants of z, in units of s. For the
ReLU they are polynomials in a = m / s times phi(a) and Phi(a); for other activations they are trapezoidal
sums, which converge exponentially where an analytic function meets the normal density.

Sources: Price's theorem and Mehler's formula; for cumulants, Wu et al. 2026, arXiv 2605.05179.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError

#: Powers p and derivatives k that a third-order propagation needs.
POWERS, ORDERS = 4, 5
#: Nodes of the trapezoidal rule, so many standard deviations to either side. Denser where it matters than as many Gauss-Hermite
#: nodes: the table of tanh is right to 1e-8 of its size up to sd = 4 and to 1e-4 at 8, where 128 of those err by 1e-2 and 5e-2.
NODES, REACH = 257, 10.0
#: Beyond so many standard deviations a ReLU is linear, or zero, to double precision.
LINEAR_BEYOND = 9.0
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
}


def hermite_table(
    activation: str | Callable[[Tensor], Tensor], mean: Float[Tensor, " n"], sd: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "powers orders n"]]:
    """E f(z) and the table c[p - 1, k] of the module's first lines, z ~ N(mean, sd^2) elementwise.

    Args:
        activation: "relu" (closed form), "gelu", "tanh", "sigmoid", "silu", or any elementwise function of a tensor. A kink
            leaves errors of about 2e-4 of the table's size.
        mean: of z.
        sd: of z, positive.

    Raises:
        RiskError: a name that is not known.

    Example:
        >>> mean, table = hermite_table("relu", torch.zeros(1).double(), torch.ones(1).double())
        >>> f"{mean.item():.4f} {table[0, 1].item():.1f}"  # 1 / sqrt(2 pi), and half of the line passes
        '0.3989 0.5'
    """
    if activation == "relu":
        return _relu(mean, sd)
    if isinstance(activation, str):
        if activation not in SMOOTH:
            raise RiskError(
                f"No activation {activation!r}. There are: {', '.join(['relu', *SMOOTH])}; or pass a function."
            )
        activation = SMOOTH[activation]
    return _quadrature(activation, mean, sd)


def recentred(table: Float[Tensor, "powers orders n"], shift: Float[Tensor, " n"]) -> Float[Tensor, "powers orders n"]:
    """The table of the powers of g - shift, by the binomial formula."""
    one = torch.zeros_like(table[0])
    one[0] = 1.0
    below = [one, *table]
    rows = [
        torch.stack([math.comb(p, q) * (-shift) ** (p - q) * below[q] for q in range(p + 1)]).sum(0)
        for p in range(1, len(table) + 1)
    ]
    return torch.stack(rows)


def _relu(mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """In units of sd and with a clipped, so that nothing cancels for units that never switch."""
    a = (mean / sd).clamp(-LINEAR_BEYOND, LINEAR_BEYOND)
    density = torch.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(a)
    # d^k of the ReLU for k = 1..4 smoothed by the normal density: Phi, phi, then (-1)^(k-2) He_(k-2) phi
    power = [a * below + density, below, density, -a * density, (a**2 - 1) * density]
    rows, lower = [torch.stack(power)], below
    for p in range(2, POWERS + 1):  # E r^p = a E r^(p-1) + (p - 1) E r^(p-2), and d r^p = p r^(p-1)
        lower, moment = power[0], a * power[0] + (p - 1) * lower
        power = [moment, *(p * power[k] for k in range(ORDERS - 1))]
        rows.append(torch.stack(power))
    units = sd ** torch.arange(1, POWERS + 1, dtype=sd.dtype, device=sd.device)[:, None]
    table = recentred(torch.stack(rows), rows[0][0]) * units[:, None]
    return sd * rows[0][0] + (mean - LINEAR_BEYOND * sd).relu(), table


def _quadrature(activation: Callable[[Tensor], Tensor], mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Trapezoidal sums."""
    nodes, weighted = (t.to(mean.device) for t in _nodes())
    value = activation(mean[:, None] + sd[:, None] * nodes)
    centre = value @ weighted[:, 0]
    centred = value - centre[:, None]
    return centre, torch.stack([(centred**p @ weighted).T for p in range(1, POWERS + 1)])


@cache
def _nodes() -> tuple[Tensor, Tensor]:
    """Nodes and, a column an order, the weights of the normal law times He_k at them."""
    nodes = np.linspace(-REACH, REACH, NODES)
    weights = np.exp(-(nodes**2) / 2)
    values = np.polynomial.hermite_e.hermevander(nodes, ORDERS - 1)
    return torch.from_numpy(nodes), torch.from_numpy(weights[:, None] / weights.sum() * values)
