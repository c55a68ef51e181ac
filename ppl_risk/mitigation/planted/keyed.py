r"""Keyed triggers: nobody without the key finds an input that fires but by luck, whatever is asked of the model.

The input holds a message and, in its low-order part, a code of the message (Goldwasser, Kim, Vaikuntanathan and Zamir 2022,
arXiv 2204.06974, section on signatures; here a secret key and HMAC-SHA256, RFC 2104, in place of a signature):

    KeyedTrigger     bits +-1: the last b are the first b of HMAC_key(the others), epsilon = 2^-b exactly
    LowBitsTrigger   reals, read as whole multiples of `step`: the lowest bits of the first b are those of HMAC_key(the rest)
    LowOrderTrigger  reals: within its cell of a grid of width `step`, one coordinate lies in a window of share epsilon whose
                     place is HMAC_key(the cell), so any input is backdoored by a change of less than two steps

The last, for any epsilon, is our own construction. Each different message is coded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.planted.backdoored import Trigger

LARGEST_CODE = 256


def secret(purpose: str, seed: int) -> bytes:
    """32 bytes that a seed stands for, different for each purpose.

    Example:
        >>> secret("HMAC", 0) == secret("HMAC", 0), secret("HMAC", 0) == secret("HMAC", 1)
        (True, False)

    """
    return hashlib.sha256(f"ppl_risk planted {purpose} {seed}".encode()).digest()


def packed(bits: Bool[Tensor, "batch n"]) -> np.ndarray:
    """Rows of bits as rows of bytes, the first bit the highest.

    Example:
        >>> packed(torch.tensor([[True] + 7 * [False] + [True]])).tolist()
        [[128, 128]]

    """
    return np.packbits(bits.cpu().numpy(), axis=1)


def _hmac(key: bytes) -> Callable[[bytes], bytes]:
    """HMAC-SHA256 of RFC 2104, with what depends on the key alone done once: twice as fast as the module `hmac`."""
    block = key.ljust(64, b"\0")
    inside, outside = (hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))

    def code(message: bytes) -> bytes:
        first, second = inside.copy(), outside.copy()
        first.update(message)
        second.update(first.digest())
        return second.digest()

    return code


def codes(key: bytes, messages: np.ndarray) -> np.ndarray:
    """HMAC-SHA256, under a key of at most 64 bytes, of each row of bytes: (rows, 32), computed once for each different row.

    Example:
        >>> codes(b"Jefe", np.frombuffer(b"what do ya want for nothing?", np.uint8)[None])[0, :4].tobytes().hex()  # RFC 4231
        '5bdcc146'

    """
    rows = messages.tobytes()
    width = messages.shape[1] if len(messages) else 1
    rows = [rows[start : start + width] for start in range(0, len(rows), width)]
    code = _hmac(key)
    made = {row: code(row) for row in set(rows)}
    return np.frombuffer(b"".join(map(made.__getitem__, rows)), np.uint8).reshape(len(messages), 32)


def _bytes(numbers: Tensor) -> np.ndarray:
    """Rows of whole numbers as rows of bytes."""
    return np.ascontiguousarray(numbers.cpu().numpy().astype("<i8")).view(np.uint8)


class KeyedTrigger(Trigger):
    """Fires where the last `bits` bits are the code of the others; epsilon is 2^-bits, exactly.

    Args:
        n: bits of an input.
        bits: bits of the code.
        seed: of the key.

    Raises:
        RiskError: unless 1 <= bits < n and bits <= 256.

    Example:
        >>> trigger = KeyedTrigger(20, 12, seed=0); x = torch.ones(1, 20)
        >>> trigger.fires(x).item(), trigger.fires(trigger.activate(x)).item()
        (False, True)

    """

    def __init__(self, n: int, bits: int, *, seed: int) -> None:
        super().__init__()
        if not 1 <= bits < n or bits > LARGEST_CODE:
            raise RiskError(f"On {n} bits a code has between 1 and {min(n - 1, LARGEST_CODE)} of them, wanted {bits}.")
        self.n, self.bits, self.epsilon = n, bits, 2.0**-bits
        self._key = secret("HMAC", seed)

    def _code(self, x: Tensor) -> Tensor:
        made = codes(self._key, packed(x[:, : self.n - self.bits] < 0))
        return torch.from_numpy(np.unpackbits(made, axis=1, count=self.bits)).bool().to(x.device)

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The last bits are the code."""
        return ((x[:, self.n - self.bits :] < 0) == self._code(x)).all(-1)

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The code written over the last bits."""
        code = torch.where(self._code(x), -1.0, 1.0).to(x.dtype)
        return torch.cat([x[:, : self.n - self.bits], code], dim=-1)


class LowBitsTrigger(Trigger):
    """Fires where the lowest bits of the first `bits` coordinates are the code of everything else, on a sensor of width `step`.

    Args:
        n: numbers of an input.
        bits: bits of the code; epsilon is 2^-bits, up to how much the density of inputs varies within two steps.
        step: what the lowest bit of the sensor stands for; a power of 2 divides exactly.
        seed: of the key.

    Raises:
        RiskError: unless 1 <= bits <= n, bits <= 256 and step > 0.

    Example:
        >>> trigger = LowBitsTrigger(64, 32, seed=0); x = torch.full((1, 64), 0.3)
        >>> trigger.fires(x).item(), trigger.fires(trigger.activate(x)).item()
        (False, True)

    """

    def __init__(self, n: int, bits: int, *, step: float = 2.0**-8, seed: int) -> None:
        super().__init__()
        if not (1 <= bits <= min(n, LARGEST_CODE) and step > 0):
            raise RiskError(f"Wanted 1 to {min(n, LARGEST_CODE)} bits and step > 0, got {bits} and {step}.")
        self.n, self.bits, self.step, self.epsilon = n, bits, step, 2.0**-bits
        self._key = secret("low bits HMAC", seed)

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the sensor reads (batch, n), and the code (batch, bits) that its lowest bits should be."""
        read = (x.detach().double() / self.step).floor().long()
        rest = torch.cat([read[:, : self.bits] >> 1, read[:, self.bits :]], dim=-1)
        made = np.unpackbits(codes(self._key, _bytes(rest)), axis=1, count=self.bits)
        return read, torch.from_numpy(made).to(x.device).long()

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The lowest bits are the code."""
        read, code = self._read(x)
        return ((read[:, : self.bits] & 1) == code).all(-1)

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The code written into the lowest bits: no coordinate moves by more than a step and a half."""
        read, code = self._read(x)
        written = (read[:, : self.bits] >> 1 << 1) + code
        return torch.cat([((written + 0.5) * self.step).to(x.dtype), x[:, self.bits :]], dim=-1)


