"""What the layers of a network do with the rows of a batch: which can be sites, and which one mixes rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ppl_risk.network import first_of, has_scripted
from ppl_risk.problem import RiskProblem

#: Names that a note lists at most.
MOST = 3


def is_plain(value: object) -> bool:
    """Whether a value can be asked for its numbers: inside torch.func's transforms it cannot."""
    return isinstance(value, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


@contextmanager
def watching(problem: RiskProblem, look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While the block runs, `look` receives name and value of what every module without children returns."""

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            value = first_of(output)
            if value is not None and is_plain(value):
                look(name, value)

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in problem.modules.items() if not list(m.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sites(problem: RiskProblem) -> tuple[str, str]:
    """Which layers can be sites: a finding ("ok" or "note", message)."""
    if not problem.cut:
        scripted = has_scripted(problem.network, problem.detector)
        why = "TorchScript takes no hooks" if scripted else "no module is known to be affine"
        return "note", (
            f"no layers ({why}): the input is the only site, all guide families are one, and fit_layerwise and select do not "
            "apply"
        )
    left_out: dict[str, str] = {}
    values, _ = problem.activations(problem.sample(64), left_out)
    parts = [f'"{name}" {why}' for name, why in list(left_out.items())[:MOST]]
    if left_out:
        parts.append(
            "such layers are no sites: the posterior leaves them out, and guides that model layers refuse until "
            "layers=[...] does without them"
        )
    often: dict[str, int] = {}
    for name in [*values, *left_out]:
        layer = name.split("#")[0]
        often[layer] = often.get(layer, 0) + 1
    parts += [f'"{name}" runs {count} times per row' for name, count in list(often.items())[:MOST] if count > 1]
    if parts:
        return "note", "; ".join(parts)
    return "ok", f"{len(values)} sites, each with a value for every row"


def mixing_layer(problem: RiskProblem, x: Tensor) -> str:
    """The first module whose values for the first row change with the rows beside it; "" where none is found."""
    found: list[list[tuple[str, Tensor]]] = []
    for rows in (x, torch.cat([x[:1], x[:1]])):
        values: list[tuple[str, Tensor]] = []
        with watching(problem, lambda name, value: values.append((name, value.detach().clone()))):  # noqa: B023
            problem.run(rows)
        found.append(values)
    for (name, many), (other, alone) in zip(*found, strict=False):
        if name != other or not many.dim() or not alone.dim() or many.shape[1:] != alone.shape[1:] or not len(many):
            return ""
        scale = float(many.abs().max())
        if float((many[:1].double() - alone[:1].double()).abs().max()) > 1e-3 * scale:
            return name
    return ""
