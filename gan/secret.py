"""Random numbers of a private training: all of them follow from its whole secret, through AES-256.

PyTorch's CPU generator keeps 32 bits of its seed, so that its noise could be found by trying all of them; AES keeps the
256 bits of its key. Two uses of the cipher: a stream of numbers (counter mode), and one number for each identity (the
cipher of the identity), which is the same whoever else is asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

SECRET_BYTES = 32
IDENTITY_BYTES = 16  # a block of AES
BITS_OF_A_NUMBER = 53  # float64 holds as many
NUMBERS_AT_ONCE = {"cpu": 2**16, "cuda": 2**22}  # of a stream; on a CPU they stay in its cache


class Secret:
    """What nobody may guess: who knows it can take the noise off.

    It is kept in the checkpoint, so that a resumed training draws the same, and is gone with it.
    """

    def __init__(self, hexadecimal: str) -> None:
        self.hexadecimal = hexadecimal
        self._key = bytes.fromhex(hexadecimal)

    @classmethod
    def new(cls) -> Secret:
        """One of the operating system's random numbers, of ``SECRET_BYTES``."""
        return cls(secrets.token_hex(SECRET_BYTES))

    def stream(self, *names: object) -> SecretStream:
        """The numbers of one purpose; other names give numbers that have nothing to do with them."""
        return SecretStream(self._derived(names))

    def numbers_of_each(self, identities: np.ndarray, n_numbers: int, *names: object) -> np.ndarray:
        """(n, n_numbers) float64 of [0, 1), a row for each of the ``identities`` (n, IDENTITY_BYTES) uint8.

        A row follows from the secret, the names and that identity alone. Identities are hashes, all different.
        """
        # an identity stands in one block of the cipher for every two numbers; its last byte counts them
        blocks = np.repeat(identities[:, None], -(-n_numbers // 2), axis=1)
        blocks[:, :, -1] ^= np.arange(blocks.shape[1], dtype=np.uint8)
        # the mode with no chaining: every block by itself
        cipher = Cipher(algorithms.AES(self._derived(names)), modes.ECB()).encryptor()
        drawn = np.frombuffer(cipher.update(blocks.tobytes()), np.uint64).reshape(len(identities), -1)
        return (drawn[:, :n_numbers] >> np.uint64(64 - BITS_OF_A_NUMBER)) * 2.0**-BITS_OF_A_NUMBER

    def _derived(self, names: Sequence[object]) -> bytes:
        """A key of AES-256 for these names."""
        return hmac.new(self._key, "\x1f".join(map(str, names)).encode(), hashlib.sha256).digest()


class SecretStream:
    """Numbers one after the other, from a key of AES-256 in counter mode."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(IDENTITY_BYTES))).encryptor()

    def whole(self, n: int, device: torch.device) -> Tensor:
        """(n,) float64, whole numbers from 0 to 2^53 - 1, all as likely."""
        drawn = torch.frombuffer(bytearray(self._cipher.update(bytes(8 * n))), dtype=torch.int64)
        return drawn.to(device).bitwise_and_(2**BITS_OF_A_NUMBER - 1).double()

    def gaussian(self, n: int, device: torch.device) -> Tensor:
        """(n,) float64 of N(0, 1), by Box and Muller 1958; none is beyond 8.6, which one in 10^17 would be."""
        numbers = torch.empty(n, dtype=torch.float64, device=device)
        for piece in numbers.split(NUMBERS_AT_ONCE[device.type]):
            n_pairs = -(-len(piece) // 2)
            first, second = self.whole(2 * n_pairs, device).split(n_pairs)
            radius = first.add_(1).mul_(2.0**-BITS_OF_A_NUMBER).log_().mul_(-2).sqrt_()  # logarithm of (0, 1]
            angle = second.mul_(2 * math.pi * 2.0**-BITS_OF_A_NUMBER)
            torch.mul(radius, angle.cos(), out=piece[:n_pairs])
            n_left = len(piece) - n_pairs
            torch.mul(radius[:n_left], angle[:n_left].sin_(), out=piece[n_pairs:])
        return numbers
