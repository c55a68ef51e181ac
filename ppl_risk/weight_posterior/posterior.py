r"""What is known of a layer's weights, and what that makes of the layer: deviations of the weights, or noise on its output.

`Spread` has independent deviations sigma u; `Joint` a covariance over a Linear layer's flattened [weight, bias]. Each can draw the
deviations themselves from u (`deviations`), or, for a Linear layer, the noise they put on its output given what it reads (`noise`):

    Spread  sqrt(S^2 x^2 + s_b^2) u          Joint  chol(J Sigma J^T) u,   (J Sigma J^T)_op = x~^T Sigma_(o.)(p.) x~,  x~ = (x, 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError, UnknownNameError
from ppl_risk.network import named_modules

#: Added to the diagonal of J Sigma J^T, relative to its mean: a Sigma of less than full rank has a root too.
JITTER = 1e-10


class Spread(nn.Module):
    """Independent normal deviations of a module's own parameters: local name -> standard deviation of its shape.

    Example:
        >>> Spread("0", {"bias": torch.full((3,), 0.1)}).deviations(torch.ones(1, 3))["bias"].tolist()
        [[0.10000000149011612, 0.10000000149011612, 0.10000000149011612]]
    """

    def __init__(self, owner: str, deviations: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.owner, self.names = owner, tuple(deviations)
        for local, sigma in deviations.items():
            self.register_buffer(local, sigma.contiguous())
        self.size = sum(sigma.numel() for sigma in deviations.values())

    def deviations(self, u: Float[Tensor, "rows size"]) -> dict[str, Tensor]:
        """Local name -> deviation (rows, *shape)."""
        sigmas = [self.get_buffer(local) for local in self.names]
        parts = u.split([sigma.numel() for sigma in sigmas], -1)
        return {
            local: part.reshape(-1, *sigma.shape) * sigma
            for local, sigma, part in zip(self.names, sigmas, parts, strict=True)
        }

    def noise(self, x: Float[Tensor, "rows n"], u: Float[Tensor, "rows units"]) -> Float[Tensor, "rows units"]:
        """What the deviations add to W x + b."""
        variance = torch.zeros_like(u)
        if "weight" in self.names:
            variance = x.square() @ self.get_buffer("weight").square().mT
        if "bias" in self.names:
            variance = variance + self.get_buffer("bias").square()
        # The root has no gradient at 0, where x is 0 too (a row of dead units).
        return variance.clamp(min=torch.finfo(u.dtype).tiny).sqrt() * u


class Joint(nn.Module):
    """Jointly normal deviations of a Linear layer's weight (units, n) and bias (units,).

    Args:
        owner: name of the layer. layer: the layer. covariance: over the flattened [weight, bias], weight row by row.

    Raises:
        RiskError: not a covariance of that size.

    Example:
        >>> Joint("head", nn.Linear(2, 1), torch.eye(3)).deviations(torch.ones(4, 3))["weight"].shape
        torch.Size([4, 1, 2])
    """

    def __init__(self, owner: str, layer: nn.Linear, covariance: Tensor) -> None:
        super().__init__()
        self.owner, self.names = owner, tuple(local for local, _ in layer.named_parameters(recurse=False))
        units, n = layer.weight.shape
        self.size = layer.weight.numel() + (units if layer.bias is not None else 0)
        if covariance.shape != (self.size, self.size):
            raise RiskError(
                f'The covariance of "{owner}" has shape {tuple(covariance.shape)}; its weight and bias together have {self.size} '
                f"numbers, so ({self.size}, {self.size}) is wanted."
            )
        full = covariance.detach().double()
        ridge = JITTER * full.diagonal().mean() * torch.eye(self.size, dtype=full.dtype, device=full.device)
        root, failed = torch.linalg.cholesky_ex(full + ridge)
        if int(failed) or not torch.allclose(full, full.mT, rtol=1e-4, atol=1e-6 * float(full.diagonal().abs().max())):
            raise RiskError(f'The covariance of "{owner}" is not symmetric and positive definite.')
        # Unit by unit: the n weights of a unit, then its bias.
        order = torch.arange(units * n).reshape(units, n)
        if layer.bias is not None:
            order = torch.cat([order, units * n + torch.arange(units)[:, None]], 1)
        flat = order.reshape(-1).to(full.device)
        like = layer.weight
        blocks = full[flat][:, flat].reshape(units, order.shape[1], units, order.shape[1])
        self.shape = (units, n)
        self.register_buffer("root", root.to(like.device, like.dtype))
        self.register_buffer("blocks", blocks.to(like.device, like.dtype))

    def deviations(self, u: Float[Tensor, "rows size"]) -> dict[str, Tensor]:
        """Local name -> deviation (rows, *shape)."""
        flat = u @ self.get_buffer("root").mT
        weights = self.shape[0] * self.shape[1]
        found = {"weight": flat[:, :weights].reshape(-1, *self.shape)}
        return found | ({"bias": flat[:, weights:]} if "bias" in self.names else {})

    def noise(self, x: Float[Tensor, "rows n"], u: Float[Tensor, "rows units"]) -> Float[Tensor, "rows units"]:
        """What the deviations add to W x + b."""
        read = torch.cat([x, torch.ones_like(x[:, :1])], 1) if "bias" in self.names else x
        # In float64: a covariance of nearly dependent outputs has no root in float32.
        blocks, read = self.get_buffer("blocks").double(), read.double()
        covariance = torch.einsum("bi,oipj,bj->bop", read, blocks, read)
        spread = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        eye = torch.eye(self.shape[0], dtype=torch.float64, device=x.device)
        root = torch.linalg.cholesky(covariance + (JITTER * spread + 1e-30) * eye)
        return (root @ u.double()[..., None])[..., 0].to(u.dtype)


def spreads_of(
    network: nn.Module, posterior: Mapping[str, float | Tensor], collapse: bool
) -> dict[str, Spread | Joint]:
    """The posterior by module: name of the owner -> spread of its own parameters.

    Raises:
        UnknownNameError, RiskError: as in `uncertain_weights`.

    Example:
        >>> list(spreads_of(nn.Sequential(nn.Linear(2, 1)), {"0.bias": 0.1}, True))
        ['0']
    """
    modules = named_modules(network, None)
    places = {
        (f"{name}.{local}" if module is not network else local): (name, local, p)
        for name, module in modules.items()
        for local, p in module.named_parameters(recurse=False)
    }
    owners: dict[int, list[str]] = {}
    for full, (_, _, p) in places.items():
        owners.setdefault(id(p), []).append(full)
    joint: dict[str, Spread | Joint] = {}
    single: dict[str, dict[str, Tensor]] = {}
    for key, value in posterior.items():
        if key in places:
            name, local, p = places[key]
            if len(owners[id(p)]) > 1:
                raise RiskError(
                    f'The weights "{key}" are shared ({", ".join(owners[id(p)])}): two layers would need the same draw. Untie them.'
                )
            single.setdefault(name, {})[local] = _sigma(key, value, p)
        elif isinstance(layer := modules.get(key), nn.Linear):
            joint[key] = Joint(key, layer, torch.as_tensor(value))
        else:
            raise UnknownNameError(
                f'posterior names "{key}", which is no parameter and no Linear layer. Parameters: {", ".join(places)}.'
            )
    if both := joint.keys() & single.keys():
        raise RiskError(f"posterior gives both a covariance and standard deviations for {sorted(both)}. Give one.")
    if not posterior:
        raise RiskError("posterior is empty: no weight is uncertain. Use RiskProblem(network, inputs, detector).")
    found = joint | {name: Spread(name, parts) for name, parts in single.items()}
    for name in found:
        if collapse and not isinstance(modules[name], nn.Linear):
            raise RiskError(
                f'"{name}" is a {type(modules[name]).__name__}: only Linear layers can be collapsed. Use collapse=False.'
            )
    return {name: found[name] for name in modules if name in found}


def _sigma(name: str, value: float | Tensor, parameter: Tensor) -> Tensor:
    sigma = torch.as_tensor(value, dtype=parameter.dtype, device=parameter.device).detach()
    try:
        sigma = sigma.expand(parameter.shape)
    except RuntimeError as error:
        raise RiskError(
            f'The standard deviation of "{name}" has shape {tuple(sigma.shape)}; the parameter has {tuple(parameter.shape)}.'
        ) from error
    if not bool((sigma >= 0).all() & torch.isfinite(sigma).all()):
        raise RiskError(f'The standard deviation of "{name}" must be finite and >= 0 everywhere.')
    return sigma
