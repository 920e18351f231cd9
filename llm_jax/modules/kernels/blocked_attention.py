"""Causal attention for XLA on CPU, and its derivative.

A block of queries reads the keys from where the window of its first query begins to its own end. So nearly half of the
scores are never computed, and nearly all with a window much shorter than the text.
Scores are stored transposed, [keys, queries]: softmax then reduces over rows and vectorises along the queries. The J
query heads of a key head are laid side by side as more queries: one product per key head, and no repeated keys.
The backward pass computes the weights again from the saved log-sum-exp (Dao et al. 2022, appendix B.2).

Shapes: B batch, T time, S time of the keys, H query heads, G key/value heads, J query heads per key/value head,
  Q queries of one key/value head (J x T), K head size.
"""
import functools

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import accum_dtype
from llm_jax.modules.kernels.ordering import not_before
from llm_jax.modules.kernels.scores import MASKED, Scoring, same_segment

BLOCK = 128  # queries computed at a time


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def blocked_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None,
                      sinks_H: jax.Array | None, scoring: Scoring) -> jax.Array:
  """`causal_attention` with the score's arguments in `scoring`."""
  return _forward(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring)[0]


def _forward(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, scoring):
  B, T, H, _ = q_BTHK.shape
  G = k_BSGK.shape[2]
  sinks_G1J1 = _sinks(sinks_H, G, accum_dtype(q_BTHK))
  k_BGSK = k_BSGK.swapaxes(1, 2)
  v_BGSK = v_BSGK.swapaxes(1, 2)
  v_BGKS = v_BSGK.transpose(0, 2, 3, 1)
  # The blocks are written into one array, because XLA makes and keeps two copies of a concatenation with two readers.
  out_BTHK = jnp.zeros((B, T, H, v_BSGK.shape[-1]), v_BSGK.dtype)
  lse = []
  for block, keys in _blocks(T, scoring):
    s, _ = _scores(_queries(q_BTHK[:, block], G), k_BGSK[:, :, keys], segment_ids_BT, block, keys, scoring)
    top = s.max(2, keepdims=True)
    if sinks_G1J1 is not None:
      top = jnp.maximum(top, sinks_G1J1)
    p = jnp.exp(s - top)
    total = p.sum(2, keepdims=True)
    if sinks_G1J1 is not None:
      total += jnp.exp(sinks_G1J1 - top)
    lse.append(top + jnp.log(total))
    # Keys and values have S last here: XLA then calls YNNPACK, which is twice as fast as Eigen, used for S first.
    out_BGKQ = _dot(v_BGKS[:, :, :, keys], _flat(p.astype(v_BGSK.dtype)), (3, 2), p.dtype) / _flat(total)
    out_BTHK = out_BTHK.at[:, block].set(_tokens(out_BGKQ.astype(v_BGSK.dtype), block))
  return out_BTHK, (q_BTHK, k_BGSK, v_BGSK, segment_ids_BT, sinks_H, out_BTHK, lse)


