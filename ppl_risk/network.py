"""Cutting a network at named modules: read or replace what they return, without rewriting the network.

Names are dotted module names, as in `named_modules()`; modules of a detector are prefixed `detector.`, or `detector_.` where
the network has a module called so. A module that is called twice in one pass has a second site `name#2`. Tuples are handled
as in transformers: the first entry counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from ppl_risk.errors import UnknownNameError

AFFINE = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
#: What a visitor does with an output: it receives the site's name and value and returns the value to go on with. A reader does
#: the same with what a layer is about to read, so that the layer alone sees the change: a residual stream passes untouched.
Visitor = Callable[[str, Tensor], Tensor]


def named_modules(network: object, detector: object | None) -> dict[str, nn.Module]:
    """Every module of network and detector by the name that sites use."""
    found: dict[str, nn.Module] = {}
    for prefix, part in (("", network), ("detector", detector)):
        if isinstance(part, nn.Module):
            while prefix and any(name.split(".")[0] == prefix for name in found):
                prefix += "_"  # the network has a module of that name
            for name, module in part.named_modules():
                full = ".".join(filter(None, (prefix, name))) or "network"
                found.setdefault(full, module)
    return found


def layers_to_cut(modules: Mapping[str, nn.Module], layers: list[str] | None) -> dict[str, nn.Module]:
    """The modules at which activations become sites: `layers`, or by default every affine module.

    Raises:
        UnknownNameError: a name in `layers` is no module; the message lists those that are.
    """
    if layers is None:
        return {name: module for name, module in modules.items() if isinstance(module, AFFINE)}
    missing = [name for name in layers if name not in modules]
    if missing:
        raise UnknownNameError(
            f"layers names {missing}, which the network does not have. Its modules: {', '.join(modules) or 'none'}."
        )
    return {name: modules[name] for name in layers}


@contextmanager
def visiting(modules: Mapping[str, nn.Module], visit: Visitor | None, read: Visitor | None = None) -> Iterator[None]:
    """While the block runs, every output of the named modules goes through `visit`, every first argument through `read`."""

    def site_names(name: str) -> Callable[[], str]:
        calls = 0

        def next_name() -> str:
            nonlocal calls
            calls += 1
            return name if calls == 1 else f"{name}#{calls}"

        return next_name

    def after(name: str, change: Visitor) -> Callable[..., object]:
        next_name = site_names(name)

        def hook(_module: nn.Module, _args: object, output: object) -> object:
            if isinstance(output, tuple):
                return (change(next_name(), output[0]), *output[1:])
            return change(next_name(), output)  # pyright: ignore[reportArgumentType]

        return hook

    def before(name: str, change: Visitor) -> Callable[..., object]:
        next_name = site_names(name)

        def hook(_module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> object:
            if args:
                return (change(next_name(), args[0]), *args[1:]), named
            first = next(iter(named))
            return args, named | {first: change(next_name(), named[first])}

        return hook

    handles = []
    for name, module in modules.items():
        if read is not None:
            handles.append(module.register_forward_pre_hook(before(name, read), with_kwargs=True))
        if visit is not None:
            handles.append(module.register_forward_hook(after(name, visit)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
