"""Causal attention for XLA on CPU, and its derivative.

A block of queries sees the keys up to its own end, from where the window of its first query begins: nearly half of the
scores are never computed, and with a window shorter than the text nearly all.
Scores stand transposed, [keys, queries], so that softmax reduces over rows and vectorises along queries. The R=H/G
heads of a group are laid beside each other as queries: one product a key head, and no key or value is repeated.
The derivative recomputes the weights from the saved log-sum-exp (Dao et al. 2022, appendix B.2).
"""
import functools

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import wide
from llm_jax.modules.kernels.ordering import not_before
from llm_jax.modules.kernels.scores import MASKED, Form, same_segment

BLOCK = 128  # queries a step


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None,
                      form: Form) -> jax.Array:
  """`causal_attention` with the score in one argument."""
  return _forward(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form)[0]


def _forward(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, form):
  G = k_BSGK.shape[2]
  k_BGSK, v_BGSK, v_BGKS = k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2), v_BSGK.transpose(0, 2, 3, 1)
  # Written block by block into one array: of a concatenation with two readers XLA makes two copies, and keeps both.
  out_BTHK, lse = jnp.zeros((*q_BTHK.shape[:3], v_BSGK.shape[-1]), v_BSGK.dtype), []
  for block, keys in _blocks(q_BTHK.shape[1], form):
    s = _scores(_queries(q_BTHK[:, block], G), k_BGSK[:, :, keys], segment_ids_BT, block, keys, form)[0]
    top = s.max(2, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(2, keepdims=True)
    lse.append(top + jnp.log(total))
    # Keys and values lie with S last here: Eigen, which takes the other order, is half as fast as YNNPACK.
    out_BGKQ = _dot(v_BGKS[:, :, :, keys], _flat(p.astype(v_BGSK.dtype)), (3, 2), p.dtype) / _flat(total)
    out_BTHK = out_BTHK.at[:, block].set(_tokens(out_BGKQ.astype(v_BGSK.dtype), block))
  return out_BTHK, (q_BTHK, k_BGSK, v_BGSK, segment_ids_BT, out_BTHK, lse)


def _backward(form, saved, d_BTHK):
  q_BTHK, k_BGSK, v_BGSK, segment_ids_BT, out_BTHK, lse = saved
  G, dtype = k_BGSK.shape[1], q_BTHK.dtype
  delta_BTH1 = (d_BTHK.astype(wide(d_BTHK)) * out_BTHK).sum(-1, keepdims=True)
  # Else their slices and transposes below would be made in the forward pass, and kept until here.
  k_BGSK, v_BGSK = (not_before(d_BTHK, x) for x in (k_BGSK, v_BGSK))
  k_BGKS = k_BGSK.swapaxes(2, 3)
  dq, dk, dv = [], jnp.zeros_like(k_BGSK, wide(d_BTHK)), jnp.zeros_like(v_BGSK, wide(d_BTHK))
  for (block, keys), lse_BG1RT in zip(_blocks(q_BTHK.shape[1], form), lse, strict=True):
    k, v, d = k_BGSK[:, :, keys], v_BGSK[:, :, keys], _queries(d_BTHK[:, block], G)
    q = _queries(not_before(d_BTHK, q_BTHK[:, block]), G)
    s, slopes = _scores(q, k, segment_ids_BT, block, keys, form)
    p = jnp.exp(s - lse_BG1RT)
    delta = _queries(delta_BTH1[:, block], G).reshape(lse_BG1RT.shape)
    ds = p * (_dot(v, d, (3, 3), wide(d)).reshape(p.shape) - delta) * slopes
    p, ds = _flat(p.astype(dtype)), _flat(ds.astype(dtype))
    dv = dv.at[:, :, keys].add(_dot(p, d, (3, 2), dv.dtype))
    dk = dk.at[:, :, keys].add(_dot(ds, q, (3, 2), dk.dtype))
    dq.append(_tokens(_dot(k_BGKS[:, :, :, keys], ds, (3, 2)), block))
  return jnp.concatenate(dq, 1), *(x.astype(dtype).swapaxes(1, 2) for x in (dk, dv)), None


blocked_attention.defvjp(_forward, _backward)


def _blocks(length, form):
  """Each block of queries, with the keys that it sees."""
  queries = [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
  return [(block, slice(form.first_key(block.start), block.stop)) for block in queries]


def _scores(q_BGQK, k_BGSK, segment_ids_BT, block, keys, form):
  """Masked float32 scores [B, G, S, R, t] of a block of t queries against its keys; and their slopes.

  R and t stay apart: one axis of R t would index the mask by divisions, and XLA would not vectorise the exponential.
  """
  products = _dot(k_BGSK, q_BGQK, (3, 3), wide(q_BGQK))
  s_BGSRT = form.scores(products.reshape(*products.shape[:3], -1, block.stop - block.start))
  mask = form.sees(jnp.arange(block.start, block.stop), jnp.arange(keys.start, keys.stop)[:, None])[None]
  if segment_ids_BT is not None:
    mask = mask & same_segment(segment_ids_BT[:, keys], segment_ids_BT[:, block])
  return jnp.where(mask[:, None, :, None], s_BGSRT, MASKED), form.slopes(s_BGSRT)


def _dot(a, b, contract, dtype=None):
  """Batched over the two first axes; contracts axis `contract[0]` of a with axis `contract[1]` of b."""
  return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((0, 1), (0, 1))), preferred_element_type=dtype)


def _queries(x_BTHK, G):
  """[B, T, H, K] -> [B, G, R T, K]; `_tokens` leads back, from [B, G, K, R T]."""
  B, T, H, K = x_BTHK.shape
  return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, K)


def _tokens(x_BGKQ, block):
  B, G, K, Q = x_BGKQ.shape
  T = block.stop - block.start
  return x_BGKQ.reshape(B, G, K, Q // T, T).transpose(0, 4, 1, 3, 2).reshape(B, T, Q // T * G, K)


def _flat(x_BGSRT):
  return x_BGSRT.reshape(*x_BGSRT.shape[:3], -1)
