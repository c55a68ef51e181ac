"""Layers as torch ships them, and small architectures made of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from benchmarks.operators.case import Apply, Case, standard

IMAGE, SERIES, TOKENS = (1, 6, 6), (2, 8), (4, 8)


def over(shape: tuple[int, ...], *parts: nn.Module) -> Callable[[], nn.Module]:
    """The parts, flattened to the input of a linear layer that is sized by running them."""

    def build() -> nn.Module:
        body = nn.Sequential(*parts, nn.Flatten()).eval()
        with torch.no_grad():
            width = body(torch.zeros(2, *shape)).shape[1]
        return nn.Sequential(body, nn.Linear(width, 1))

    return build


class Attention(nn.Module):
    """Attention over four tokens; `mask` is "", "causal", "float" or "bool"; written out or torch's own."""

    def __init__(self, mask: str = "", written: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mask, self.written = mask, written

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        allowed = torch.ones(4, 4, dtype=torch.bool).tril()
        if self.written:
            scores = q @ k.mT / math.sqrt(8)
            if self.mask:
                scores = scores.masked_fill(~allowed, -math.inf)
            mixed = torch.softmax(scores, -1) @ v
        else:
            float_mask = torch.zeros(4, 4).masked_fill(~allowed, -math.inf)
            given = {"float": float_mask, "bool": allowed}.get(self.mask)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=self.mask == "causal")
        return self.out(mixed) + x


class Recurrent(nn.Module):
    """A recurrent layer over eight steps of two numbers; the last state is read."""

    def __init__(self, kind: type[nn.RNNBase], **options: int | bool) -> None:
        super().__init__()
        self.cell = kind(2, 6, batch_first=True, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.mT)[0][:, -1])


class Cell(nn.Module):
    """A recurrent cell in a Python loop."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(2, 6), nn.Linear(6, 1)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(4):
            state = self.cell(x[:, :, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Lookup(nn.Module):
    """An embedding of rounded inputs."""

    def __init__(self, bag: bool = False) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(9, 4) if bag else nn.Embedding(9, 4)
        self.head = nn.Linear(4 if bag else 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.clamp(torch.round(2 * x) + 4, 0, 8).long()
        return self.head(self.table(ids).flatten(1)) + 0.1 * x[:, :1]


class Decoder(nn.Module):
    """A transformer decoder layer that reads its own input as memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.tanh())


class MultiHead(nn.Module):
    """torch's multi-head attention; with or without a causal mask."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.attention, self.causal = nn.MultiheadAttention(8, 2, batch_first=True), causal

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(4) if self.causal else None
        return self.attention(x, x, x, attn_mask=mask, need_weights=not self.causal)[0]


def encoder(**options: bool | str) -> nn.Module:
    """One transformer encoder layer."""
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **options)  # pyright: ignore[reportArgumentType]


def settled(norm: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A batch norm whose statistics come from a few training passes."""
    norm.train()
    for _ in range(20):
        norm(1.0 + 0.5 * torch.randn(64, *shape))
    return norm.eval()


