r"""Transports of mixtures: one more standard normal chooses the component, the others drive it.

x = T_i(v) with i = min{i : w_0 + ... + w_i >= Phi(u_0)} and (u_0, v) ~ N(0, I): the law of x is sum_i w_i P_i, whatever the
components have in common. The step in u_0 has gradient 0. All components are computed and one is kept: a batch of K laws costs
K maps, without a loop.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from ppl_risk.inputs.discrete import shares
from ppl_risk.inputs.tails import categories, steps
from ppl_risk.inputs.transport import Part, part_of


@part_of.register
def _(law: td.MixtureSameFamily) -> Part:
    inner, weights = part_of(law.component_distribution), shares(law.mixture_distribution)
    at, kinds, event, own = categories(weights), weights.shape[-1], len(law.event_shape), inner.normals

    def push(u: Tensor) -> Tensor:
        index = steps(u[..., 0], at)
        lead = index.shape
        drive = u[..., None, 1:].expand(*lead, kinds, own.numel()).reshape(*lead, kinds, *own)
        every = inner.map(drive)
        place = index.reshape(*lead, *(1,) * (1 + event)).expand(*lead, 1, *every.shape[every.dim() - event :])
        return every.gather(len(lead), place).squeeze(len(lead))

    marks = torch.cat([torch.ones(1, dtype=torch.bool), inner.marks().reshape(-1)])
    return Part(torch.Size([1 + own.numel()]), push, marks)


@part_of.register
def _(law: dist.MixtureOfDiagNormals) -> Part:
    components = td.Independent(td.Normal(law.locs, law.coord_scale), 1)
    return part_of(td.MixtureSameFamily(td.Categorical(logits=law.component_logits), components))
