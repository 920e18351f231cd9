"""The mean of the parameters of several checkpoints: of a stage's last (Izmailov et al. 2018; Dubey et al. 2024, Llama
3, section 3.4.3), or of several data mixes and rounds (section 4.1.5)."""
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax import paths
from llm_jax.checkpoints.checkpoint import SavedCheckpoint, sharding_of
from llm_jax.checkpoints.metadata import ArraySpec
from llm_jax.runtime.errors import CheckpointError

BLOCK = 1 << 18  # numbers that are added at once
PREFIX = 'params/'

Index = tuple[tuple[int | None, int | None], ...]  # (start, stop) in each dimension


def average_params(checkpoints: Sequence[SavedCheckpoint], abstract: Any,
                   weights: Sequence[float] | None = None) -> Any:
  """The mean of `params` over the checkpoints, summed in float64 and rounded once, so that N equal ones give the same.

  It is made leaf by leaf, each process for the shards that its devices hold. Memory is that of the mean and three times
  the leaf in work, whatever N; the largest leaf comes first.

  abstract: the parameters' tree with jax.ShapeDtypeStruct leaves; without a sharding one goes to the default device.
  weights: above 0, one a checkpoint; they need not sum to 1. None: equal ones.

  Raises:
    CheckpointError: a leaf that a checkpoint lacks, or holds in another shape, or not as float32 or bfloat16; before
      anything is read.
  """
  if weights is None:
    weights = [1.0] * len(checkpoints)
  leaves = dict(paths.leaves(abstract))
  for checkpoint in checkpoints:
    _check_same_model(checkpoint, dict(paths.leaves(checkpoint.as_saved(abstract, 'params'))))
  largest_first = sorted(leaves, key=lambda name: -leaves[name].size)
  means = {name: _average_leaf(name, leaves[name], checkpoints, weights) for name in largest_first}
  return paths.map_named(lambda name, _: means[name], abstract)


def _average_leaf(name: str, leaf: jax.ShapeDtypeStruct, checkpoints: Sequence[SavedCheckpoint],
                  weights: Sequence[float]) -> jax.Array:
  sums: dict[Index, np.ndarray] = {}
  for checkpoint, weight in zip(checkpoints, weights, strict=True):
    array = checkpoint.read_leaf(PREFIX + name, checkpoint.as_saved({name: leaf}, 'params')[name])
    _add_shards(sums, array, weight)
    del array  # else it stays in memory while the next one is read
  means: dict[Index, np.ndarray] = {}
  for index in list(sums):
    means[index] = _round(sums.pop(index), math.fsum(weights), leaf.dtype)
  sharding = sharding_of(leaf)
  shape = sharding.shard_shape(leaf.shape)
  places = sharding.addressable_devices_indices_map(leaf.shape)
  shards = [jax.device_put(means[_index(slices)].reshape(shape), device) for device, slices in places.items()]
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def _add_shards(sums: dict[Index, np.ndarray], array: jax.Array, weight: float) -> None:
  """Adds weight x the shards that are here; of copies of a shard on several devices, one."""
  distinct = {_index(shard.index): shard for shard in array.addressable_shards}
  for index, shard in distinct.items():
    if index not in sums:
      sums[index] = np.zeros(shard.data.size)
    _add(sums[index], shard.data, weight)


def _check_same_model(checkpoint: SavedCheckpoint, leaves: Mapping[str, Any]) -> None:
  saved = {name.removeprefix(PREFIX): spec for name, spec in checkpoint.leaves.items() if name.startswith(PREFIX)}
  here = {name: ArraySpec.of(leaf) for name, leaf in leaves.items()}
  for name in sorted(here.keys() | saved.keys()):
    if saved.get(name) != here.get(name):
      raise CheckpointError(f'{checkpoint.path}: {PREFIX}{name} is {saved.get(name, "absent")} in the checkpoint, '
                            f'{here.get(name, "absent")} here: only checkpoints of one model can be averaged')


def _index(slices: Any) -> Index:
  """A tuple of slices in a form that can be a key."""
  return tuple((piece.start, piece.stop) for piece in slices)


def _add(total: np.ndarray, data: jax.Array, weight: float) -> None:
  """total += weight x data, flat, without a float64 copy of all of it."""
  flat = np.asarray(data).reshape(-1)
  for start in range(0, total.size, BLOCK):
    block = slice(start, start + BLOCK)
    total[block] += weight * flat[block].astype(np.float64)


def _round(total: np.ndarray, scale: float, dtype: Any) -> np.ndarray:
  """total / scale, flat, without a float64 copy of all of it."""
  mean = np.empty(total.size, dtype)
  for start in range(0, total.size, BLOCK):
    block = slice(start, start + BLOCK)
    mean[block] = (total[block] / scale).astype(dtype)
  return mean
