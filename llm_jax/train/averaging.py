"""The mean of the parameters of several checkpoints (Izmailov et al. 2018; Llama 3's annealing, section 3.4.3)."""
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax import paths
from llm_jax.train.checkpoint import Checkpoint


def average_params(checkpoints: Sequence[Checkpoint], abstract: Any) -> Any:
  """The mean of `params` over the checkpoints, summed in float64 and rounded once, so that N equal ones give the same.

  It is made leaf by leaf, each process for the shards that its devices hold: memory is one model and a few times its
  largest leaf, whatever N.

  abstract: the parameters' tree with jax.ShapeDtypeStruct leaves that carry shardings.

  Raises:
    CheckpointError: a leaf that a checkpoint lacks, or holds in another shape or dtype.
  """
  def mean(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    arrays = (checkpoint.read_leaf(f'params/{name}', leaf) for checkpoint in checkpoints)
    first = next(arrays)
    sums = [np.asarray(shard.data, np.float64) for shard in first.addressable_shards]
    for array in arrays:
      for total, shard in zip(sums, array.addressable_shards, strict=True):
        total += np.asarray(shard.data)
    parts = [jax.device_put((total / len(checkpoints)).astype(leaf.dtype), shard.device)
             for total, shard in zip(sums, first.addressable_shards, strict=True)]
    return jax.make_array_from_single_device_arrays(first.shape, first.sharding, parts)

  return paths.map_named(mean, abstract)
