"""Attention on what each device holds, for kernels that XLA's partitioner cannot split."""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax.sharding.context_split import WHOLE, ContextSplit
from llm_jax.sharding.rules import activation_spec


def on_each_device(attend: Callable, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array,
                   segment_ids_BT: jax.Array | None, split: ContextSplit = WHOLE) -> jax.Array:
  """attend(q, k, v, segment_ids) of the rows and heads that each device of the mesh holds, and of the stretches of time
  that `split` gives it. Without a mesh, or on a single device, that is all of them."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT)
  axes = 'batch', 'seq' if split.devices > 1 else None, 'heads', None
  spec = lambda x: activation_spec(x.shape, axes[:x.ndim], mesh.shape)
  q_spec, kv_spec, each = spec(q_BTHK), spec(k_BSGK), q_BTHK.shape[2] // k_BSGK.shape[2]
  segment_spec = None if segment_ids_BT is None else spec(segment_ids_BT)

  def local(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT):
    if q_spec[2] != kv_spec[2]:  # queries are split over heads, keys not: take those of one's own queries
      few = q_BTHK.shape[2]
      heads = (jax.lax.axis_index(q_spec[2]) * few + jnp.arange(few)) // each
      heads = heads[:1] if each % few == 0 else heads
      k_BSGK, v_BSGK = k_BSGK[:, :, heads], v_BSGK[:, :, heads]
    return attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT)

  # check_vma=False: as in `sharding/experts.py`.
  return jax.shard_map(local, in_specs=(q_spec, kv_spec, kv_spec, segment_spec), out_specs=q_spec, check_vma=False)(
    q_BTHK, k_BSGK, v_BSGK, segment_ids_BT)
