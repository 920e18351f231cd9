"""Log-probabilities of given tokens, for objectives that are not sums over tokens."""
import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch
from llm_jax.modules.kernels import resolve
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.chunks import chunk_length, join, split
from llm_jax.objectives.loss import Params


def sequence_log_probs(model: Transformer, params: Params, batch: LanguageModelBatch) -> jax.Array:
  """sum over a row's targets of weight x log p(target), without dropout, float32 [batch]."""
  x_BTD = model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids, method='features')
  log_probs_BT = token_log_probs(x_BTD, model.head_weight(params), batch.targets,
                                 soft_cap=model.config.logit_soft_cap, kernels=model.execution.kernel_set)
  return (log_probs_BT * batch.weights).sum(-1)


def token_log_probs(x_BTD: jax.Array, w_VD: jax.Array, targets_BT: jax.Array, *, soft_cap: float | None = None,
                    chunk: int | None = None, kernels: str | None = None) -> jax.Array:
  """log softmax(x w')[target], float32 [batch, time], a chunk of positions at a time; the backward pass computes a
  chunk's logits again. Arguments as in `chunked_cross_entropy`."""
  B, T = targets_BT.shape
  chunk = chunk_length(B, T, w_VD.shape[0], resolve(kernels)) if chunk is None else chunk

  @jax.checkpoint
  def one(inputs):
    x_BCD, targets_BC = inputs
    w = w_VD.astype(x_BCD.dtype)  # here, so that the gradients of the chunks are summed in w's own dtype
    logits_BCV = jnp.einsum('BCD,VD->BCV', x_BCD, w, preferred_element_type=jnp.float32)
    if soft_cap is not None:
      logits_BCV = soft_cap * jnp.tanh(logits_BCV / soft_cap)
    chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], -1)[..., 0]
    return chosen_BC - jax.nn.logsumexp(logits_BCV, -1)

  return join(jax.lax.map(one, split(chunk, x_BTD, targets_BT)), T)
