"""Causal attention over packed documents."""
import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import resolve
from llm_jax.modules.kernels.ordering import not_before

BLOCK = 128  # queries a step on CPU
MASKED = -1e30  # finite, so that exp() of it is exactly 0 and no difference of two is NaN


def causal_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None = None,
                     *, kernels: str | None = None, window: int | None = None, soft_cap: float | None = None,
                     scale: float | None = None, dropout_rate: float = 0.0, dropout_rng: jax.Array | None = None
                     ) -> jax.Array:
  """softmax(q k' / sqrt(K)) v over the earlier positions of the same segment (Vaswani et al. 2017, section 3.2.1).

  With G < H, query head h reads key head h // (H / G) (grouped-query attention, Ainslie et al. 2023). Scores and
  softmax are float32. A masked position weighs exactly 0, so a document's result does not depend, bit by bit, on its
  neighbours in the row.

  Args:
    q_BTHK: queries.
    k_BSGK: keys, S = T.
    v_BSGK: values.
    segment_ids_BT: int32, the document of each position; None means one document a row.
    kernels: 'xla' is `jax.nn.dot_product_attention`; 'cpu' skips what the causal mask hides, in blocks of queries.
    dropout_rate: share of the attention weights set to 0 (the rest scaled up), only with `dropout_rng`.
    dropout_rng: key of the dropout.

  Returns:
    [B, T, H, K] in q's dtype.
  """
  if dropout_rng is not None and dropout_rate > 0:
    return _dropout_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, dropout_rate, dropout_rng)
  if resolve(kernels) == 'cpu':
    return _blocked(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT)
  same_B1TS = None if segment_ids_BT is None else _same_segment(segment_ids_BT, segment_ids_BT)[:, None]
  return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=same_B1TS, is_causal=True)


def _same_segment(rows_BT, columns_BS):
  return rows_BT[:, :, None] == columns_BS[:, None, :]


def _dropout_attention(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, rate, rng):
  """The weights have to exist to be dropped: no blocks here."""
  B, T, H, K = q_BTHK.shape
  G = k_BSGK.shape[2]
  q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)
  s_BGRTS = jnp.einsum('BTGRK,BSGK->BGRTS', q_BTGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
  mask = jnp.tril(jnp.ones((T, T), bool))[None]
  if segment_ids_BT is not None:
    mask = mask & _same_segment(segment_ids_BT, segment_ids_BT)
  p_BGRTS = jax.nn.softmax(jnp.where(mask[:, None, None], s_BGRTS, MASKED), axis=-1)
  kept = jax.random.bernoulli(rng, 1 - rate, p_BGRTS.shape)
  p_BGRTS = jnp.where(kept, p_BGRTS / (1 - rate), 0).astype(v_BSGK.dtype)
  return jnp.einsum('BGRTS,BSGK->BTGRK', p_BGRTS, v_BSGK).reshape(B, T, H, K)


# For XLA on CPU. A block of queries sees the keys up to its own end: nearly half of the scores are never computed.
# Scores stand transposed, [keys, queries], so that softmax reduces over rows and vectorises along queries. The R=H/G
# heads of a group are laid beside each other as queries: one product a key head, and no key or value is repeated.
# The derivative recomputes the weights from the saved log-sum-exp (Dao et al. 2022, appendix B.2).


def _dot(a, b, contract, dtype=None):
  """Batched over the two first axes; contracts axis `contract[0]` of a with axis `contract[1]` of b."""
  return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((0, 1), (0, 1))), preferred_element_type=dtype)


def _wide(x):
  """float32, or float64 where the input is."""
  return jnp.promote_types(x.dtype, jnp.float32)


def _blocks(length):
  return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _queries(x_BTHK, G):
  """[B, T, H, K] -> [B, G, R T, K]; `_tokens` leads back, from [B, G, K, R T]."""
  B, T, H, K = x_BTHK.shape
  return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, K)


