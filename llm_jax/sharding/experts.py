"""Expert parallelism: the experts are divided among devices.

Shapes: B batch, T time, D model width, X chosen experts.
"""
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.sharding.rules import activation_spec, mesh_axes, parameter_axes


def run_on_own_experts(expert_ffn: Callable, x_BTD: jax.Array, expert_BTX: jax.Array, weight_BTX: jax.Array,
                   weights: Mapping[str, jax.Array]) -> jax.Array:
  """Computes expert_ffn(x_BTD, expert_BTX, weight_BTX, weights) so that a device only holds its own experts' weights.

  Without this the compiler would sort the tokens of all devices together and gather all experts on every device. Here
  the devices that share the experts out all-gather their tokens over the expert axis; each applies its own experts to
  them; and a reduce-scatter sums the outputs. The weights' d_model axis is gathered where fsdp splits it, as in every
  other layer; where the tensor axis splits d_ff, each device computes one term of the sum over d_ff, and the first one
  of them adds the bias of that sum.

  Args:
    expert_ffn: numbers the experts whose weights it gets from 0; for a token that chose none of them it returns 0.
      Returns float32.
    expert_BTX: int32, index among all experts; num_experts or more means no expert.
    weights: by path under `experts/`: 'down/w', 'down/b' and so on.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return expert_ffn(x_BTD, expert_BTX, weight_BTX, weights)
  tokens = activation_spec(x_BTD.shape, ('batch', 'seq', None), mesh.shape)
  split = lambda logical: None if logical == 'embed' else mesh_axes(logical, 'parameters', mesh.shape) or None
  specs = {path: PartitionSpec(*map(split, parameter_axes(f'/feed_forward/experts/{path}', leaf.ndim)))
           for path, leaf in weights.items()}
  expert_axes, mlp_axes = split('experts') or (), split('mlp') or ()
  gathered = tuple(axis for axis in expert_axes if axis in (tokens[0] or ()))

  def local(x_BTD, expert_BTX, weight_BTX, weights):
    for axis in gathered:
      x_BTD, expert_BTX, weight_BTX = (
        jax.lax.all_gather(a, axis, axis=0, tiled=True) for a in (x_BTD, expert_BTX, weight_BTX))
    if expert_axes:
      expert_BTX = expert_BTX - jax.lax.axis_index(expert_axes) * next(iter(weights.values())).shape[0]
    if mlp_axes and 'down/b' in weights:
      is_first = jax.lax.axis_index(mlp_axes) == 0
      weights = {**weights, 'down/b': jnp.where(is_first, weights['down/b'], 0)}
    y_BTD = expert_ffn(x_BTD, expert_BTX, weight_BTX, weights)
    summed = mlp_axes + tuple(axis for axis in expert_axes if axis not in gathered)
    y_BTD = jax.lax.psum(y_BTD, summed) if summed else y_BTD
    for axis in gathered:
      y_BTD = jax.lax.psum_scatter(y_BTD, axis, scatter_dimension=0, tiled=True)
    return y_BTD

  # check_vma=False, because the loops of the CPU kernels carry values that are equal on all devices at first and then
  # differ, which that check would refuse.
  return jax.shard_map(local, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens, check_vma=False)(
    x_BTD, expert_BTX, weight_BTX, weights)
