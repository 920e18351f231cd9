"""Expert parallelism: the experts are divided among devices.

Shapes: B batch, T time, D model width, X chosen experts, M tokens (B x T).
"""
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.sharding.rules import activation_spec, axis_sizes, mesh_axes, parameter_axes, parameter_spec
from llm_jax.sharding.sums import gathered
from llm_jax.sharding.token_exchange import exchange


def run_on_own_experts(expert_ffn: Callable, x_BTD: jax.Array, expert_BTX: jax.Array, weight_BTX: jax.Array,
                   weights: Mapping[str, jax.Array]) -> jax.Array:
  """Computes expert_ffn(x_BTD, expert_BTX, weight_BTX, weights) so that a device only holds its own experts' weights.

  Without this the compiler would sort the tokens of all devices together and gather all experts on every device. Here
  each device sends its tokens to the devices of their experts and gets the results back (`token_exchange.py`). Tokens
  that the expert axis does not split are on all of its devices; each applies its own experts to them, and the outputs
  are summed. The weights' d_model axis is gathered where fsdp splits it, as in every other layer; where the tensor axis
  splits d_ff, each device computes one term of the sum over d_ff, and the first one of them adds the bias of that sum.

  Args:
    expert_ffn: numbers the experts whose weights it gets from 0; for a token that chose none of them it returns 0.
      Returns float32.
    expert_BTX: int32, index among all experts; num_experts or more means no expert.
    weights: by path under `experts/`: 'down/w', 'down/b' and so on.

  Returns:
    float32, or x's dtype where there are several devices.
  """
  sizes = axis_sizes()
  if math.prod(sizes.values()) == 1:
    return expert_ffn(x_BTD, expert_BTX, weight_BTX, weights)
  tokens = activation_spec(x_BTD.shape, ('batch', 'seq', None), sizes)
  specs = {path: parameter_spec(parameter_axes(f'/feed_forward/experts/{path}', leaf.ndim), leaf.shape, sizes)
           for path, leaf in weights.items()}
  expert_axis = next(iter(mesh_axes('experts', 'parameters', sizes)), None)
  term_axes = mesh_axes('mlp', 'parameters', sizes)
  gathered_axes = mesh_axes('embed', 'parameters', sizes)

  def local(x_BTD, expert_BTX, weight_BTX, weights):
    weights = {path: _whole(leaf, specs[path], gathered_axes) for path, leaf in weights.items()}
    if term_axes and 'down/b' in weights:
      is_first = jax.lax.axis_index(term_axes) == 0
      weights = {**weights, 'down/b': jnp.where(is_first, weights['down/b'], 0)}
    summed = term_axes
    if expert_axis is not None and expert_axis in (tokens[0] or ()):
      x_MD, expert_MX, weight_MX = (a.reshape(-1, a.shape[-1]) for a in (x_BTD, expert_BTX, weight_BTX))
      y_BTD = exchange(expert_ffn, x_MD, expert_MX, weight_MX, weights, expert_axis).reshape(x_BTD.shape)
    elif expert_axis is not None:
      first = jax.lax.axis_index(expert_axis) * next(iter(weights.values())).shape[0]
      y_BTD = expert_ffn(x_BTD, expert_BTX - first, weight_BTX, weights)
      summed = (*term_axes, expert_axis)
    else:
      y_BTD = expert_ffn(x_BTD, expert_BTX, weight_BTX, weights)
    y_BTD = y_BTD.astype(x_BTD.dtype)
    return jax.lax.psum(y_BTD, summed) if summed else y_BTD

  # check_vma=False, because the loops of the CPU kernels carry values that are equal on all devices at first and then
  # differ, which that check would refuse.
  return jax.shard_map(local, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens, check_vma=False)(
    x_BTD, expert_BTX, weight_BTX, weights)


def _whole(weight: jax.Array, spec: PartitionSpec, axes: tuple[str, ...]) -> Any:
  """The weight without the splits over `axes`; under `shard_map`. Any as in modules/kernels/context_attention.py."""
  for dimension, axis in enumerate(spec):
    if axis in axes:
      weight = gathered(weight, axis, dimension)
  return weight
