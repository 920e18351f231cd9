"""Filling imported parameters piece by piece: in host memory, or on the shards of a mesh."""
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.hf.layouts import Index, Shape
from llm_jax.sharding.rules import param_shardings

Read = Callable[[Index, np.ndarray], None]  # fills the array with the slice of a piece


class Leaves(Protocol):
  """Parameters by path. `fill` sets one layer of a stacked parameter, or (layer=None) a whole parameter."""

  def fill(self, path: str, layer: int | None, read: Read) -> None: ...
  def finish(self) -> dict[str, Any]: ...


class HostLeaves:
  """NumPy arrays."""

  def __init__(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, np.dtype]):
    self.arrays = {path: np.empty(shape, dtypes[path]) for path, shape in shapes.items()}

  def fill(self, path: str, layer: int | None, read: Read) -> None:
    target = self.arrays[path] if layer is None else self.arrays[path][layer]
    read((slice(None),) * target.ndim, target)

  def finish(self) -> dict[str, Any]:
    return self.arrays


class MeshLeaves:
  """Arrays over a mesh, sharded as `sharding.rules` says.

  Every device's part of a piece is read from the tensors separately, and a stacked parameter is filled layer by layer
  on the devices. So host memory never holds more than one piece.
  """

  def __init__(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, np.dtype], mesh: jax.sharding.Mesh):
    self.shapes = {path: jax.ShapeDtypeStruct(shape, dtypes[path]) for path, shape in shapes.items()}
    self.shardings = param_shardings(self.shapes, mesh)
    self.arrays: dict[str, jax.Array] = {}

  def fill(self, path: str, layer: int | None, read: Read) -> None:
    shape, dtype, sharding = self.shapes[path].shape, self.shapes[path].dtype, self.shardings[path]
    if layer is None:
      self.arrays[path] = self._piece(shape, dtype, sharding, read)
      return
    if path not in self.arrays:
      self.arrays[path] = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    rest = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    piece = self._piece(shape[1:], dtype, rest, read)
    self.arrays[path] = jax.block_until_ready(_put(self.arrays[path], piece, layer))

  def _piece(self, shape: Shape, dtype: np.dtype, sharding: jax.sharding.NamedSharding, read: Read) -> jax.Array:
    made: dict[Any, np.ndarray] = {}  # read once for all devices that hold the same part

    def part(index: Index | None) -> np.ndarray:
      assert index is not None  # its type allows None, and jax never gives it
      bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))
      if bounds not in made:
        made[bounds] = np.empty([end - start for start, end in bounds], dtype)
        read(tuple(slice(*bound) for bound in bounds), made[bounds])
      return made[bounds]

    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))

  def finish(self) -> dict[str, Any]:
    return self.arrays


def _set(leaf: jax.Array, piece: jax.Array, layer: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(leaf, piece, layer, 0)


_put = jax.jit(_set, donate_argnums=0)
