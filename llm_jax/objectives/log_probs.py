"""Log-probabilities of given tokens, for objectives that are not sums over tokens.

Shapes: B batch, T time, L chunk of time, D model width, V vocabulary.
"""
import functools
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch
from llm_jax.modules.kernels import resolve
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.chunks import chunk_length, join, split
from llm_jax.objectives.cross_entropy import chunked_cross_entropy, head_logits
from llm_jax.objectives.loss import Params


def sequence_log_probs(model: Transformer, params: Params, batch: LanguageModelBatch) -> jax.Array:
  """sum over a row's targets of weight x log p(target), without dropout, float32 [batch]."""
  x_BTD: Any = model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids, method='features')
  log_probs_BT = token_log_probs(x_BTD, model.head_weight(params), batch.targets,
                                 soft_cap=model.config.logit_soft_cap, kernels=model.execution.kernel_set)
  return (log_probs_BT * batch.weights).sum(-1)


def answer_log_probs(model: Transformer, params: Params, batch: LanguageModelBatch, temperature: float = 1.0
                     ) -> jax.Array:
  """log p(target) under softmax(logits / temperature), without dropout, float32 [batch, time]; 0 where a target has no
  weight."""
  x_BTD: Any = model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids, method='features')
  w_VD, soft_cap = tempered_head(model, params, temperature)
  log_probs_BT = token_log_probs(x_BTD, w_VD, batch.targets, soft_cap=soft_cap, kernels=model.execution.kernel_set)
  return jnp.where(batch.weights > 0, log_probs_BT, 0)


def tempered_head(model: Transformer, params: Params, temperature: float) -> tuple[jax.Array, float | None]:
  """The head's weight and the soft cap of the logits, both divided by a temperature: then so are the logits."""
  cap = model.config.logit_soft_cap
  w_VD = model.head_weight(params).astype(jnp.float32)  # it may be stored in bfloat16, which would round it once more
  return w_VD / temperature, None if cap is None else cap / temperature


def log_probs_and_entropies(x_BTD: jax.Array, w_VD: jax.Array, targets_BT: jax.Array, *, soft_cap: float | None = None,
                            kernels: str | None = None) -> tuple[jax.Array, jax.Array]:
  """`token_log_probs`, and the entropies of softmax(x w') in nats, of the same logits: float32 [batch, time], without
  gradient."""
  kernels = resolve(kernels)
  B, T = targets_BT.shape
  w = w_VD.astype(x_BTD.dtype)

  def one(inputs):
    x_BLD, targets_BL = inputs
    logits_BLV = head_logits(x_BLD, w, soft_cap)
    log_z_BL = jax.nn.logsumexp(logits_BLV, -1)
    chosen_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], -1)[..., 0]
    mean_BL = (jnp.exp(logits_BLV - log_z_BL[..., None]) * logits_BLV).sum(-1)
    return chosen_BL - log_z_BL, log_z_BL - mean_BL

  log_probs, entropies = jax.lax.map(one, split(chunk_length(B, T, w_VD.shape[0], kernels), x_BTD, targets_BT))
  return join(log_probs, T), join(entropies, T)


def token_log_probs(x_BTD: jax.Array, w_VD: jax.Array, targets_BT: jax.Array, *, soft_cap: float | None = None,
                    chunk: int | None = None, kernels: str | None = None) -> jax.Array:
  """log softmax(x w')[target], float32 [batch, time], a chunk of positions at a time; the backward pass computes a
  chunk's logits again. Arguments as in `chunked_cross_entropy`."""
  kernels = resolve(kernels)
  B, T = targets_BT.shape
  chunk = chunk_length(B, T, w_VD.shape[0], kernels) if chunk is None else chunk
  return _log_probs(x_BTD, w_VD, targets_BT, soft_cap, chunk, kernels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _log_probs(x_BTD, w_VD, targets_BT, soft_cap, chunk, kernels):
  w = w_VD.astype(x_BTD.dtype)

  def one(inputs):
    x_BLD, targets_BL = inputs
    logits_BLV = head_logits(x_BLD, w, soft_cap)
    chosen_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], -1)[..., 0]
    return chosen_BL - jax.nn.logsumexp(logits_BLV, -1)

  return join(jax.lax.map(one, split(chunk, x_BTD, targets_BT)), targets_BT.shape[1])


def _forward(x_BTD, w_VD, targets_BT, soft_cap, chunk, kernels):
  return _log_probs(x_BTD, w_VD, targets_BT, soft_cap, chunk, kernels), (x_BTD, w_VD, targets_BT)


def _backward(soft_cap, chunk, kernels, saved, g_BT):
  """Of sum g log p, which is the cross-entropy with weights -g."""
  x_BTD, w_VD, targets_BT = saved
  loss = lambda x, w: chunked_cross_entropy(x, w, targets_BT, -g_BT, 0.0, chunk, kernels, soft_cap)[0]
  return *jax.grad(loss, (0, 1))(x_BTD, w_VD), None


_log_probs.defvjp(_forward, _backward)
