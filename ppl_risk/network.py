"""Cutting a network at named modules: read or replace what they return, without rewriting the network.

Names are dotted module names, as in `named_modules()`; modules of a detector are prefixed `detector.`, or `detector_.` where
the network has a module called so. A module that is called twice in one pass has a second site `name#2`. Tuples and dicts are
handled as in transformers: the first entry counts. Compiled modules run uncompiled, under the names that they have without
`torch.compile`; modules of TorchScript take no hooks and have no sites.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_risk.errors import UnknownNameError
from ppl_risk.wrapped import modules_behind

AFFINE = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
#: What a visitor does with an output: it receives the site's name and value and returns the value to go on with. A reader does
#: the same with what a layer is about to read, so that the layer alone sees the change: a residual stream passes untouched.
#: Values in half precision arrive in single. Whoever keeps what he receives keeps a copy: the next layer may work in place.
Visitor = Callable[[str, Tensor], Tensor]


def uncompiled(part: Any) -> Any:
    """A module or function as it was before `torch.compile`, which would compile anew for every set of hooks."""
    if isinstance(part, nn.Module):
        return getattr(part, "_orig_mod", part)
    return getattr(part, "_torchdynamo_orig_callable", part)


def is_scripted(module: object) -> bool:
    """Whether a module belongs to TorchScript (`torch.jit`)."""
    return isinstance(module, torch.jit.ScriptModule)


def has_scripted(*parts: object) -> bool:
    """Whether a module in any part belongs to TorchScript."""
    return any(is_scripted(m) for part in parts if isinstance(part, nn.Module) for m in part.modules())


@contextmanager
def eagerly(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """While the block runs, submodules that `torch.compile` wraps run as they were written."""
    if not any(_is_compiled(m) for m in modules.values()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or any(
        hasattr(child, "_orig_mod") for child in module.children()
    )


def named_modules(network: object, detector: object | None) -> dict[str, nn.Module]:
    """Every module of network and detector that takes hooks, also of one wrapped in a function, by the name that sites use."""
    found: dict[str, nn.Module] = {}
    for prefix, part in (("", network), ("detector", detector)):
        roots = modules_behind(part)
        while prefix and roots and any(name.split(".")[0] == prefix for name in found):
            prefix += "_"  # the network has a module of that name
        for holder, root in roots.items():
            for name, module in root.named_modules():
                inside = [piece for piece in name.split(".") if piece != "_orig_mod"]
                full = ".".join(filter(None, (prefix, holder, *inside))) or "network"
                if not is_scripted(module):
                    found[full] = uncompiled(module)
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


def is_half(dtype: torch.dtype) -> bool:
    """Whether a floating type is shorter than single precision; NumPy, Pyro and covariances want single at least."""
    return dtype.is_floating_point and dtype.itemsize < 4


def own(value: Tensor) -> Tensor:
    """A copy that may be changed in place; the value itself where a network is being recorded."""
    return value if get_proxy_mode() is not None else value.clone()


def first_of(output: object) -> Tensor | None:
    """The tensor that counts in what a module returns: itself, or the first entry of a tuple, list or dict."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, tuple | list) and not isinstance(output, nn.utils.rnn.PackedSequence):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def _with_first(output: Any, value: Tensor) -> Any:
    """What a module returns, its first tensor exchanged."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, Mapping):
        made: Any = copy.copy(output)
        made[next(iter(output))] = value
        return made
    entries = [value, *output[1:]]
    return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)


def _why_unreadable(output: object) -> str:
    """Why what a module returns is no site; "" where it is one."""
    value = first_of(output)
    if value is None:
        return f"returns {type(output).__name__}, not a tensor"
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return "runs inside torch.func (vmap, grad), where it has no batch of its own"
    return ""


@contextmanager
def visiting(
    modules: Mapping[str, nn.Module],
    visit: Visitor | None,
    read: Visitor | None = None,
    skipped: dict[str, str] | None = None,
) -> Iterator[None]:
    """While the block runs, every output of the named modules goes through `visit`, every first argument through `read`.

    What cannot be a site passes untouched, and its name and the reason go into `skipped`.
    """

    def site_names(name: str) -> Callable[[], str]:
        calls = 0

        def next_name() -> str:
            nonlocal calls
            calls += 1
            return name if calls == 1 else f"{name}#{calls}"

        return next_name

    def changed(name: str, value: Tensor, change: Visitor) -> Tensor | None:
        """The value to go on with; None where it stays as it is."""
        seen = value.float() if is_half(value.dtype) else value
        new = change(name, seen)
        # What a visitor gives is its own: the next layer may work in place.
        if new is seen:
            return None
        return own(new) if new.dtype == value.dtype else own(new).to(value.dtype)

    def after(name: str, change: Visitor) -> Callable[..., object]:
        next_name = site_names(name)

        def hook(_module: nn.Module, _args: object, output: object) -> object:
            site, why = next_name(), _why_unreadable(output)
            if why:
                if skipped is not None:
                    skipped[site] = why
                return output
            value = first_of(output)
            assert value is not None  # or there was a reason
            new = changed(site, value, change)
            return output if new is None else _with_first(output, new)

        return hook

    def before(name: str, change: Visitor) -> Callable[..., object]:
        next_name = site_names(name)

        def hook(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> object:
            site = next_name()
            key = next(iter(named), None)
            value = args[0] if args else named.get(str(key))
            if not isinstance(value, Tensor) or _why_unreadable(value):
                return args, named
            new = changed(site, value, change)
            if new is None:
                return args, named
            return ((new, *args[1:]), named) if args else (args, named | {str(key): new})

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
