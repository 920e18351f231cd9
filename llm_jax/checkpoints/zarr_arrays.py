"""Arrays as Zarr in a folder or a bucket, written and read by TensorStore: an object for each shard of each array.

<folder>/params/embedding/w/.zarray    shape, dtype, and the shape of a piece
<folder>/params/embedding/w/0.1        a piece: the shard of a device, or a part of it where that is large
"""
import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.runtime.buckets import BucketPath

MOST_BYTES = 128 << 20  # of a piece: it is written by one request, and read whole to be verified
THREADS = 8  # arrays that are read at a time
ORBAX = 'manifest.ocdbt'  # is there where Orbax wrote the arrays

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
  """What this process writes of an array.   chunk: the shape of the objects that it is stored in."""
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  chunk: tuple[int, ...]
  index: Index
  data: np.ndarray


def pieces_here(arrays: Mapping[str, jax.Array]) -> list[Piece]:
  """Copies, in the memory of the host, of the shards that this process is to write; of copies of one shard on several
  devices, the first device's process writes it."""
  found: list[Piece] = []
  for name, array in arrays.items():
    chunk = chunk_shape(array.sharding.shard_shape(array.shape), array.dtype.itemsize)
    for shard in array.addressable_shards:
      if shard.replica_id == 0:
        found.append(Piece(name, array.shape, array.dtype, chunk, shard.index, np.array(shard.data, copy=True)))
  return found


def chunk_shape(shard: Sequence[int], itemsize: int) -> tuple[int, ...]:
  """The shape of the objects that a shard is stored in: equal parts of it, of MOST_BYTES at most."""
  chunk = list(shard)
  for axis, size in enumerate(shard):
    excess = math.prod(chunk) * itemsize / MOST_BYTES
    if excess <= 1:
      break
    parts = next(count for count in range(1, size + 1) if size % count == 0 and (count >= excess or count == size))
    chunk[axis] = size // parts
  return tuple(max(1, size) for size in chunk)


def begin_writing(folder: Path, pieces: Sequence[Piece]) -> Callable[[], None]:
  """Starts to write; what it returns waits for the end, and raises OSError where a piece cannot be written."""
  import tensorstore
  by_name = {piece.name: piece for piece in pieces}
  opening = {
    name: tensorstore.open(
      _spec(folder, name), create=True, open=True, dtype=piece.dtype.name, shape=piece.shape,
      chunk_layout=tensorstore.ChunkLayout(chunk_shape=piece.chunk))
    for name, piece in by_name.items()}

  def finish() -> None:
    try:
      writes = [opening[piece.name].result()[piece.index].write(piece.data) for piece in pieces]
      for write in writes:
        write.result()
    except (ValueError, RuntimeError) as error:
      raise OSError(f'{folder}: {error}') from error

  return finish


def is_readable(state: Path) -> bool:
  """Whether `read_arrays` is what reads it, and not Orbax."""
  return isinstance(state, BucketPath) or not (state / ORBAX).exists()


def read_arrays(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
  """The arrays of that name. A value of None asks for numpy, else for a jax array of that shape, dtype and sharding.

  What Orbax wrote into a folder that was copied to a bucket is read too.
  """
  is_of_orbax = (folder / ORBAX).exists()

  def read(name: str) -> Any:
    return _read(_orbax_spec(folder, name) if is_of_orbax else _spec(folder, name), wanted[name])

  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return dict(zip(wanted, pool.map(read, wanted), strict=True))


def open_array(folder: Path, name: str, leaf: Any) -> Callable[[Index], Any]:
  """What starts to read a part of one of the arrays, which has the shape and dtype of `leaf`."""
  is_of_orbax = (folder / ORBAX).exists()
  stored = _open(_orbax_spec(folder, name) if is_of_orbax else _spec(folder, name), leaf)
  return lambda index: stored[index].read()


def _open(spec: dict[str, Any], leaf: Any) -> Any:
  import tensorstore
  stored = tensorstore.open(spec, open=True).result()
  if leaf is not None and (stored.shape != leaf.shape or stored.dtype.name != np.dtype(leaf.dtype).name):
    raise ValueError(f'{stored.dtype.name}{list(stored.shape)} is stored')
  return stored


def _read(spec: dict[str, Any], leaf: Any) -> Any:
  stored = _open(spec, leaf)
  if leaf is None:
    return stored.read().result()
  places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
  reads = {index_key(index): stored[index].read() for index in places.values()}
  return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: reads[index_key(index or ())].result())


def index_key(index: Index) -> tuple[tuple[int | None, int | None], ...]:
  """An index in a form that can be a key."""
  return tuple((piece.start, piece.stop) for piece in index)


def _spec(folder: Path, name: str) -> dict[str, Any]:
  return {'driver': 'zarr', 'kvstore': _store(folder / name)}


def _orbax_spec(folder: Path, name: str) -> dict[str, Any]:
  path = name.replace('/', '.') + '/'
  return {'driver': 'zarr', 'kvstore': {'driver': 'ocdbt', 'base': _store(folder), 'path': path}}


def _store(folder: Path) -> dict[str, Any]:
  return folder.spec if isinstance(folder, BucketPath) else {'driver': 'file', 'path': f'{folder.absolute()}/'}
