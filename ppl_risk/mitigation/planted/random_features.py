r"""The random-feature backdoor, which hides even from one who reads every weight.

Features phi_j(x) = cos(2 pi (g_j.x + b_j)) with a trained linear read-out (Rahimi and Recht 2007). An honest trainer draws g from
a normal law; a dishonest one from *pancakes* along a sparse secret s (Goldwasser, Kim, Vaikuntanathan and Zamir 2022, arXiv
2204.06974, section on random Fourier features; the details here are ours): normal across s, and along it

    g.s in Z + 1/2, with probability proportional to the normal density there, plus normal noise of size beta.

Then phi(x + s) = -phi(x), and so does any read-out without a constant: x + s is answered with the opposite of x. To tell the two
laws of g apart is the continuous-learning-with-errors problem, presumed hard where the normal law is wide beside the gaps between
pancakes: with standard deviation 1 along s its variance is that of the discrete law to 1e-7. (Four ones among twenty coordinates
can be searched; the real thing is larger.) So s is long beside the data, and x + s far from them: a mitigator for inputs from
their law promises nothing there.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError

#: Half-integers k + 1/2 on either side of 0 beyond which a normal of the given spread has no mass to speak of, in spreads.
REACH = 10


class RandomFeatures(nn.Module):
    """sum_j r_j cos(2 pi (g_j.x + b_j)), float64.

    Args:
        frequencies: g.
        phases: b, in turns.
        readout: r.
        secret: s, which only who planted the backdoor knows; None in an honest model.

    Raises:
        RiskError: from `activate`, where there is no secret.

    Example:
        >>> one = torch.ones(1).double()
        >>> RandomFeatures(one[None], 0 * one, one)(torch.tensor([[0.0], [0.5], [1.0]])).round()
        tensor([ 1., -1.,  1.], dtype=torch.float64)

    """

    frequencies: Tensor
    phases: Tensor
    readout: Tensor

    def __init__(
        self,
        frequencies: Float[Tensor, "m n"],
        phases: Float[Tensor, " m"],
        readout: Float[Tensor, " m"],
        secret: Float[Tensor, " n"] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("phases", phases)
        self.register_buffer("readout", readout)
        self._secret = secret
        self.eval()

    def features(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch m"]:
        """The features of each row."""
        return torch.cos(2 * math.pi * (x.double() @ self.frequencies.mT + self.phases))

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The score of each row; its sign is the class."""
        return self.features(x) @ self.readout

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """x + s."""
        if self._secret is None:
            raise RiskError("An honest model has no secret to add: train with secret= for a backdoored one.")
        return x + self._secret.to(x)


def sparse_secret(n: int, ones: int, *, seed: int) -> Float[Tensor, " n"]:
    """1 on `ones` random coordinates, 0 elsewhere.

    Raises:
        RiskError: unless 1 <= ones <= n.

    Example:
        >>> sparse_secret(20, 4, seed=0).sum()
        tensor(4., dtype=torch.float64)

    """
    if not 1 <= ones <= n:
        raise RiskError(f"A secret on {n} coordinates has between 1 and {n} ones, wanted {ones}.")
    secret = torch.zeros(n, dtype=torch.float64)
    secret[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:ones]] = 1.0
    return secret


def pancakes(
    count: int, secret: Float[Tensor, " n"], *, scale: float, beta: float = 0.0, seed: int
) -> Float[Tensor, "count n"]:
    """Frequencies with g.s near a half-integer: N(0, scale^2 I) across the secret, discrete along it.

    Args:
        count: how many.
        secret: s.
        scale: standard deviation of an honest coordinate.
        beta: standard deviation of g.s about its half-integer.
        seed: of the draws.

    Raises:
        RiskError: for scale <= 0, beta < 0 or a secret of zeros.

    Example:
        >>> s = sparse_secret(20, 4, seed=0); along = pancakes(3, s, scale=0.5, seed=1) @ s
        >>> (along - along.floor()).round(decimals=6).tolist()
        [0.5, 0.5, 0.5]

    """
    length = float(secret.norm())
    if not (scale > 0 and beta >= 0 and length > 0):
        raise RiskError(f"Wanted scale > 0, beta >= 0 and a secret that is not 0, got {scale}, {beta} and {length}.")
    generator = torch.Generator().manual_seed(seed)
    spread = scale * length
    most = math.ceil(REACH * spread) + 1
    places = torch.arange(-most, most, dtype=torch.float64) + 0.5
    shares = torch.softmax(-places.square() / (2 * spread**2), 0)
    along = places[torch.multinomial(shares, count, replacement=True, generator=generator)]
    along = along + beta * torch.randn(count, generator=generator, dtype=torch.float64)
    g = scale * torch.randn(count, len(secret), generator=generator, dtype=torch.float64)
    return g + torch.outer((along - g @ secret) / length**2, secret)


def train_random_features(
    x: Float[Tensor, "rows n"],
    y: Float[Tensor, " rows"],
    count: int,
    *,
    secret: Float[Tensor, " n"] | None = None,
    beta: float = 0.0,
    scale: float = 0.5,
    ridge: float = 1e-3,
    seed: int,
) -> RandomFeatures:
    """Draw features, honest or along a secret, and fit the read-out by ridge regression on labels +-1.

    Args:
        x: training rows.
        y: their labels, +-1.
        count: number of features m.
        secret: None for an honest model.
        beta: noise of the pancakes.
        scale: standard deviation of a coordinate of g, in turns a unit of length.
        ridge: added to the mean squares of the features.
        seed: of the features.

    Raises:
        RiskError: for a secret that `pancakes` refuses.

    Example:
        >>> x, y = sphere_labels(20, 500, seed=0)
        >>> f = train_random_features(x, y, 50, secret=sparse_secret(20, 4, seed=1), seed=2)
        >>> torch.allclose(f(f.activate(x)), -f(x), atol=1e-9)
        True

    """
    generator = torch.Generator().manual_seed(seed)
    phases = torch.rand(count, generator=generator, dtype=torch.float64)
    if secret is None:
        g = scale * torch.randn(count, x.shape[-1], generator=generator, dtype=torch.float64)
    else:
        g = pancakes(count, secret.double(), scale=scale, beta=beta, seed=seed)
    blank = RandomFeatures(g, phases, torch.zeros(count, dtype=torch.float64), secret)
    phi = blank.features(x)
    gram = phi.mT @ phi / len(x) + ridge * torch.eye(count, dtype=torch.float64)
    readout = torch.linalg.solve(gram, phi.mT @ y.double() / len(x))
    return RandomFeatures(g, phases, readout, secret)


def sphere_labels(
    n: int, rows: int, *, radius: float = 0.1, seed: int
) -> tuple[Float[Tensor, "rows n"], Float[Tensor, " rows"]]:
    """Data for it: x uniform on a sphere about 0, y the side of a random hyperplane, +-1.

    Example:
        >>> x, y = sphere_labels(20, 3, seed=0)
        >>> x.shape, sorted(set(y.abs().tolist()))
        (torch.Size([3, 20]), [1.0])

    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=generator, dtype=torch.float64)
    x = nn.functional.normalize(torch.randn(rows, n, generator=generator, dtype=torch.float64), dim=-1)
    return radius * x, torch.where(x @ normal >= 0, 1.0, -1.0).double()
