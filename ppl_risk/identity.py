"""What makes a problem that problem: a fingerprint that tells whether a stored result, or a known answer, belongs to it.

Two halves. The first is a sha256 over every bit of the weights and is equal on one machine only: weights that are
computed, and margins, differ in their last bits elsewhere. The second holds, as numbers, the margins of 16 fixed inputs
and two projections of the weights; `same_problem` compares those within 1e-4 of their size. Inputs come from the law's
own map and an integer generator (splitmix64, Steele et al. 2014, doi:10.1145/2660193.2660195), so neither torch's random
streams nor the device matter.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded

POINTS = 16
#: How much wider than the law's own the inputs are at which its density is looked at.
WIDER = 3.0
#: Differences of margins and of projections that arithmetic alone can make, relative to their root mean square.
TOLERANCE = 1e-4
#: Weights are projected in pieces of this many.
PIECE = 2**18


@torch.no_grad()
def fingerprint(problem: RiskProblem) -> str:
    """Digest of weights, buffers and the margins of 16 fixed inputs; changes when network, detector or law do, not with the name.

    Args:
        problem: the problem; its meters count the 16 calls.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> near, far = (RiskProblem(lambda x, c=c: x[:, 0] - c, law) for c in (1.0, 2.0))
        >>> fingerprint(near) == fingerprint(near), fingerprint(near) == fingerprint(far)
        (True, False)
    """
    exact, structure = hashlib.sha256(), hashlib.sha256()
    for digest in (exact, structure):
        digest.update(repr(tuple(problem.inputs.event_shape)).encode())
    tensors = []
    for name, value in _state(problem):
        structure.update(name.encode())
        if isinstance(value, Tensor):
            value = _plain(value)
            structure.update(f"{value.dtype}{len(value)}".encode())
            exact.update(name.encode() + value.view(torch.uint8).numpy().tobytes())
            tensors.append(value)
        else:
            exact.update(f"{name} {value}".encode())
    margins = _margins(problem)
    exact.update(np.array([f"{m:.4e}" for m in margins]).tobytes())
    densities = _densities(problem)
    exact.update(np.array([f"{m:.4e}" for m in densities]).tobytes())
    numbers = np.concatenate([margins, densities, _projections(tensors)])
    with np.errstate(over="ignore"):
        sketch = base64.urlsafe_b64encode(numbers.astype(">f4").tobytes()).decode().rstrip("=")
    return f"{exact.hexdigest()}.{structure.hexdigest()[:8]}.{sketch}"


def same_problem(first: str, second: str) -> bool:
    """Whether two fingerprints are of one problem, also where two machines took them.

    Example:
        >>> same_problem("", ""), same_problem("0f", "f0")
        (True, False)
    """
    if first == second:
        return True
    try:
        (_, left, a), (_, right, b) = first.split("."), second.split(".")
        x, y = _numbers(a), _numbers(b)
    except ValueError:
        return False
    if left != right or x.shape != y.shape:
        return False
    blocks = np.split(np.stack([x, y]), [POINTS, 2 * POINTS], axis=1)
    return all(_close(*block) for block in blocks)


def _numbers(sketch: str) -> np.ndarray:
    raw = base64.urlsafe_b64decode(sketch + "=" * (-len(sketch) % 4))
    return np.frombuffer(raw, dtype=">f4").astype(float)


def _close(x: np.ndarray, y: np.ndarray) -> bool:
    finite = np.isfinite(x) & np.isfinite(y)
    scale = np.sqrt(np.mean(x[finite] ** 2)) if finite.any() else 0.0
    return bool(np.allclose(x, y, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True))


def _state(problem: RiskProblem) -> Iterator[tuple[str, Any]]:
    """Types of all modules, then everything that a state dict holds; functions show themselves in the margins only."""
    for part in (problem.network, problem.detector):
        if isinstance(part, nn.Module):
            yield from ((f"{name} {type(module).__name__}", "") for name, module in part.named_modules())
            for name, value in part.state_dict().items():
                yield (
                    name,
                    value if isinstance(value, Tensor) else json.dumps(value, default=lambda v: type(v).__name__),
                )


def _plain(value: Tensor) -> Tensor:
    value = value.detach()
    value = value.to_dense() if value.layout != torch.strided else value
    value = value.cpu().resolve_conj().reshape(-1)
    # A single number that was expanded has stride 0, counts as contiguous and cannot be viewed as bytes.
    return value.new_empty(value.shape).copy_(value)


def _margins(problem: RiskProblem) -> np.ndarray:
    # Seeded for networks that draw, and for laws that can only be sampled.
    with seeded(0, problem.device):
        try:
            x = problem.from_normal(_normals(POINTS, problem.transport.dimension))
        except RiskError:
            x = problem.sample(POINTS)
        return problem.run(x).double().reshape(-1).cpu().numpy()


def _densities(problem: RiskProblem) -> np.ndarray:
    """The law's log density at the fixed inputs, three times as wide: weights of a mixture show nowhere else.

    Of a Gaussian the margins show everything, and its density loses digits where it is ill-conditioned: left out, as NaN.
    """
    none = np.full(POINTS, np.nan)
    try:
        if problem.transport.affine is not None:
            return none
        x = problem.from_normal(WIDER * _normals(POINTS, problem.transport.dimension))
        found = problem.inputs.log_prob(x).double().reshape(-1).cpu().numpy()
    except Exception:  # a law without a map or a density, or one that refuses its own edge
        return none
    return found if found.shape == none.shape else none


def _normals(rows: int, dimension: int) -> Float[Tensor, "rows dimension"]:
    """Standard normals that are the same bits everywhere: splitmix64, then the normal quantile."""
    z = np.arange(1, rows * dimension + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = (((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(uniform)).reshape(rows, dimension)


def _projections(tensors: list[Tensor]) -> np.ndarray:
    """Root mean square of all weights, and two projections of them onto fixed directions, on the same scale."""
    golden = torch.tensor([0.6180339887498949, 0.7548776662466927], dtype=torch.float64)
    longest = min(PIECE, max((t.numel() for t in tensors), default=0))
    ramps = (golden[:, None] * torch.arange(1.0, longest + 1, dtype=torch.float64)) % 1.0 - 0.5
    total, squares, count = torch.zeros(2, dtype=torch.float64), 0.0, 0
    for block, piece in enumerate(p for t in tensors for p in t.split(PIECE) if p.numel()):
        values = (piece.abs() if piece.is_complex() else piece).double()
        total += (1 + (golden * block) % 1.0) * (ramps[:, : len(values)] @ values)
        squares += float(values @ values)
        count += len(values)
    return np.array([squares, *total.tolist()]) ** [0.5, 1, 1] / max(1.0, count) ** 0.5
