"""Attention on each device's own rows and heads, for kernels that XLA's partitioner cannot split.

Shapes: B batch, T time, S time of the keys, H query heads, G key/value heads, K head size.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.sharding.context_split import WHOLE, ContextSplit
from llm_jax.sharding.rules import activation_spec, axis_sizes


def on_each_device(attend: Callable, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array,
                   segment_ids_BT: jax.Array | None, sinks_H: jax.Array | None, split: ContextSplit = WHOLE
                   ) -> jax.Array:
  """Runs attend(q, k, v, segment_ids, sinks) on every device of the mesh, with the rows and heads that it holds.

  Where `split` splits time, a device holds its own chunks of each row. Without a mesh, or with one device, `attend`
  gets everything.
  """
  mesh, sizes = jax.sharding.get_abstract_mesh(), axis_sizes()
  if mesh.empty or mesh.size == 1:  # where others split the devices already, the kernel must still be told so
    return attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H)
  axes = ('batch', 'seq' if split.devices > 1 else None, 'heads', None)
  spec = lambda x: activation_spec(x.shape, axes[:x.ndim], sizes)
  q_spec, kv_spec = spec(q_BTHK), spec(k_BSGK)
  group = q_BTHK.shape[2] // k_BSGK.shape[2]  # query heads per key/value head
  segment_spec = None if segment_ids_BT is None else spec(segment_ids_BT)
  sinks_spec = None if sinks_H is None else PartitionSpec(q_spec[2])

  def local(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H):
    if q_spec[2] != kv_spec[2]:  # the query heads are split, the key heads are not: take the key heads of own queries
      own = q_BTHK.shape[2]
      kv_heads = (jax.lax.axis_index(q_spec[2]) * own + jnp.arange(own)) // group
      one_is_enough = group % own == 0
      kv_heads = kv_heads[:1] if one_is_enough else kv_heads
      k_BSGK, v_BSGK = k_BSGK[:, :, kv_heads], v_BSGK[:, :, kv_heads]
    return attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H)

  # check_vma=False for the reason given in `sharding/experts.py`.
  in_specs = q_spec, kv_spec, kv_spec, segment_spec, sinks_spec
  return jax.shard_map(local, in_specs=in_specs, out_specs=q_spec, check_vma=False)(
    q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H)
