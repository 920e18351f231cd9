"""How the time axis is split over the mesh's context axis, so that all devices do equal work in causal attention.

With n devices a row is cut into 2n chunks, and device i holds chunks i and 2n-1-i: one from the start of the row, which
sees few keys, and one from its end, which sees many (Llama 3, section 3.3.2). Callers of the model do not see this
order: tokens are exchanged at the start of the forward pass, features at its end.
"""
import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.sharding.rules import activation_spec, axis_sizes, mesh_axes


@dataclasses.dataclass(frozen=True)
class ContextSplit:
  """How the rows of one forward pass are split. With one device nothing is split or moved.

  devices: along the mesh axis that splits time.
  method: of attention, 'gather' or 'ring' (see `modules/kernels/context_attention.py`).
  """
  devices: int = 1
  method: str = 'gather'

  @property
  def axis(self) -> str:
    """The mesh axis that splits time."""
    return mesh_axes('seq', 'activations', jax.sharding.get_abstract_mesh().shape)[0]

  def arrange(self, x: jax.Array) -> jax.Array:
    """Reorders [B, T, ...] from the order of time to the order of the devices, each with its two chunks."""
    return x if self.devices == 1 else self._exchange(x, self._arrange)

  def restore(self, x: jax.Array) -> jax.Array:
    """The inverse of `arrange`."""
    return x if self.devices == 1 else self._exchange(x, self._restore)

  def starts(self, chunk: int) -> tuple[jax.Array | int, jax.Array | int]:
    """The first index of each of this device's two chunks in the row; under `shard_map`. chunk: tokens in each."""
    return self.starts_of(jax.lax.axis_index(self.axis) if self.devices > 1 else 0, chunk)

  def starts_of(self, device: jax.Array | int, chunk: int) -> tuple[jax.Array | int, jax.Array | int]:
    return device * chunk, (2 * self.devices - 1 - device) * chunk

  def _exchange(self, x, local):
    spec = activation_spec(x.shape, ('batch', 'seq', *(None,) * (x.ndim - 2)), axis_sizes())
    # check_vma=False for the reason given in `experts.py`.
    return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(x)

  # In the order of time device d holds chunks 2d and 2d + 1. All even chunks go to different devices, and so do all odd
  # chunks. So device i gets one even and one odd chunk. The chunk from the start of the row is the even one if i is
  # even.
  def _arrange(self, x):
    even, odd = (self._send(part, parity) for parity, part in enumerate(jnp.split(x, 2, axis=1)))
    return jnp.concatenate(self._swap_on_odd(even, odd), axis=1)

  def _restore(self, x):
    chunks = self._swap_on_odd(*jnp.split(x, 2, axis=1))
    return jnp.concatenate([self._send(part, parity, back=True) for parity, part in enumerate(chunks)], axis=1)

  def _send(self, x, parity, back=False):
    chunks = [2 * device + parity for device in range(self.devices)]
    moves = [(device, min(c, 2 * self.devices - 1 - c)) for device, c in enumerate(chunks)]
    return jax.lax.ppermute(x, self.axis, [move[::-1] for move in moves] if back else moves)

  def _swap_on_odd(self, a, b):
    odd = jax.lax.axis_index(self.axis) % 2 == 1
    return jnp.where(odd, b, a), jnp.where(odd, a, b)


WHOLE = ContextSplit()  # no split


def devices_in_time() -> int:
  """Over how many devices the mesh of `jax.set_mesh` splits time."""
  sizes = axis_sizes()
  return max((sizes[axis] for axis in mesh_axes('seq', 'activations', sizes)), default=1)


def context_split(length: int, method: str) -> ContextSplit:
  """The split of rows of `length` tokens over the mesh of `jax.set_mesh`.

  Rows are not split if two chunks per device do not divide them (`check.check_divides` refuses that for training).
  """
  devices = devices_in_time()
  return ContextSplit(devices, method) if length % (2 * devices) == 0 else WHOLE
