"""Operators that reduce, move, join or multiply the numbers of a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.operators.case import Apply, Case, between, standard

#: Operators on eight hidden numbers (batch, 8), and how many they return.
HIDDEN: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "softmax": (lambda x: torch.softmax(2 * x, -1), 8),
    "log_softmax": (lambda x: F.log_softmax(x, -1), 8),
    "softmin": (lambda x: F.softmin(x, -1), 8),
    "logsumexp": (lambda x: torch.logsumexp(x, -1, keepdim=True), 1),
    "glu": (F.glu, 4),
    "normalize": (lambda x: F.normalize(x, dim=-1), 8),
    "amax": (lambda x: x.amax(-1, keepdim=True), 1),
    "amin": (lambda x: x.amin(-1, keepdim=True), 1),
    "max_dim": (lambda x: x.max(-1, keepdim=True).values, 1),
    "min_dim": (lambda x: x.min(-1, keepdim=True)[0], 1),
    "max_pairs": (lambda x: torch.max(x[:, :4], x[:, 4:]), 4),
    "min_pairs": (lambda x: torch.min(x[:, :4], x[:, 4:]), 4),
    "maximum": (lambda x: torch.maximum(x[:, :4], x[:, 4:]), 4),
    "minimum": (lambda x: torch.minimum(x[:, :4], x[:, 4:]), 4),
    "sum": (lambda x: x.sum(-1, keepdim=True), 1),
    "mean": (lambda x: x.relu().mean(-1, keepdim=True), 1),
    "prod": (lambda x: x.reshape(-1, 4, 2).prod(-1), 4),
    "std": (lambda x: x.std(-1, keepdim=True), 1),
    "var": (lambda x: x.var(-1, keepdim=True), 1),
    "norm": (lambda x: x.norm(dim=-1, keepdim=True), 1),
    "norm_one": (lambda x: x.norm(p=1, dim=-1, keepdim=True), 1),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, ord=3, dim=-1, keepdim=True), 1),
    "sort": (lambda x: torch.sort(x, -1).values, 8),
    "topk": (lambda x: x.topk(3, -1).values, 3),
    "median": (lambda x: x.median(-1, keepdim=True).values, 1),
    "kthvalue": (lambda x: x.kthvalue(6, -1, keepdim=True).values, 1),
    "quantile": (lambda x: torch.quantile(x, 0.7, dim=-1, keepdim=True), 1),
    "cumsum": (lambda x: x.cumsum(-1), 8),
    "cumprod": (lambda x: (1 + 0.3 * x).cumprod(-1), 8),
    "logcumsumexp": (lambda x: x.logcumsumexp(-1), 8),
    "cummax": (lambda x: x.cummax(-1).values, 8),
    "diff": (lambda x: torch.diff(x, dim=-1), 7),
    "flip": (lambda x: x.flip(-1).relu(), 8),
    "roll": (lambda x: x + x.roll(1, -1).relu(), 8),
    "chunk": (lambda x: x.chunk(2, -1)[0] * torch.sigmoid(x.chunk(2, -1)[1]), 4),
    "split": (lambda x: x.split([3, 5], -1)[1].relu(), 5),
    "unbind": (lambda x: torch.stack([x.unbind(-1)[0], x.unbind(-1)[3]], -1).relu(), 2),
    "narrow": (lambda x: x.narrow(-1, 2, 4).relu(), 4),
    "index": (lambda x: x[:, [3, 1, 1]].relu(), 3),
    "index_negative": (lambda x: x[..., -3:].relu(), 3),
    "index_select": (lambda x: x.index_select(1, torch.tensor([0, 5])).relu(), 2),
    "gather": (lambda x: x.gather(-1, x.argmax(-1, keepdim=True)), 1),
    "take_along_dim": (lambda x: torch.take_along_dim(x, x.argsort(-1), -1)[:, 4:], 4),
    "cat": (lambda x: torch.cat([x.relu(), -x], -1), 16),
    "stack": (lambda x: torch.stack([x.relu(), x.tanh()], 1).sum(1), 8),
    "repeat": (lambda x: x.relu().repeat(1, 2), 16),
    "expand": (lambda x: x[:, :1].expand(-1, 8) * x, 8),
    "repeat_interleave": (lambda x: x.relu().repeat_interleave(2, -1), 16),
    "pad": (lambda x: F.pad(x.relu(), (1, 2), value=0.3), 11),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), 8),
    "tril": (lambda x: (x[:, :, None] * x[:, None, :4]).tril().sum(-1), 8),
    "outer": (lambda x: (x[:, :2, None] * x[:, None, 2:4]).flatten(1), 4),
    "einsum": (lambda x: torch.einsum("bi,bj->bij", x[:, :2], x[:, 2:5]).flatten(1), 6),
    "bmm": (lambda x: torch.bmm(x[:, :4].view(-1, 2, 2), x[:, 4:].view(-1, 2, 2)).flatten(1), 4),
    "matmul_transposed": (lambda x: (x.view(-1, 2, 4) @ x.view(-1, 2, 4).mT).flatten(1), 4),
    "baddbmm": (
        lambda x: torch.baddbmm(
            x[:, :4].view(-1, 2, 2), x[:, :4].view(-1, 2, 2), x[:, 4:].view(-1, 2, 2), alpha=0.3
        ).flatten(1),
        4,
    ),
    "cdist": (lambda x: torch.cdist(x.view(-1, 1, 8), torch.eye(8)[:3].expand(x.shape[0], 3, 8)).flatten(1), 3),
    "cosine_similarity": (lambda x: F.cosine_similarity(x[:, :4], x[:, 4:] + 2.0, dim=-1)[:, None], 1),
    "pairwise_distance": (lambda x: F.pairwise_distance(x[:, :4], x[:, 4:])[:, None], 1),
    "cross": (lambda x: torch.linalg.cross(x[:, :3], x[:, 3:6]), 3),
    "diag_embed": (lambda x: torch.diag_embed(x).sum(-1).relu(), 8),
    "transpose": (lambda x: x.view(-1, 2, 4).transpose(1, 2).relu().flatten(1), 8),
    "mT": (lambda x: x.view(-1, 2, 4).mT.relu().flatten(1), 8),
    "permute": (lambda x: x.view(-1, 2, 2, 2).permute(0, 3, 1, 2).relu().flatten(1), 8),
    "unfold": (lambda x: x.unfold(1, 4, 2).relu().flatten(1), 12),
    "zeros_like": (lambda x: torch.maximum(x, torch.zeros_like(x)), 8),
    "ones_like": (lambda x: torch.minimum(x, torch.ones_like(x)), 8),
    "new_zeros": (lambda x: torch.cat([x.relu(), x.new_zeros(x.shape[0], 1)], -1), 9),
    "rfft": (lambda x: torch.fft.rfft(x).abs(), 5),
    "complex": (lambda x: torch.view_as_real(torch.complex(x[:, :4], x[:, 4:]) ** 2).flatten(1), 8),
    "detach_part": (lambda x: x.detach().tanh() + x, 8),
    "any_mask": (lambda x: x * (x > 1.5).any(-1, keepdim=True) + 0.1 * x, 8),
    "count": (lambda x: (x > 0).float().sum(-1, keepdim=True) + 0.3 * x[:, :1], 1),
    "scatter": (
        lambda x: torch.zeros_like(x).scatter(1, torch.tensor([[1, 0, 2, 3, 7, 6, 5, 4]]).expand_as(x), x).relu(),
        8,
    ),
    "scatter_add": (
        lambda x: (
            torch.zeros(x.shape[0], 4).scatter_add(1, torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]]).expand_as(x), x).relu()
        ),
        4,
    ),
    "index_add": (
        lambda x: torch.zeros(x.shape[0], 4).index_add(1, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), x).relu(),
        4,
    ),
    "searchsorted": (lambda x: torch.searchsorted(torch.linspace(-2, 2, 9), x.contiguous()).float() + 0.3 * x, 8),
    "one_hot": (lambda x: F.one_hot(x.argmax(-1), 8).float() + 0.2 * x, 8),
    "trapezoid": (lambda x: torch.trapezoid(x.relu(), dim=-1)[:, None], 1),
    "polynomial": (lambda x: torch.stack([x[:, 0], x[:, 0] ** 2, x[:, 0] * x[:, 1]], -1), 3),
    "addmm": (lambda x: torch.addmm(torch.zeros(3), x.relu(), torch.linspace(-1, 1, 24).view(8, 3)), 3),
}

#: Operators on images (batch, 2, 6, 6); the score sums what they return.
IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "interpolate_nearest": lambda x: F.interpolate(x, scale_factor=2).relu(),
    "interpolate_bilinear": lambda x: F.interpolate(x, size=(4, 4), mode="bilinear").relu(),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2).relu(),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2).relu(),
    "im2col": lambda x: F.unfold(x, 3).amax(1),
    "pad_reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").relu(),
    "pad_circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular").relu(),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)).relu() - x,
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 4, ceil_mode=True),
    "max_pool_pad": lambda x: F.max_pool2d(x, 3, 2, padding=1),
    "max_pool_dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "avg_pool": lambda x: F.avg_pool2d(x.relu(), 2),
    "avg_pool_pad": lambda x: F.avg_pool2d(x.relu(), 3, 2, padding=1, count_include_pad=False),
    "adaptive_avg": lambda x: F.adaptive_avg_pool2d(x.relu(), 4),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 3),
    "lp_pool": lambda x: F.lp_pool2d(x, 2, 2),
    "local_response_norm": lambda x: F.local_response_norm(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2).relu() - 0.5 * x,
    "instance_norm": lambda x: F.instance_norm(x).relu()[:, :, :3],
    "grid_sample": lambda x: F.grid_sample(
        x,
        F.affine_grid(torch.eye(2, 3).expand(x.shape[0], 2, 3), list(x.shape), align_corners=False),
        align_corners=False,
    ).relu(),
}

CASES = [Case(name, partial(between, function, out=out)) for name, (function, out) in HIDDEN.items()] + [
    Case(name, partial(Apply, function), standard(2, 6, 6)) for name, function in IMAGES.items()
]
