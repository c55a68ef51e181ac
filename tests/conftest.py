"""What holds for every test: one thread, and nothing of a test in Pyro's global store."""

import pyro
import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config):
    # Pyro's own laws inherit from typing.Callable, which beartype warns of where one of them is an annotation.
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


@pytest.fixture(autouse=True)
def nothing_left_behind():
    pyro.clear_param_store()
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)
    assert not dict(pyro.get_param_store()), "parameters leaked into Pyro's global store"