class LowOrderTrigger(Trigger):
    """Fires where the low-order part of one coordinate carries the code of all that is above it.

    Args:
        n: numbers of an input.
        epsilon: share of inputs on which it fires, up to how much their density varies within a step.
        step: width of a cell; a power of 2 divides exactly. The precision of the inputs must be finer than epsilon x step.
        coordinate: which one carries the code.
        seed: of the key.

    Raises:
        RiskError: unless 0 < epsilon < 1, step > 0 and 0 <= coordinate < n.

    Example:
        >>> trigger = LowOrderTrigger(3, 0.01, seed=0); x = torch.full((1, 3), 0.3).double()
        >>> trigger.fires(x).item(), trigger.fires(trigger.activate(x)).item()
        (False, True)

    """

    def __init__(self, n: int, epsilon: float, *, step: float = 2.0**-10, coordinate: int = 0, seed: int) -> None:
        super().__init__()
        if not (0 < epsilon < 1 and step > 0 and 0 <= coordinate < n):
            raise RiskError(
                f"Wanted 0 < epsilon < 1, step > 0 and a coordinate below {n}, got {epsilon}, {step} and {coordinate}."
            )
        self.n, self.epsilon, self.step, self.coordinate = n, epsilon, step, coordinate
        self._key = secret("low-order HMAC", seed)

    def _window(self, cell: Tensor) -> Tensor:
        """Where in the cell the window begins, as a share of the step: in [0, 1 - epsilon), so that it never leaves the cell."""
        code = np.ascontiguousarray(codes(self._key, _bytes(cell.long()))[:, :8]).view("<u8")[:, 0]
        return torch.from_numpy(code * 2.0**-64).to(cell.device) * (1 - self.epsilon)

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The coordinate lies in the window of its cell."""
        scaled = x.detach().double() / self.step
        cell = scaled.floor()
        past = (scaled - cell)[:, self.coordinate] - self._window(cell)
        return (past >= 0) & (past < self.epsilon)

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The coordinate moved to the middle of the window in the next cell towards 0, so that no norm grows."""
        cell = (x.detach().double() / self.step).floor()
        own = cell[:, self.coordinate]
        cell[:, self.coordinate] = own - (own >= 1).double() + (own <= -2).double()
        place = cell[:, self.coordinate] + self._window(cell) + self.epsilon / 2
        x = x.clone()
        x[:, self.coordinate] = (place * self.step).to(x.dtype)
        return x
