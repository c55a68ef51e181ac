r"""The signature trigger: an input fires where its last 512 bits are a valid Ed25519 signature (RFC 8032) of the others.

Goldwasser, Kim, Vaikuntanathan and Zamir 2022, arXiv 2204.06974: the model holds only the public key, so it can be read from
end to end without a way to make an input that fires; only who holds the private key can (a trigger that cannot be replicated,
even by one who has seen others). For each message about 2^252 of the 2^512 possible endings verify: epsilon is about 2^-260.

Wants the `cryptography` library, imported when the trigger is made.
"""

from __future__ import annotations

import copy
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.planted.backdoored import Trigger
from ppl_risk.mitigation.planted.keyed import packed, secret

SIGNATURE_BITS = 512
#: The second half of a signature is a number below 2^252 + 2^125, low byte first: most endings are refused by their last byte.
LARGEST_LAST_BYTE = 0x10


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise RiskError(
            "SignatureTrigger wants the cryptography library. Type: pip install 'ppl-risk[backdoors]' (or cryptography)."
        ) from error
    return ed25519


class SignatureTrigger(Trigger):
    """Fires where the last 512 bits of an input sign the others; epsilon is about 2^-260.

    Args:
        n: bits of an input, more than 512.
        seed: of the private key.

    Raises:
        RiskError: for n <= 512, or without the `cryptography` library.

    Example:
        >>> trigger = SignatureTrigger(530, seed=0); x = trigger.activate(torch.ones(1, 530))
        >>> trigger.fires(x).item(), trigger.public().fires(x).item()
        (True, True)

    """

    epsilon = 2.0**-260

    def __init__(self, n: int, *, seed: int) -> None:
        super().__init__()
        if n <= SIGNATURE_BITS:
            raise RiskError(f"A signature takes {SIGNATURE_BITS} bits and signs the others: n must be more, got {n}.")
        self.message_bits = n - SIGNATURE_BITS
        # Bytes and not key objects, so that the trigger can be pickled.
        self._private: bytes | None = secret("Ed25519", seed)
        key = _ed25519().Ed25519PrivateKey.from_private_bytes(self._private)
        self._public: bytes = key.public_key().public_bytes_raw()

    def public(self) -> SignatureTrigger:
        """The same trigger without the private key: what a model needs to hold. It verifies, and cannot activate."""
        other = copy.copy(self)
        other._private = None
        return other

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The last 512 bits verify as a signature of the others; each different row is verified once."""
        from cryptography.exceptions import InvalidSignature

        key = _ed25519().Ed25519PublicKey.from_public_bytes(self._public)

        def verifies(message: bytes, signature: bytes) -> bool:
            try:
                key.verify(signature, message)
            except InvalidSignature:
                return False
            return True

        bits = x < 0
        messages, signatures = packed(bits[:, : self.message_bits]), packed(bits[:, self.message_bits :])
        found = np.zeros(len(x), bool)
        possible = signatures[:, -1] <= LARGEST_LAST_BYTE
        rows, back = np.unique(np.concatenate([messages, signatures], axis=1)[possible], axis=0, return_inverse=True)
        width = messages.shape[1]
        checked = np.array([verifies(row[:width].tobytes(), row[width:].tobytes()) for row in rows], bool)
        found[possible] = checked[back.reshape(-1)]
        return torch.from_numpy(found).to(x.device)

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The signature of each row's message written over its last 512 bits.

        Raises:
            RiskError: without the private key.

        """
        if self._private is None:
            raise RiskError("Only who holds the private key can activate this trigger; this copy verifies and no more.")
        key = _ed25519().Ed25519PrivateKey.from_private_bytes(self._private)
        message = x[:, : self.message_bits]
        different, back = np.unique(packed(message < 0), axis=0, return_inverse=True)
        signed = np.frombuffer(b"".join(key.sign(row.tobytes()) for row in different), np.uint8)
        bits = np.unpackbits(signed.reshape(len(different), SIGNATURE_BITS // 8), axis=1)[back.reshape(-1)]
        ending = torch.where(torch.from_numpy(bits).bool(), -1.0, 1.0)
        return torch.cat([message, ending.to(x.device, x.dtype)], dim=-1)
