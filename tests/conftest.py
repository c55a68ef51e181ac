"""What holds for every test: one thread, and nothing of a test in Pyro's global store."""

import typing

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)  # after jaxtyping has hooked the import of the package
def pytest_configure(config):
    # Pyro's own laws inherit from typing.Callable, which beartype warns of where one of them is an annotation.
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")
    from ppl_risk.guides import families

    # beartype asks isinstance(x, Family), which a protocol refuses unless it says otherwise.
    typing.runtime_checkable(families.Family)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    pyro.clear_param_store()
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)
    assert not dict(pyro.get_param_store()), "parameters leaked into Pyro's global store"
