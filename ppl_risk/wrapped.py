"""Modules behind a callable: what a lambda, a closure, a `partial` or a method runs, as far as Python shows it.

Looked through are closure cells, default values, arguments of a `partial`, the object of a bound method or of a callable
object, and the global names that the code mentions; containers of modules too. A function that one of these calls is
followed where it stands in the same file. What a network reaches otherwise (through a registry, an import inside) is not found.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
#: How many functions deep.
DEPTH = 4


def modules_behind(part: object) -> dict[str, nn.Module]:
    """The modules that a callable runs, by the name under which it holds them; a module itself has the name "".

    One module alone has the name "" too, so that its layers are called as they are without the wrapping. A module inside
    another one of them is left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1))
        >>> list(modules_behind(lambda x: net(x)[:, 0])), list(modules_behind(len))
        ([''], [])
    """
    if isinstance(part, nn.Module):
        return {"": part}
    found: dict[str, nn.Module] = {}
    for name, module in _held(part, DEPTH, set()):
        if all(module is not other for other in found.values()):
            while name in found:
                name += "_"
            found[name] = module
    inside = {id(child) for module in found.values() for child in list(module.modules())[1:]}
    found = {name: module for name, module in found.items() if id(module) not in inside}
    return {"": next(iter(found.values()))} if len(found) == 1 else found


def roots(*parts: object) -> list[nn.Module]:
    """The modules behind several callables, in order."""
    return [module for part in parts for module in modules_behind(part).values()]


def _held(part: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules that a callable holds, in the order in which they are met."""
    if depth == 0 or id(part) in seen or isinstance(part, type | BuiltinFunctionType):
        return
    seen.add(id(part))
    if isinstance(part, functools.partial):
        yield from _held(part.func, depth - 1, seen) if not isinstance(part.func, nn.Module) else [("func", part.func)]
        values = {str(i): value for i, value in enumerate(part.args)} | part.keywords
        yield from _among(values, depth, seen)
    elif isinstance(part, MethodType):
        if isinstance(part.__self__, nn.Module):
            yield "self", part.__self__
        else:
            if isinstance(part.__func__, FunctionType):
                mentioned = _names(part.__func__.__code__, ATTRIBUTES)
                yield from _among(_attributes(part.__self__, mentioned), depth, seen)
            yield from _held(part.__func__, depth, seen)
    elif isinstance(part, FunctionType):
        yield from _of_function(part, depth, seen)
    elif callable(part) and isinstance(type(part).__call__, FunctionType):
        yield from _held(MethodType(type(part).__call__, part), depth - 1, seen)


def _of_function(function: FunctionType, depth: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    mentioned = _names(function.__code__, GLOBALS)
    values: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not yet filled
            continue
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    values |= dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True))
    values |= function.__kwdefaults__ or {}
    values |= {
        name: value
        for name in mentioned
        if (value := function.__globals__.get(name)) is not None
        and (not isinstance(value, FunctionType) or value.__module__ == function.__module__)
    }
    yield from _among(values, depth, seen)
    for value in values.values():
        if not isinstance(value, type | nn.Module | FunctionType | MethodType | functools.partial):
            yield from _among(_attributes(value, _names(function.__code__, ATTRIBUTES)), depth, seen)


def _among(values: Mapping[str, Any], depth: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Modules among named values, in containers of them, and behind functions."""
    for name, value in values.items():
        if isinstance(value, nn.Module):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}_{key}", m) for key, m in value.items() if isinstance(m, nn.Module))
        elif isinstance(value, list | tuple):
            yield from ((f"{name}_{i}", m) for i, m in enumerate(value) if isinstance(m, nn.Module))
        elif isinstance(value, FunctionType | MethodType | functools.partial):
            yield from _held(value, depth - 1, seen)


def _attributes(holder: Any, mentioned: set[str]) -> dict[str, Any]:
    """The attributes of an object that the code mentions, its methods among them."""
    own = getattr(holder, "__dict__", {})
    methods = {name: getattr(type(holder), name, None) for name in mentioned if name not in own}
    bound = {name: MethodType(m, holder) for name, m in methods.items() if isinstance(m, FunctionType)}
    return {name: value for name, value in own.items() if name in mentioned} | bound


def _names(code: CodeType, kinds: frozenset[str]) -> set[str]:
    """Names that code loads by instructions of some kinds, functions inside it included."""
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname in kinds}
    return own.union(*(_names(constant, kinds) for constant in code.co_consts if isinstance(constant, CodeType)))
