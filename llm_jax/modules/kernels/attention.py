"""Causal attention over packed documents.

Shapes: B batch, T time, S time of the keys, H query heads, G key/value heads, J query heads per key/value head,
  K head size.
"""
import math

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import accum_dtype, resolve
from llm_jax.modules.kernels.blocked_attention import blocked_attention
from llm_jax.modules.kernels.context_attention import context_attention
from llm_jax.modules.kernels.flash_attention import flash_attention
from llm_jax.modules.kernels.scores import MASKED, Scoring, pad_time, same_segment, softmax
from llm_jax.sharding.context_split import WHOLE, ContextSplit
from llm_jax.sharding.rules import split_counts

BLOCK = 128  # rows whose keys are read in blocks are padded to a multiple of this
MOST_SCORES = 2**28  # bytes of scores that a device may hold at once in one layer with 'xla'


def causal_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None = None,
                     *, kernels: str | None = None, window: int | None = None, soft_cap: float | None = None,
                     scale: float | None = None, sinks_H: jax.Array | None = None, dropout_rate: float = 0.0,
                     dropout_rng: jax.Array | None = None, split: ContextSplit = WHOLE) -> jax.Array:
  """softmax(scale q k') v over the earlier positions of the same segment (Vaswani et al. 2017, section 3.2.1).

  With G < H, query head h reads key head h // (H / G) (grouped-query attention, Ainslie et al. 2023). Scores and
  softmax are float32. A masked position weighs exactly 0, so a document's result does not depend, bit by bit, on its
  neighbours in the row.

  Args:
    q_BTHK: queries.
    k_BSGK: keys, S = T.
    v_BSGK: values; their head size may be another than that of queries and keys.
    segment_ids_BT: int32, the document of each position; None means one document a row.
    kernels: 'xla' calls `jax.nn.dot_product_attention` where it supports the arguments, else it computes the formula
      directly; from MOST_SCORES on it reads the keys in blocks, unless weights are dropped. 'cpu' computes blocks of
      queries and skips the keys that the causal mask and the window hide: O(T window) work instead of O(T^2). 'tpu' is
      such a kernel for TPU, which pads T to a multiple of 128.
    window: the query at position p sees p - window + 1 .. p (Child et al. 2019; Mistral 7B, section 2); None means all.
    soft_cap: scores become soft_cap tanh(score / soft_cap) before the mask (Gemma 2, section 2).
    scale: None means 1 / sqrt(K).
    sinks_H: a score of each query head that is in the softmax beside those of the keys, and has no value.
    dropout_rate: share of the attention weights set to 0 (the rest are scaled up); needs `dropout_rng`.
    dropout_rng: random key of the dropout.
    split: how the rows are split over devices, which fixes the order of all inputs; without dropout.

  Returns:
    [B, T, H, the values' head size] in q's dtype.
  """
  B, T, H, K = q_BTHK.shape
  kernels = resolve(kernels)
  scoring = Scoring(K**-0.5 if scale is None else scale, soft_cap, window)
  if split.devices > 1:
    return context_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring, split)
  if dropout_rng is not None and dropout_rate > 0:
    return _plain_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring, dropout_rate, dropout_rng)
  if kernels == 'cpu':
    return blocked_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring)
  if kernels == 'tpu':
    return flash_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring)
  devices = math.prod(split_counts(q_BTHK.shape, 'batch', None, 'heads', None))
  score_bytes = 4 * B * H * T * T // devices  # of one device
  if score_bytes >= MOST_SCORES:
    padded = pad_time(BLOCK, (q_BTHK, k_BSGK, v_BSGK, segment_ids_BT))
    return context_attention(*padded, sinks_H, scoring, WHOLE)[:, :T]
  if soft_cap is not None or sinks_H is not None or v_BSGK.shape[-1] != K:
    return _plain_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring)
  same_B1TS = None if segment_ids_BT is None else same_segment(segment_ids_BT, segment_ids_BT)[:, None]
  local_window = None if window is None else (window - 1, 0)  # jax does not count the query itself
  return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=same_B1TS, is_causal=True, scale=scoring.scale,
                                      local_window_size=local_window)


def _plain_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring, dropout_rate=0.0, dropout_rng=None):
  """The formula with all scores in memory at once; the only version that can drop attention weights."""
  B, T, H, K = q_BTHK.shape
  G = k_BSGK.shape[2]
  q_BTGJK = q_BTHK.reshape(B, T, G, H // G, K)
  products_BGJTS = jnp.einsum('BTGJK,BSGK->BGJTS', q_BTGJK, k_BSGK, preferred_element_type=accum_dtype(q_BTHK))
  s_BGJTS = scoring.scores(products_BGJTS)
  positions = jnp.arange(T)
  mask = scoring.is_visible(positions[:, None], positions)[None]
  if segment_ids_BT is not None:
    mask = mask & same_segment(segment_ids_BT, segment_ids_BT)
  sinks = None if sinks_H is None else sinks_H.reshape(G, H // G, 1, 1).astype(s_BGJTS.dtype)
  p_BGJTS = softmax(jnp.where(mask[:, None, None], s_BGJTS, MASKED), sinks)
  if dropout_rng is not None:
    kept = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, p_BGJTS.shape)
    p_BGJTS = jnp.where(kept, p_BGJTS / (1 - dropout_rate), 0)
  y_BTGJK = jnp.einsum('BGJTS,BSGK->BTGJK', p_BGJTS.astype(v_BSGK.dtype), v_BSGK)
  return y_BTGJK.reshape(B, T, H, -1)
