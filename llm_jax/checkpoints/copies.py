"""Arrays of which several processes hold copies: read from storage by one of them, and sent over the devices' network.

Where a mesh has `data=16` sixteen groups of hosts hold the same state, and would read the same files. Here each shard
is read once, the arrays' shards by the groups in turn, so that all hosts read a part.
"""
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.checkpoints.zarr_arrays import Index, index_key, open_array
from llm_jax.runtime import processes
from llm_jax.sharding.rules import HOST

LEAST_BYTES = 1 << 16  # of less every process reads its own
WINDOW_BYTES = 1 << 30  # that a process reads before it sends them
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by itemsize: an array is sent as it is in memory, -0.0 and NaN too

Device = Any  # of jax
Read = Callable[[Index], Any]  # of a part of an array: gives what waits for it, by `result()`


def has_copies(leaf: Any) -> bool:
  """Whether several processes hold the same of an array with this shape, dtype and sharding, and it is large."""
  sharding = getattr(leaf, 'sharding', None)
  if jax.process_count() == 1 or not isinstance(sharding, NamedSharding):
    return False
  dtype = np.dtype(leaf.dtype)
  is_large = math.prod(leaf.shape) * dtype.itemsize >= LEAST_BYTES
  return is_large and dtype.itemsize in BITS and dtype != np.bool_ and _is_in_several(sharding, leaf.shape)


def _is_in_several(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
  return any(len({device.process_index for device, _ in devices}) > 1 for devices in _holders(sharding, shape))


def read_once(folder: Path, wanted: Mapping[str, Any], open_: Callable[[Path, str, Any], Read] = open_array
              ) -> dict[str, jax.Array]:
  """The arrays of that name, each shard read by one process. Every process of the run makes the same call.

  wanted: shapes, dtypes and shardings.

  Raises:
    OSError, ValueError: on every process where one of them cannot read its part.
  """
  found: dict[str, jax.Array] = {}
  for window in _windows(wanted):
    error: Exception | None = None
    pieces: dict[str, dict[Device, np.ndarray]] = {}
    try:
      pieces = _read_window(folder, window, wanted, open_)
    except (OSError, ValueError, RuntimeError) as caught:  # raised again once the others know of it
      error = caught
    # The others wait here for the slowest: devices that wait for each other give up after half a minute.
    failed = processes.gather(error is not None)
    if error is not None:
      raise error
    if any(failed):
      raise OSError(f'process {failed.index(1)} cannot read its part, and says why')
    for name in window:
      found[name] = send(wanted[name], pieces.pop(name))
    jax.block_until_ready([found[name] for name in window])
  return found


def _windows(wanted: Mapping[str, Any]) -> Iterator[dict[str, int]]:
  """The names with their numbers, in parts of which a process reads WINDOW_BYTES or one array."""
  window: dict[str, int] = {}
  num_bytes = 0
  for number, (name, leaf) in enumerate(wanted.items()):
    window[name] = number
    num_bytes += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    if num_bytes >= WINDOW_BYTES * jax.process_count():
      yield window
      window, num_bytes = {}, 0
  if window:
    yield window


def _read_window(folder: Path, window: Mapping[str, int], wanted: Mapping[str, Any],
                 open_: Callable[[Path, str, Any], Read]) -> dict[str, dict[Device, np.ndarray]]:
  """What the devices of this process are to read of each array."""
  reads: dict[str, dict[Device, Any]] = {}
  for name, number in window.items():
    leaf = wanted[name]
    mine = {device: index for device, index in readers(leaf.sharding, leaf.shape, number).items()
            if device.process_index == jax.process_index()}
    read = open_(folder, name, leaf) if mine else None
    reads[name] = {device: read(index) for device, index in mine.items()} if read else {}
  return {name: {device: read.result() for device, read in here.items()} for name, here in reads.items()}


def _holders(sharding: NamedSharding, shape: tuple[int, ...]) -> list[list[tuple[Device, Index]]]:
  """For each shard the devices that hold it, in the order of the mesh."""
  found: dict[Any, list[tuple[Device, Index]]] = {}
  for device, index in sharding.devices_indices_map(shape).items():
    found.setdefault(index_key(index or ()), []).append((device, index or ()))
  return list(found.values())


def readers(sharding: NamedSharding, shape: tuple[int, ...], number: int) -> dict[Device, Index]:
  """Which devices read, and what: of those that hold a shard one, another one for the next shard and array."""
  return dict(devices[(number + shard) % len(devices)] for shard, devices in enumerate(_holders(sharding, shape)))


def send(leaf: Any, pieces: Mapping[Device, np.ndarray]) -> jax.Array:
  """The array, of which `pieces` has what devices of this process have read: one of those that hold a shard, on
  whatever process, has."""
  sharding: NamedSharding = leaf.sharding
  used = set(itertools.chain.from_iterable(_axes(entry) for entry in sharding.spec))
  others = tuple(axis for axis, size in sharding.mesh.shape.items() if size > 1 and axis not in used)
  stacked = NamedSharding(sharding.mesh, PartitionSpec(others, *sharding.spec))
  copies = math.prod(sharding.mesh.shape[axis] for axis in others)
  bits = BITS[np.dtype(leaf.dtype).itemsize]
  nothing = np.zeros((1, *sharding.shard_shape(leaf.shape)), bits)
  block = lambda device: np.asarray(pieces[device], order='C').view(bits)[None] if device in pieces else nothing
  blocks = [jax.device_put(block(device), device) for device in stacked.addressable_devices]
  array = jax.make_array_from_single_device_arrays((copies, *leaf.shape), stacked, blocks)
  summed = _sum(NamedSharding(sharding.mesh, sharding.spec), np.dtype(leaf.dtype).name)(array)
  return jax.device_put(summed, sharding) if sharding.memory_kind == HOST else summed


@functools.cache
def _sum(sharding: NamedSharding, dtype: str) -> Callable[[jax.Array], jax.Array]:
  """Adds what one has read to the zeros of the others: as whole numbers, which changes no bit."""
  def add(stacked: jax.Array) -> jax.Array:
    bits = stacked.sum(axis=0, dtype=jnp.uint32).astype(stacked.dtype)
    return jax.lax.bitcast_convert_type(bits, jnp.dtype(dtype))
  return jax.jit(add, out_shardings=sharding, donate_argnums=0)


def _axes(entry: Any) -> tuple[str, ...]:
  """The mesh axes of one dimension."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)
