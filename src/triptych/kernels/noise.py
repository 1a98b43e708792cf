"""Counter-based randomness: a draw is a function of its key and its position, of nothing else.

Batch size, order of rows and number of processes therefore never change the noise. The generator is
Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) from numpy, keyed by
a 128-bit hash of the :class:`~triptych.trajectory.NoiseKey`.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from triptych.trajectory import NoiseKey


def stream(key: NoiseKey) -> np.random.Philox:
    """The raw stream of one row; its k-th number never depends on how many are read."""
    text = "\x1f".join([str(key.seed), str(key.step), key.task, str(key.sample), key.segment])
    words = np.frombuffer(blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Philox(key=words)


def uniforms(keys: Sequence[NoiseKey], n: int) -> Tensor:
    """``[B, n]`` float64 in the open interval (0, 1): row b from ``keys[b]``, column k at position k.

    The top 52 bits of each raw word, centred in their cell (53 would round up to 1 at the upper end), so
    neither 0 nor 1 occurs.
    """
    raw = np.stack([stream(key).random_raw(n) for key in keys])
    return torch.from_numpy(((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def normals(keys: Sequence[NoiseKey], n: int) -> Tensor:
    """``[B, n]`` fp32 standard normal: the quantiles of :func:`uniforms`, computed in float64.

    One normal for one uniform, so the k-th stays where it is however many are drawn. At most 8.2 in size.
    """
    quantiles: Tensor = torch.special.ndtri(uniforms(keys, n))
    return quantiles.float()
