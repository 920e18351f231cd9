"""Next-token cross-entropy that never holds the logits of the whole batch.

Shapes: B batch, T time, L chunk of time, D model width, V vocabulary.
"""
import functools
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import accum_dtype, resolve
from llm_jax.modules.kernels.ordering import barrier
from llm_jax.objectives.chunks import chunk_length, join, split
from llm_jax.sharding.rules import constrain, split_counts
from llm_jax.sharding.sums import by_device, is_shared_out, sum_over_devices


def chunked_cross_entropy(x_BTD: jax.Array, w_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array,
                          z_loss: float = 0.0, chunk: int | None = None, kernels: str | None = None,
                          soft_cap: float | None = None, per_row: bool = False,
                          ) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sum over tokens of weight (nll + z_loss lse^2), with lse the log-sum-exp of the token's float32 logits x w'.

  The time axis is cut into chunks. When it is differentiated, the forward pass computes the gradient of a chunk while
  it holds the chunk's logits (Hsu et al. 2024, "Liger kernel", section 3.2): one product more than the loss alone
  needs, and no logits kept. z_loss is PaLM's (Chowdhery et al. 2022, section 5): 1e-4 keeps the softmax normaliser
  near 1.

  Args:
    x_BTD: final hidden states, float32 or bfloat16.
    w_VD: output embedding, float32 or bfloat16; products are in x's dtype, accumulated in float32.
    targets_BT: int32 in [0, V).
    weights_BT: float32; 0 takes a token out.
    z_loss: weight of lse^2.
    chunk: positions a chunk; None means what `chunk_length` says.
    kernels: 'cpu' subtracts the one-hot of the target by scatter, 'xla' in the fused softmax.
    soft_cap: logits become soft_cap tanh(x w' / soft_cap) (Gemma 2, section 2); None leaves them.
    per_row: whether the nll of each row is wanted too.

  Returns:
    total: float32, differentiable in x_BTD, w_VD and weights_BT.
    sums: float32 'nll', 'correct' (the target's logit is the largest) and 'z' (lse^2), weighted, without gradient;
      with `per_row` also 'nll_B', float32 [batch].
  """
  kernels = resolve(kernels)
  B, T = targets_BT.shape
  chunk = chunk_length(B, T, w_VD.shape[0], kernels) if chunk is None else chunk
  cross_entropy: Any = _cross_entropy  # custom_vjp hides its arguments
  total, sums = cross_entropy(x_BTD, w_VD, targets_BT, weights_BT, z_loss, chunk, kernels, soft_cap, per_row)
  return total, jax.lax.stop_gradient(sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def _cross_entropy(x_BTD, w_VD, targets_BT, weights_BT, z_loss, chunk, kernels, soft_cap, per_row):
  w = _whole_rows(w_VD, x_BTD.dtype)

  def step(sums, inputs):
    x_BLD, targets_BL, weights_BL = inputs
    per_token, _ = _losses(head_logits(x_BLD, w, soft_cap), targets_BL, z_loss)
    return _add(sums, per_token, weights_BL), None

  sums, _ = jax.lax.scan(step, _zero_sums(x_BTD, per_row), split(chunk, x_BTD, targets_BT, weights_BT))
  return sums.pop('total'), sums


def _forward(x_BTD, w_VD, targets_BT, weights_BT, z_loss, chunk, kernels, soft_cap, per_row):
  w = _whole_rows(w_VD, x_BTD.dtype)

  def step(carry, inputs):
    sums, dw = carry
    x_BLD, targets_BL, weights_BL = inputs
    logits_BLV = head_logits(x_BLD, w, soft_cap)
    per_token, (exp_BLV, exp_sum_BL, lse_BL, target_BL) = _losses(logits_BLV, targets_BL, z_loss)
    # d total / d logits = weight ((1 + 2 z_loss lse) softmax - onehot) = scale (exp - ones onehot). The scale, one
    # number a token, multiplies the vectors of length D, not the far longer ones of length V.
    ones_BL = exp_sum_BL / (1 + 2 * z_loss * lse_BL)
    scale_BL1 = (weights_BL / ones_BL)[..., None]
    d_BLV = exp_BLV
    if soft_cap is not None:  # d logits / d (x w') = 1 - tanh^2
      d_BLV *= 1 - jnp.square(logits_BLV / soft_cap)
      ones_BL *= 1 - jnp.square(target_BL / soft_cap)
    d_BLV = _subtract_one_hot(d_BLV, targets_BL, ones_BL, kernels).astype(x_BLD.dtype)
    dx_BLD = jax.lax.dot_general(d_BLV, w, (((2,), (0,)), ((), ())), preferred_element_type=accum_dtype(x_BLD))
    dx_BLD = (scale_BL1 * dx_BLD).astype(x_BLD.dtype)
    dw += _head_gradient((scale_BL1 * x_BLD).astype(x_BLD.dtype), d_BLV, is_shared, dw.dtype)
    return (_add(sums, per_token, weights_BL), dw), (dx_BLD, per_token['total'])

  inputs = split(chunk, x_BTD, targets_BT, weights_BT)
  is_shared = is_shared_out(inputs[1][0].shape)
  devices = split_counts(inputs[1][0].shape, 'batch', 'seq') if is_shared else ()
  carry = _zero_sums(x_BTD, per_row), jnp.zeros((*devices, *w_VD.shape[::-1]), accum_dtype(x_BTD))
  (sums, dw), (dx, dweights) = jax.lax.scan(step, carry, inputs)
  dw_DV = sum_over_devices(dw, ('embed', 'vocab')) if is_shared else dw
  dx_BTD, dweights_BT = (join(a, x_BTD.shape[1]) for a in (dx, dweights))
  return (sums.pop('total'), sums), (dx_BTD, barrier(dw_DV).T.astype(w_VD.dtype), dweights_BT)


def _backward(z_loss, chunk, kernels, soft_cap, per_row, saved, cotangents):
  dx_BTD, dw_VD, dweights_BT = saved
  g, _ = cotangents
  return (g * dx_BTD).astype(dx_BTD.dtype), (g * dw_VD).astype(dw_VD.dtype), None, g * dweights_BT


_cross_entropy.defvjp(_forward, _backward)


def head_logits(x_BLD: jax.Array, w_VD: jax.Array, soft_cap: float | None) -> jax.Array:
  """x w', float32 [batch, positions, vocab], w of x's dtype; with a soft cap as in `chunked_cross_entropy`."""
  logits_BLV = jax.lax.dot_general(x_BLD, w_VD, (((2,), (1,)), ((), ())), preferred_element_type=accum_dtype(x_BLD))
  return logits_BLV if soft_cap is None else soft_cap * jnp.tanh(logits_BLV / soft_cap)


def _whole_rows(w_VD, dtype):
  """The head in the dtype of the products, gathered over its width once; left alone, it would be once a chunk."""
  return constrain(w_VD.astype(dtype), 'vocab', None)


def _head_gradient(x_BLD, d_BLV, is_shared, dtype):
  """x' d, [D, V]; where devices share the tokens, of those that each holds, [row shards, time shards, D, V]. Summed
  over devices here, all of it would go over the network once a chunk."""
  tokens = by_device if is_shared else lambda a: a.reshape(-1, a.shape[-1])
  # Not d' x, [V, D]: XLA on CPU would transpose d, the larger, and take the slower of its two products.
  x, d = barrier(jnp.swapaxes(tokens(x_BLD), -1, -2)), tokens(d_BLV)
  n = d.ndim - 2
  shards = tuple(range(n))
  dw = jax.lax.dot_general(x, d, (((n + 1,), (n,)), (shards, shards)), preferred_element_type=dtype)
  return constrain(dw, *('batch', 'seq')[:n], None, 'vocab')


def _losses(logits_BLV, targets_BL, z_loss):
  """Per token 'total', 'nll', 'correct', 'z'; and exp(logits - max), its sum, the log-sum-exp, the target's logit."""
  top_BL = logits_BLV.max(-1)
  exp_BLV = jnp.exp(logits_BLV - top_BL[..., None])
  exp_sum_BL = exp_BLV.sum(-1)
  lse_BL = jnp.log(exp_sum_BL) + top_BL
  target_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], -1)[..., 0]
  nll_BL, z_BL = lse_BL - target_BL, jnp.square(lse_BL)
  per_token = {'total': nll_BL + z_loss * z_BL, 'nll': nll_BL, 'z': z_BL,
               'correct': (target_BL >= top_BL).astype(nll_BL.dtype)}
  return per_token, (exp_BLV, exp_sum_BL, lse_BL, target_BL)


def _subtract_one_hot(d_BLV, targets_BL, ones_BL, kernels):
  B, L, V = d_BLV.shape
  if kernels == 'cpu':
    return barrier(d_BLV.at[jnp.arange(B)[:, None], jnp.arange(L)[None], targets_BL].add(-ones_BL))
  return d_BLV - jnp.where(jnp.arange(V) == targets_BL[..., None], ones_BL[..., None], 0)


def _zero_sums(x_BTD, per_row):
  sums = {name: jnp.zeros((), accum_dtype(x_BTD)) for name in ('total', 'nll', 'z', 'correct')}
  return {**sums, 'nll_B': constrain(jnp.zeros(len(x_BTD), accum_dtype(x_BTD)), 'batch')} if per_row else sums


def _add(sums, per_token, weights_BL):
  """The sums with those of a chunk."""
  added = jax.tree.map(lambda s, t: s + jnp.sum(t * weights_BL), {name: sums[name] for name in per_token}, per_token)
  return {**added, 'nll_B': sums['nll_B'] + (per_token['nll'] * weights_BL).sum(1)} if 'nll_B' in sums else added
