"""Experts shared out over devices."""
from collections.abc import Callable, Mapping

import jax
from jax.sharding import PartitionSpec

from llm_jax.sharding.rules import activation_spec, mesh_axes, parameter_axes


def on_own_experts(serve: Callable, x_BTD: jax.Array, expert_BTC: jax.Array, weight_BTC: jax.Array,
                   weights: Mapping[str, jax.Array]) -> jax.Array:
  """serve(x_BTD, expert_BTC, weight_BTC, weights) with all experts, computed so that each device only ever holds its
  own experts' weights.

  Left to itself the compiler would sort the tokens of all devices together, and gather the experts on each. Here each
  device sorts its tokens and those of the devices that it shares the experts out with (an all-gather of tokens over
  the expert axis), computes what its experts say of them, and sums that up with the others (a reduce-scatter). The
  weights' d_model is gathered where fsdp splits it, as everywhere; where the tensor axis splits d_ff, each device
  computes its part of the sum.

  Args:
    serve: the experts that it is given are those from 0 on; a token for any other gets 0 from it. Returns float32.
    expert_BTC: int32, of all experts; num_experts or more is none.
    weights: by name, the row of `rules.PARAMETER_AXES` under `experts/`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return serve(x_BTD, expert_BTC, weight_BTC, weights)
  tokens = activation_spec(x_BTD.shape, ('batch', 'seq', None), mesh.shape)
  split = lambda logical: None if logical == 'embed' else mesh_axes(logical, 'parameters', mesh.shape) or None
  specs = {name: PartitionSpec(*map(split, parameter_axes(f'/feed_forward/experts/{name}/w', w.ndim)))
           for name, w in weights.items()}
  expert_axes, mlp_axes = split('experts') or (), split('mlp') or ()
  gathered = tuple(axis for axis in expert_axes if axis in (tokens[0] or ()))

  def local(x_BTD, expert_BTC, weight_BTC, weights):
    for axis in gathered:
      x_BTD, expert_BTC, weight_BTC = (
        jax.lax.all_gather(a, axis, axis=0, tiled=True) for a in (x_BTD, expert_BTC, weight_BTC))
    if expert_axes:
      expert_BTC = expert_BTC - jax.lax.axis_index(expert_axes) * next(iter(weights.values())).shape[0]
    y_BTD = serve(x_BTD, expert_BTC, weight_BTC, weights)
    summed = mlp_axes + tuple(axis for axis in expert_axes if axis not in gathered)
    y_BTD = jax.lax.psum(y_BTD, summed) if summed else y_BTD
    for axis in gathered:
      y_BTD = jax.lax.psum_scatter(y_BTD, axis, scatter_dimension=0, tiled=True)
    return y_BTD

  # check_vma=False: the loops of the CPU kernels carry what starts equal on all devices and becomes each one's own.
  return jax.shard_map(local, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens, check_vma=False)(
    x_BTD, expert_BTC, weight_BTC, weights)