def _backward(scoring, saved, d_BTHK):
  q_BTHK, k_BGSK, v_BGSK, segment_ids_BT, sinks_H, out_BTHK, lse = saved
  G = k_BGSK.shape[1]
  dtype, sum_dtype = q_BTHK.dtype, accum_dtype(d_BTHK)
  delta_BTH1 = (d_BTHK.astype(sum_dtype) * out_BTHK).sum(-1, keepdims=True)
  # Without this XLA would make the slices and transposes of k and v in the forward pass, and keep them until here.
  k_BGSK = not_before(d_BTHK, k_BGSK)
  v_BGSK = not_before(d_BTHK, v_BGSK)
  k_BGKS = k_BGSK.swapaxes(2, 3)
  dq = []
  dk = jnp.zeros_like(k_BGSK, sum_dtype)
  dv = jnp.zeros_like(v_BGSK, sum_dtype)
  sinks_G1J1 = _sinks(sinks_H, G, sum_dtype)
  dsinks = None if sinks_G1J1 is None else jnp.zeros_like(sinks_G1J1)
  for (block, keys), lse_BG1JT in zip(_blocks(q_BTHK.shape[1], scoring), lse, strict=True):
    k, v = k_BGSK[:, :, keys], v_BGSK[:, :, keys]
    d = _queries(d_BTHK[:, block], G)
    q = _queries(not_before(d_BTHK, q_BTHK[:, block]), G)
    s, derivative = _scores(q, k, segment_ids_BT, block, keys, scoring)
    p = jnp.exp(s - lse_BG1JT)
    delta = _queries(delta_BTH1[:, block], G).reshape(lse_BG1JT.shape)
    dp = _dot(v, d, (3, 3), accum_dtype(d)).reshape(p.shape)
    ds = p * (dp - delta) * derivative
    if dsinks is not None:  # the value of a sink is 0
      dsinks -= (jnp.exp(sinks_G1J1 - lse_BG1JT) * delta).sum((0, 4), keepdims=True)[0]
    p, ds = _flat(p.astype(dtype)), _flat(ds.astype(dtype))
    dv = dv.at[:, :, keys].add(_dot(p, d, (3, 2), dv.dtype))
    dk = dk.at[:, :, keys].add(_dot(ds, q, (3, 2), dk.dtype))
    dq.append(_tokens(_dot(k_BGKS[:, :, :, keys], ds, (3, 2)), block))
  dk, dv = (x.astype(dtype).swapaxes(1, 2) for x in (dk, dv))
  dsinks_H = None if dsinks is None else dsinks.reshape(-1).astype(sinks_H.dtype)
  return jnp.concatenate(dq, 1), dk, dv, None, dsinks_H


blocked_attention.defvjp(_forward, _backward)


def _blocks(length: int, scoring: Scoring) -> list[tuple[slice, slice]]:
  """Each block of queries, and the keys that it reads."""
  blocks = []
  for start in range(0, length, BLOCK):
    stop = min(start + BLOCK, length)
    blocks.append((slice(start, stop), slice(scoring.first_key(start), stop)))
  return blocks


def _scores(q_BGQK, k_BGSK, segment_ids_BT, block, keys, scoring):
  """Masked float32 scores [B, G, S, J, T] of a block of T queries with its keys; and their derivatives by q k'.

  J and T stay two axes: with one axis of J T, XLA would index the mask by divisions and not vectorise the exponential.
  """
  products = _dot(k_BGSK, q_BGQK, (3, 3), accum_dtype(q_BGQK))
  s_BGSJT = scoring.scores(products.reshape(*products.shape[:3], -1, block.stop - block.start))
  mask = scoring.is_visible(jnp.arange(block.start, block.stop), jnp.arange(keys.start, keys.stop)[:, None])[None]
  if segment_ids_BT is not None:
    mask = mask & same_segment(segment_ids_BT[:, keys], segment_ids_BT[:, block])
  return jnp.where(mask[:, None, :, None], s_BGSJT, MASKED), scoring.derivative(s_BGSJT)


def _sinks(sinks_H, G, dtype):
  """[G, 1, J, 1], which broadcasts with the scores."""
  return None if sinks_H is None else sinks_H.reshape(G, 1, -1, 1).astype(dtype)


def _dot(a, b, contract, dtype=None):
  """A product batched over the first two axes; contracts axis `contract[0]` of a with axis `contract[1]` of b."""
  return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((0, 1), (0, 1))), preferred_element_type=dtype)


def _queries(x_BTHK, G):
  """[B, T, H, K] -> [B, G, J T, K]. `_tokens` is the inverse, of [B, G, K, J T]."""
  B, T, H, K = x_BTHK.shape
  x_BGJTK = x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
  return x_BGJTK.reshape(B, G, H // G * T, K)


def _tokens(x_BGKQ, block):
  B, G, K, Q = x_BGKQ.shape
  T = block.stop - block.start
  x_BTGJK = x_BGKQ.reshape(B, G, K, Q // T, T).transpose(0, 4, 1, 3, 2)
  return x_BTGJK.reshape(B, T, Q // T * G, K)


def _flat(x_BGSJT):
  """[B, G, S, J, T] -> [B, G, S, J T]."""
  return x_BGSJT.reshape(*x_BGSJT.shape[:3], -1)
