"""The mean of the parameters of several checkpoints: of a stage's last (Izmailov et al. 2018; Dubey et al. 2024, Llama
3, section 3.4.3), or of several data mixes and rounds (section 4.1.5)."""
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax import paths
from llm_jax.checkpoints.checkpoint import describe
from llm_jax.checkpoints.store import SavedCheckpoint
from llm_jax.runtime.errors import CheckpointError

BLOCK = 1 << 18  # numbers that are added at once


def average_params(checkpoints: Sequence[SavedCheckpoint], abstract: Any, weights: Sequence[float] | None = None) -> Any:
  """The mean of `params` over the checkpoints, summed in float64 and rounded once, so that N equal ones give the same.

  It is made leaf by leaf, each process for the shards that its devices hold. Memory is that of the mean and three times
  the leaf in work, whatever N; the largest leaf comes first.

  abstract: the parameters' tree with jax.ShapeDtypeStruct leaves that carry shardings.
  weights: above 0, one a checkpoint; they need not sum to 1. None: equal ones.

  Raises:
    CheckpointError: a leaf that a checkpoint lacks, or holds in another shape or dtype; before anything is read.
  """
  weights = [1.0] * len(checkpoints) if weights is None else weights
  leaves = dict(paths.leaves(abstract))
  for checkpoint in checkpoints:
    _check(checkpoint, leaves)
  scale = math.fsum(weights)

  def mean(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    sums: dict[Any, np.ndarray] = {}  # by the part of the leaf: devices may hold copies of it
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
      array = checkpoint.read_leaf(f'params/{name}', leaf)
      for part, shard in {_part(shard): shard for shard in array.addressable_shards}.items():
        _add(sums.setdefault(part, np.zeros(shard.data.size)), shard.data, weight)
      sharding = array.sharding
      shards = [(_part(shard), shard.data.shape, shard.device) for shard in array.addressable_shards]
      del array, shard
    rounded = {part: _round(sums.pop(part), scale, leaf.dtype) for part in list(sums)}
    parts = [jax.device_put(rounded[part].reshape(shape), device) for part, shape, device in shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

  means = {name: mean(name, leaves[name]) for name in sorted(leaves, key=lambda name: -leaves[name].size)}
  return paths.map_named(lambda name, _: means[name], abstract)


def _check(checkpoint: SavedCheckpoint, leaves: dict[str, Any]) -> None:
  saved = {name.removeprefix('params/'): leaf for name, leaf in checkpoint.leaves.items() if name.startswith('params/')}
  for name in sorted(leaves.keys() | saved.keys()):
    here = describe(leaves[name]) if name in leaves else None
    if saved.get(name) != here:
      words = ['absent' if leaf is None else f'{leaf[1]}{leaf[0]}' for leaf in (saved.get(name), here)]
      raise CheckpointError(f'{checkpoint.path}: params/{name} is {words[0]} in the checkpoint, {words[1]} here: only '
                            'checkpoints of one model can be averaged')


def _part(shard: Any) -> tuple[tuple[int | None, int | None], ...]:
  return tuple((piece.start, piece.stop) for piece in shard.index)


def _add(total: np.ndarray, data: jax.Array, weight: float) -> None:
  """total += weight x data, flat, without another float64 copy of all of it."""
  data = np.asarray(data).reshape(-1)
  for start in range(0, total.size, BLOCK):
    total[start:start + BLOCK] += weight * data[start:start + BLOCK].astype(np.float64)


def _round(total: np.ndarray, scale: float, dtype: Any) -> np.ndarray:
  """total / scale."""
  mean = np.empty(total.size, dtype)
  for start in range(0, total.size, BLOCK):
    mean[start:start + BLOCK] = (total[start:start + BLOCK] / scale).astype(dtype)
  return mean
