"""Causal attention over packed documents."""
import math

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import resolve, wide
from llm_jax.modules.kernels.blocked_attention import blocked_attention
from llm_jax.modules.kernels.context_attention import context_attention
from llm_jax.modules.kernels.flash_attention import flash_attention
from llm_jax.modules.kernels.scores import MASKED, Form, pad_time, same_segment
from llm_jax.sharding.context_split import WHOLE, ContextSplit
from llm_jax.sharding.rules import split_counts

BLOCK = 128  # of which rows are a multiple that go over blocks of keys
MOST_SCORES = 2**28  # bytes: the scores of a layer that a device holds at once with 'xla'


def causal_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None = None,
                     *, kernels: str | None = None, window: int | None = None, soft_cap: float | None = None,
                     scale: float | None = None, dropout_rate: float = 0.0, dropout_rng: jax.Array | None = None,
                     split: ContextSplit = WHOLE) -> jax.Array:
  """softmax(scale q k') v over the earlier positions of the same segment (Vaswani et al. 2017, section 3.2.1).

  With G < H, query head h reads key head h // (H / G) (grouped-query attention, Ainslie et al. 2023). Scores and
  softmax are float32. A masked position weighs exactly 0, so a document's result does not depend, bit by bit, on its
  neighbours in the row.

  Args:
    q_BTHK: queries.
    k_BSGK: keys, S = T.
    v_BSGK: values; their head size may be another than that of queries and keys.
    segment_ids_BT: int32, the document of each position; None means one document a row.
    kernels: 'xla' is `jax.nn.dot_product_attention` where that can say it, else the formula as it stands; from
      MOST_SCORES on it goes over blocks of keys, as long as no weights are dropped. 'cpu' works in blocks of queries
      and skips what the causal mask and the window hide: cost O(T window), not O(T^2). 'tpu' is such a kernel for TPU,
      which pads T to a multiple of 128.
    window: the query at position p sees p - window + 1 .. p (Child et al. 2019; Mistral 7B, section 2); None means all.
    soft_cap: scores become soft_cap tanh(score / soft_cap) before the mask (Gemma 2, section 2).
    scale: None means 1 / sqrt(K).
    dropout_rate: share of the attention weights set to 0 (the rest scaled up), only with `dropout_rng`.
    dropout_rng: key of the dropout.
    split: the order of all rows, where they are split over devices; without dropout.

  Returns:
    [B, T, H, the values' head size] in q's dtype.
  """
  B, T, H, K = q_BTHK.shape
  form = Form(K**-0.5 if scale is None else scale, soft_cap, window)
  if split.devices > 1:
    return context_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form, split)
  if dropout_rng is not None and dropout_rate > 0:
    return _plain_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form, dropout_rate, dropout_rng)
  if resolve(kernels) == 'cpu':
    return blocked_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form)
  if resolve(kernels) == 'tpu':
    return flash_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form)
  if 4 * B * H * T * T >= MOST_SCORES * math.prod(split_counts(q_BTHK.shape, 'batch', None, 'heads', None)):
    padded = pad_time(BLOCK, q_BTHK, k_BSGK, v_BSGK, segment_ids_BT)
    return context_attention(*padded, form, WHOLE)[:, :T]
  if soft_cap is not None or v_BSGK.shape[-1] != K:
    return _plain_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form)
  same_B1TS = None if segment_ids_BT is None else same_segment(segment_ids_BT, segment_ids_BT)[:, None]
  band = None if window is None else (window - 1, 0)  # there the query itself does not count
  return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=same_B1TS, is_causal=True, scale=form.scale,
                                      local_window_size=band)


def _plain_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form, dropout_rate=0.0, dropout_rng=None):
  """The formula, all scores at once; its weights exist, so they can be dropped."""
  B, T, H, K = q_BTHK.shape
  G = k_BSGK.shape[2]
  q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
  s_BGRTS = form.scores(jnp.einsum('BTGRK,BSGK->BGRTS', q_BTGRK, k_BSGK, preferred_element_type=wide(q_BTHK)))
  positions = jnp.arange(T)
  mask = form.sees(positions[:, None], positions)[None]
  if segment_ids_BT is not None:
    mask = mask & same_segment(segment_ids_BT, segment_ids_BT)
  p_BGRTS = jax.nn.softmax(jnp.where(mask[:, None, None], s_BGRTS, MASKED), axis=-1)
  if dropout_rng is not None:
    kept = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, p_BGRTS.shape)
    p_BGRTS = jnp.where(kept, p_BGRTS / (1 - dropout_rate), 0)
  y_BTGRK = jnp.einsum('BGRTS,BSGK->BTGRK', p_BGRTS.astype(v_BSGK.dtype), v_BSGK)
  return y_BTGRK.reshape(B, T, H, -1)