def _tokens(x_BGKQ, T):
  B, G, K, Q = x_BGKQ.shape
  return x_BGKQ.reshape(B, G, K, Q // T, T).transpose(0, 4, 1, 3, 2).reshape(B, T, Q // T * G, K)


def _scores(q_BGQK, k_BGSK, segment_ids_BT, block):
  """Masked float32 scores [B, G, S, R, t] of one block of t queries against the keys up to its end.

  R and t stay apart: one axis of R t would index the mask by divisions, and XLA would not vectorise the exponential.
  """
  B, G, S, K = k_BGSK.shape
  s_BGSRT = (_dot(k_BGSK, q_BGQK, (3, 3), _wide(q_BGQK)) * K**-0.5).reshape(B, G, S, -1, block.stop - block.start)
  keys, queries = jnp.arange(S), jnp.arange(block.start, block.stop)
  mask = (keys[:, None] <= queries)[None]
  if segment_ids_BT is not None:
    mask = mask & _same_segment(segment_ids_BT[:, :S], segment_ids_BT[:, block])
  return jnp.where(mask[:, None, :, None], s_BGSRT, MASKED)


def _flat(x_BGSRT):
  return x_BGSRT.reshape(*x_BGSRT.shape[:3], -1)


@jax.custom_vjp
def _blocked(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT):
  return _blocked_forward(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT)[0]


def _blocked_forward(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT):
  T, G = q_BTHK.shape[1], k_BSGK.shape[2]
  k_BGSK, v_BGSK, v_BGKS = k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2), v_BSGK.transpose(0, 2, 3, 1)
  out, lse = [], []
  for block in _blocks(T):
    keys = slice(0, block.stop)
    s = _scores(_queries(q_BTHK[:, block], G), k_BGSK[:, :, keys], segment_ids_BT, block)
    top = s.max(2, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(2, keepdims=True)
    p = (p / total).astype(v_BGSK.dtype)
    lse.append(top + jnp.log(total))
    # Keys and values lie with S last here: Eigen, which takes the other order, is half as fast as YNNPACK.
    out.append(_tokens(_dot(v_BGKS[:, :, :, keys], _flat(p), (3, 2)), block.stop - block.start))
  out_BTHK = jnp.concatenate(out, 1)
  return out_BTHK, (q_BTHK, k_BGSK, v_BGSK, segment_ids_BT, out_BTHK, lse)


def _blocked_backward(saved, d_BTHK):
  q_BTHK, k_BGSK, v_BGSK, segment_ids_BT, out_BTHK, lse = saved
  T, K, G, dtype = q_BTHK.shape[1], q_BTHK.shape[3], k_BGSK.shape[1], q_BTHK.dtype
  delta_BTH1 = (d_BTHK.astype(_wide(d_BTHK)) * out_BTHK).sum(-1, keepdims=True)
  k_BGKS = k_BGSK.swapaxes(2, 3)
  dq, dk, dv = [], jnp.zeros_like(k_BGSK), jnp.zeros_like(v_BGSK)
  for block, lse_BG1RT in zip(_blocks(T), lse, strict=True):
    keys = slice(0, block.stop)
    k, v, d = k_BGSK[:, :, keys], v_BGSK[:, :, keys], _queries(d_BTHK[:, block], G)
    q = _queries(not_before(d_BTHK[:, block], q_BTHK[:, block]), G)
    p = jnp.exp(_scores(q, k, segment_ids_BT, block) - lse_BG1RT)
    delta = _queries(delta_BTH1[:, block], G).reshape(lse_BG1RT.shape)
    ds = p * (_dot(v, d, (3, 3), _wide(d)).reshape(p.shape) - delta) * K**-0.5
    p, ds = _flat(p.astype(dtype)), _flat(ds.astype(dtype))
    dv = dv.at[:, :, keys].add(_dot(p, d, (3, 2)))
    dk = dk.at[:, :, keys].add(_dot(ds, q, (3, 2)))
    dq.append(_tokens(_dot(k_BGKS[:, :, :, keys], ds, (3, 2)), block.stop - block.start))
  return jnp.concatenate(dq, 1), dk.swapaxes(1, 2), dv.swapaxes(1, 2), None


_blocked.defvjp(_blocked_forward, _blocked_backward)
