"""Filling imported parameters piece by piece: in host memory, or on the shards of a mesh."""
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.hf.layouts import Index, Shape
from llm_jax.sharding.rules import param_shardings

Read = Callable[[Index, np.ndarray], None]  # fills the array with the slice of a piece
# (path, parameter with the axis of its layers, where it has one) -> what is kept of it: an array, or a tree of arrays.
Store = Callable[[str, jax.Array], Any]


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
  on the devices. So host memory never holds more than one piece, nor a device more than what `store` makes of the rest.
  """

  def __init__(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, np.dtype], mesh: jax.sharding.Mesh,
               store: Store | None = None):
    self.shapes = {path: jax.ShapeDtypeStruct(shape, dtypes[path]) for path, shape in shapes.items()}
    self.shardings = param_shardings(self.shapes, mesh)
    self.mesh = mesh
    self.store = store
    self.arrays: dict[str, Any] = {}

  def fill(self, path: str, layer: int | None, read: Read) -> None:
    shape, dtype, sharding = self.shapes[path].shape, self.shapes[path].dtype, self.shardings[path]
    if layer is None:
      self.arrays[path] = self._stored(path, self._piece(shape, dtype, sharding, read))
      return
    if path not in self.arrays:
      self.arrays[path] = self._zeros(path, shape, dtype)
    rest = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    piece = self._stored(path, self._piece(shape[1:], dtype, rest, read)[None])
    self.arrays[path] = jax.block_until_ready(_put(self.arrays[path], piece, layer))

  def _stored(self, path: str, leaf: jax.Array) -> Any:
    """What is kept of a parameter, or of one layer of it."""
    if self.store is None:
      return leaf
    stored = _kept(functools.partial(self.store, path), leaf)
    return jax.device_put(stored, self._placed(path, stored))

  def _zeros(self, path: str, shape: Shape, dtype: np.dtype) -> Any:
    """What is kept of a parameter, before any layer is read."""
    store = (lambda leaf: leaf) if self.store is None else functools.partial(self.store, path)
    kept = jax.eval_shape(store, jax.ShapeDtypeStruct(shape, dtype))
    make = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept)
    return jax.jit(make, out_shardings=self._placed(path, kept))()

  def _placed(self, path: str, kept: Any) -> Any:
    """The shardings of what is kept of a parameter."""
    return param_shardings({path: kept}, self.mesh)[path]

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


def _set(kept: Any, pieces: Any, layer: jax.Array) -> Any:
  set_layer = lambda leaf, piece: jax.lax.dynamic_update_slice_in_dim(leaf, piece, layer, 0)
  return jax.tree.map(set_layer, kept, pieces)


_put = jax.jit(_set, donate_argnums=0)
_kept = jax.jit(lambda store, leaf: store(leaf), static_argnums=0)
