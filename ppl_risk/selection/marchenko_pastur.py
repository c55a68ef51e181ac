r"""Singular values of a weight matrix that stand out of its random bulk.

The singular values of an m x n matrix of independent entries of variance s^2 lie below s (sqrt m + sqrt n) (Marchenko and
Pastur 1967, doi:10.1070/SM1967v001n04ABEH001994). s is read off the median singular value, which few outliers do not move
(Gavish and Donoho 2014, doi:10.1109/TIT.2014.2323359).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor


def outliers(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The part of a matrix above the edge of its bulk; zero where nothing stands out."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > edge(values, matrix.shape[0], matrix.shape[1])
    return (left * (values * kept)) @ right


def edge(values: Float[Tensor, " k"], m: int, n: int) -> float:
    """Largest singular value that an m x n random matrix with this median would have."""
    ratio = min(m, n) / max(m, n)
    return float(values.quantile(0.5)) / np.sqrt(_median(round(ratio, 6))) * (1 + np.sqrt(ratio))


@lru_cache(maxsize=256)
def _median(ratio: float) -> float:
    """Median of the Marchenko-Pastur law of ratio <= 1 and unit variance (eigenvalues)."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2

    def density(x: float) -> float:
        return np.sqrt(max((high - x) * (x - low), 0.0)) / (2 * np.pi * ratio * x)

    root: Any = brentq(lambda x: quad(density, low, x, limit=200)[0] - 0.5, low + 1e-9, high - 1e-9)
    return float(root)
