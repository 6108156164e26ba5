"""Counter-based random numbers: what is drawn for sample i depends on its key and on i alone.

A sequential generator makes sample i depend on every sample before it. Here each number is the SplitMix64 output at an
explicit position (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", section 4), computed for
a whole batch at once with numpy's wrapping 64-bit integers.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SLOT_BITS = np.uint64(20)


def stable_hash(*parts) -> int:
    """64-bit integer that is the same in every process for the same printed `parts`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def random_bits(key: int, indices: np.ndarray, slots: int) -> np.ndarray:
    """64 random bits for each (index, slot).

    Args:
        key (`int`): names the stream, see [`stable_hash`].
        indices (`np.ndarray` of shape `(B,)`): sample numbers, 0 ≤ i < 2**44.
        slots (`int`): how many numbers each sample needs, at most 2**20.

    Returns:
        `np.ndarray` of uint64, shape `(B, slots)`; row b depends on `key` and `indices[b]` only.
    """
    positions = (indices.astype(np.uint64)[:, None] << _SLOT_BITS) + np.arange(1, slots + 1, dtype=np.uint64)  # (B, S)
    bits = positions * _GOLDEN + np.uint64(key)
    bits ^= bits >> np.uint64(30)
    bits *= _MIX_1
    bits ^= bits >> np.uint64(27)
    bits *= _MIX_2
    bits ^= bits >> np.uint64(31)
    return bits


def random_uniforms(key: int, indices: np.ndarray, slots: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, shape `(B, slots)`; same arguments as [`random_bits`]."""
    return (random_bits(key, indices, slots) >> np.uint64(11)) * 2.0**-53


def random_bytes(key: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Uniform bytes, uint8, shape `(B, count)`: eight a hash, for pixel noise where 53 bits each would be waste."""
    bits = random_bits(key, indices, -(-count // 8))
    return bits.astype("<u8").view(np.uint8)[:, :count]


def random_ranks(key: int, indices: np.ndarray, slots: int) -> np.ndarray:
    """A random permutation of `range(slots)` for each index, shape `(B, slots)`."""
    return np.argsort(random_bits(key, indices, slots), axis=1, kind="stable")
