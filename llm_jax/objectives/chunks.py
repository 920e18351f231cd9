"""The time axis in chunks, so that the logits of a whole batch never exist.

Shapes: B batch, T time.
"""
import math

import jax
import jax.numpy as jnp

from llm_jax.sharding.context_split import devices_in_time
from llm_jax.sharding.rules import axis_sizes, constrain

CHUNK_BYTES = {'cpu': 2**24, 'xla': 2**28, 'tpu': 2**28}  # of float32 logits that a device holds at once
CHUNK_TOKENS = 512  # at least so many, whatever they take: every chunk reads and writes all of the head's gradient


def chunk_length(batch: int, time: int, vocab: int, kernels: str) -> int:
  """Positions a chunk: as many as make CHUNK_BYTES of logits a device, or CHUNK_TOKENS; as equal as they can be."""
  devices = math.prod(axis_sizes().values())
  chunk = max(1, devices * max(CHUNK_TOKENS, CHUNK_BYTES[kernels] // (4 * vocab)) // batch)
  return -(-time // -(-time // chunk))


def split(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """[B, T, ...] -> [chunks, B, chunk, ...], padded with zeros. Every chunk has all rows of the batch and, where time is
  split over devices, an equal part of what each of them holds: all that is sharded stays where it is."""
  def cut(a):
    (B, T, *rest), n = a.shape, _parts(a.shape[1])
    a = a.reshape(B, n, T // n, *rest)
    a = jnp.pad(a, ((0, 0), (0, 0), (0, -a.shape[2] % each), *((0, 0),) * len(rest)))
    a = jnp.moveaxis(a.reshape(B, n, -1, each, *rest), 2, 0).reshape(-1, B, n * each, *rest)
    return constrain(a, None, 'batch', 'seq', *(None,) * len(rest))
  each = -(-chunk // _parts(arrays[0].shape[1]))
  return tuple(cut(a) for a in arrays)


def join(a: jax.Array, time: int) -> jax.Array:
  """[chunks, B, chunk, ...] -> [B, T, ...], without the padding."""
  (chunks, B, _, *rest), n = a.shape, _parts(time)
  a = jnp.moveaxis(a.reshape(chunks, B, n, -1, *rest), 0, 2).reshape(B, n, -1, *rest)[:, :, :time // n]
  return a.reshape(B, time, *rest)


def _parts(time):
  """Over how many devices rows are split."""
  n = devices_in_time()
  return 1 if time % n else n
