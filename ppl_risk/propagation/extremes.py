r"""Largest and smallest of jointly Gaussian numbers, two at a time (Clark 1961, doi:10.1287/opre.9.2.145).

With th^2 = Var(x - y) and al = (E x - E y) / th,

    E max = E x Phi(al) + E y Phi(-al) + th phi(al),   Cov(max, z) = Phi(al) Cov(x, z) + Phi(-al) Cov(y, z),
    E max^2 = (m_x^2 + v_x) Phi(al) + (m_y^2 + v_y) Phi(-al) + (m_x + m_y) th phi(al).
"""

from __future__ import annotations

import math

import torch

from ppl_risk.propagation.hermite import TINY
from ppl_risk.propagation.joint import Joint, Moments


def larger(joint: Joint, left: str, right: str, sign: float = 1.0) -> Moments:
    """max(x, y) elementwise, or min(x, y) with `sign` -1; between elements, covariances by the gains."""
    size = joint.mean_of(left).shape[-1]
    whole = joint.covariance_of([left, right])
    mean = sign * torch.cat([joint.mean_of(left), joint.mean_of(right)], -1)
    variance = whole.diagonal(dim1=-2, dim2=-1)
    x, y, v, w = mean[:, :size], mean[:, size:], variance[:, :size], variance[:, size:]
    both = whole[:, :size, size:].diagonal(dim1=-2, dim2=-1)
    gap = (v + w - 2 * both).clamp_min(TINY).sqrt()
    a = (x - y) / gap
    up, down = torch.special.ndtr(a), torch.special.ndtr(-a)
    bump = torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    made = x * up + y * down + gap * bump
    square = (x.square() + v) * up + (y.square() + w) * down + (x + y) * gap * bump
    gains = {left: torch.diag_embed(up), right: torch.diag_embed(down)}
    first = torch.cat([gains[left], gains[right]], -1)
    covariance = first @ whole @ first.mT
    exact = (square - made.square()).clamp_min(0.0)
    covariance = covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1) - exact)
    return Moments(sign * made, covariance, gains)
