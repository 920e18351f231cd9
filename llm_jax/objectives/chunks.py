"""The time axis in chunks, so that the logits of a whole batch never exist."""
import jax
import jax.numpy as jnp

CHUNK_BYTES = {'cpu': 2**24, 'xla': 2**28}  # of float32 logits that a device holds at once
CHUNK_TOKENS = 512  # at least so many, whatever they take: every chunk reads and writes all of the head's gradient


def chunk_length(batch: int, time: int, vocab: int, kernels: str) -> int:
  """Positions a chunk: as many as make CHUNK_BYTES of logits a device, or CHUNK_TOKENS; as equal as they can be."""
  devices = max(1, jax.sharding.get_abstract_mesh().size)
  chunk = max(1, devices * max(CHUNK_TOKENS, CHUNK_BYTES[kernels] // (4 * vocab)) // batch)
  return -(-time // -(-time // chunk))


def split(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """[B, T, ...] -> [chunks, B, chunk, ...], padded with zeros. Every chunk has all rows of the batch, so that a batch
  sharded over devices stays where it is."""
  def cut(a):
    a = jnp.pad(a, ((0, 0), (0, -a.shape[1] % chunk), *((0, 0),) * (a.ndim - 2)))
    return a.reshape(a.shape[0], -1, chunk, *a.shape[2:]).swapaxes(0, 1)
  return tuple(cut(a) for a in arrays)


def join(a: jax.Array, time: int) -> jax.Array:
  """[chunks, B, chunk, ...] -> [B, T, ...], without the padding."""
  return a.swapaxes(0, 1).reshape(a.shape[1], -1, *a.shape[3:])[:, :time]