class Bilinear(nn.Module):
    """A bilinear form of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(2, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x[:, :2], x[:, 2:])


def _layers() -> list[Case]:
    image: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
        "conv2d": lambda: (nn.Conv2d(1, 3, 3), nn.ReLU()),
        "conv2d_stride_pad": lambda: (nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU()),
        "conv2d_dilated": lambda: (nn.Conv2d(1, 3, 3, dilation=2), nn.ReLU()),
        "conv2d_groups": lambda: (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()),
        "conv2d_circular": lambda: (nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        "conv2d_reflect": lambda: (nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        "conv2d_same": lambda: (nn.Conv2d(1, 3, 3, padding="same"), nn.SiLU()),
        "conv_transpose2d": lambda: (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ConvTranspose2d(2, 2, 3, 2), nn.ReLU()),
        "batch_norm2d": lambda: (nn.Conv2d(1, 3, 3), settled(nn.BatchNorm2d(3), (3, 4, 4)), nn.ReLU()),
        "group_norm": lambda: (nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()),
        "instance_norm2d": lambda: (nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.ReLU()),
        "layer_norm_2d": lambda: (nn.Conv2d(1, 2, 3), nn.LayerNorm([2, 4, 4]), nn.ReLU()),
        "max_pool2d": lambda: (nn.Conv2d(1, 3, 3), nn.MaxPool2d(2)),
        "max_pool2d_ceil": lambda: (nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, ceil_mode=True)),
        "avg_pool2d": lambda: (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2)),
        "dropout2d_eval": lambda: (nn.Conv2d(1, 3, 3), nn.Dropout2d(), nn.ReLU()),
        "upsample": lambda: (nn.Upsample(scale_factor=2), nn.Conv2d(1, 2, 3), nn.ReLU()),
        "zero_pad": lambda: (nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3), nn.ReLU()),
        "nn_pixel_shuffle": lambda: (nn.Conv2d(1, 4, 3), nn.PixelShuffle(2), nn.ReLU()),
        "channels_last": lambda: (nn.Conv2d(1, 3, 3).to(memory_format=torch.channels_last), nn.ReLU()),
        "depthwise_separable": lambda: (
            nn.Conv2d(1, 4, 1),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.ReLU6(),
            nn.Conv2d(4, 2, 1),
        ),
        "spectral_norm_conv": lambda: (parametrizations.spectral_norm(nn.Conv2d(1, 3, 3)), nn.ReLU()),
    }
    series: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
        "conv1d": lambda: (nn.Conv1d(2, 3, 3), nn.ReLU()),
        "conv_transpose1d": lambda: (nn.ConvTranspose1d(2, 3, 3, 2), nn.ReLU()),
        "max_pool1d": lambda: (nn.Conv1d(2, 3, 3), nn.MaxPool1d(2)),
        "avg_pool1d": lambda: (nn.ReLU(), nn.AvgPool1d(3, 2)),
        "causal_conv": lambda: (nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(2, 3, 3), nn.GELU()),
        "batch_norm1d_series": lambda: (nn.Conv1d(2, 3, 3), settled(nn.BatchNorm1d(3), (3, 6)), nn.ReLU()),
        "conv1d_replicate": lambda: (nn.Conv1d(2, 3, 3, padding=1, padding_mode="replicate"), nn.Tanh()),
    }
    tokens: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
        "layer_norm": lambda: (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()),
        "rms_norm": lambda: (nn.Linear(8, 8), nn.RMSNorm(8), nn.GELU()),
        "attention": lambda: (Attention(),),
        "attention_causal": lambda: (Attention("causal"),),
        "attention_mask": lambda: (Attention("float"),),
        "attention_bool_mask": lambda: (Attention("bool"),),
        "attention_written": lambda: (Attention(written=True),),
        "attention_written_causal": lambda: (Attention("causal", written=True),),
        "multihead": lambda: (MultiHead(),),
        "multihead_causal": lambda: (MultiHead(True),),
        "encoder_layer": lambda: (encoder(),),
        "encoder_pre_norm": lambda: (encoder(norm_first=True, activation="gelu"),),
        "decoder_layer": lambda: (Decoder(),),
        "encoder_stack": lambda: (nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False),),
    }
    flat: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(4, 1),
        "linear_no_bias": lambda: nn.Linear(4, 1, bias=False),
        "mlp_deep": lambda: nn.Sequential(
            *[p for _ in range(6) for p in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 1)
        ),
        "bilinear": Bilinear,
        "batch_norm1d": lambda: nn.Sequential(
            nn.Linear(4, 6), settled(nn.BatchNorm1d(6), (6,)), nn.ReLU(), nn.Linear(6, 1)
        ),
        "weight_norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 1)),
        "spectral_norm": lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 1)
        ),
        "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 1)),
        "dropout_eval": lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 1)),
        "embedding": Lookup,
        "embedding_bag": lambda: Lookup(True),
        "unflatten": lambda: nn.Sequential(
            nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
        ),
        "identity": lambda: nn.Sequential(nn.Identity(), nn.Linear(4, 1)),
        "softmax_layer": lambda: nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1), nn.Linear(5, 1)),
    }
    recurrent: dict[str, Callable[[], nn.Module]] = {
        "lstm": lambda: Recurrent(nn.LSTM),
        "gru": lambda: Recurrent(nn.GRU),
        "rnn": lambda: Recurrent(nn.RNN),
        "lstm_two_layers": lambda: Recurrent(nn.LSTM, num_layers=2),
        "gru_both_ways": lambda: Recurrent(nn.GRU, bidirectional=True),
        "lstm_cell": lambda: Cell(nn.LSTMCell),
        "gru_cell": lambda: Cell(nn.GRUCell),
        "rnn_cell": lambda: Cell(nn.RNNCell),
    }

    def later(parts: Callable[[], tuple[nn.Module, ...]], shape: tuple[int, ...]) -> Callable[[], nn.Module]:
        return lambda: over(shape, *parts())()

    return [
        *[Case(name, later(parts, IMAGE), standard(*IMAGE)) for name, parts in image.items()],
        *[Case(name, later(parts, SERIES), standard(*SERIES)) for name, parts in series.items()],
        *[Case(name, later(parts, TOKENS), standard(*TOKENS)) for name, parts in tokens.items()],
        *[Case(name, build) for name, build in flat.items()],
        *[Case(name, build, standard(*SERIES)) for name, build in recurrent.items()],
        Case("conv3d", over((1, 3, 3, 3), nn.Conv3d(1, 2, 2), nn.ReLU()), standard(1, 3, 3, 3)),
        Case("apply_only", lambda: Apply(lambda x: x.relu().sum(-1, keepdim=True))),
    ]


CASES = _layers()
