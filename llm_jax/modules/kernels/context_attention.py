"""Causal attention of rows that are split over devices in time (context parallelism), or of long rows on one device.

Where rows are split, each device holds two chunks of every row (`sharding/context_split.py`). There are two methods:

'gather': every device gathers all keys and values, and computes the attention of its own queries (Llama 3, section
3.3.2). The backward pass gathers them again, and scatters the sums of their gradients.
'ring': at each of n steps every device passes keys and values on to the next device (Liu et al. 2023, "Ring Attention",
section 3). A device never holds more than its own and its neighbour's. In the backward pass the gradients of the keys
and values travel with them.

Both read one block of keys at a time with a running maximum and sum (Dao et al. 2022, "FlashAttention", algorithm 1),
and skip the blocks that the causal mask and the window hide.

Shapes: B batch, T time, S time of the keys, H query heads, G key/value heads, J query heads per key/value head,
  K head size.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import accum_dtype
from llm_jax.modules.kernels.on_devices import on_each_device
from llm_jax.modules.kernels.scores import MASKED, Scoring, same_segment
from llm_jax.sharding.context_split import ContextSplit

BLOCK = 512  # the most keys read at a time


class Queries(NamedTuple):
  """Queries of consecutive tokens of each row; `start` is the index of the first of them in the row."""
  start: jax.Array
  q_BGJTK: jax.Array
  segments_BT: jax.Array | None


class Keys(NamedTuple):
  """Keys and values of consecutive tokens of each row, from token `start` on."""
  start: jax.Array
  k_BSGK: jax.Array
  v_BSGK: jax.Array
  segments_BS: jax.Array | None


def context_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None,
                      sinks_H: jax.Array | None, scoring: Scoring, split: ContextSplit) -> jax.Array:
  """`causal_attention` of rows in the order of `split.arrange`; the result is in that order too."""
  def attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H):
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BGJTK = q_BTHK.reshape(B, T, G, -1, K).transpose(0, 2, 3, 1, 4)
    sinks_GJ1 = None if sinks_H is None else sinks_H.reshape(G, -1, 1).astype(accum_dtype(q_BTHK))
    # Any, because the type of what a custom_vjp with options returns is lost on the way.
    y_BGJTK: Any = _attend(q_BGJTK, k_BSGK, v_BSGK, segment_ids_BT, sinks_GJ1, scoring, split)
    return y_BGJTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, -1)

  return on_each_device(attend, q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, sinks_H, split)


# ------------------------------------------------------------------------------------------- on one device
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_BGJTK, k_BSGK, v_BSGK, segments_BT, sinks_GJ1, scoring, split):
  return _forward(q_BGJTK, k_BSGK, v_BSGK, segments_BT, sinks_GJ1, scoring, split)[0]


def _forward(q_BGJTK, k_BSGK, v_BSGK, segments_BT, sinks_GJ1, scoring, split):
  queries = _chunks_of_queries(split, q_BGJTK, segments_BT)

  def attend_to(states, chunks_of_keys):
    for keys in chunks_of_keys:
      states = tuple(_softmax_over(scoring, chunk, keys, state) for chunk, state in zip(queries, states, strict=True))
    return states

  states = tuple(_initial_state(chunk, v_BSGK, sinks_GJ1) for chunk in queries)
  if split.method == 'gather':
    states = attend_to(states, (_gathered(split, k_BSGK, v_BSGK, segments_BT),))
  else:
    def turn(carry, step):
      states, held = carry
      sent = _pass_on(split, held)  # the transfer overlaps with the attention below
      return (attend_to(states, _chunks_of_keys(split, held, step)), sent), None

    carry = states, (k_BSGK, v_BSGK, segments_BT)
    (states, held), _ = jax.lax.scan(turn, carry, jnp.arange(split.devices - 1))
    states = attend_to(states, _chunks_of_keys(split, held, split.devices - 1))

  out = jnp.concatenate([total / weight[..., None] for _, weight, total in states], axis=3).astype(q_BGJTK.dtype)
  lse = [top + jnp.log(weight) for top, weight, _ in states]
  return out, (q_BGJTK, k_BSGK, v_BSGK, segments_BT, sinks_GJ1, out, lse)


def _backward(scoring, split, saved, d_BGJTK):
  q_BGJTK, k_BSGK, v_BSGK, segments_BT, sinks_GJ1, out, lse = saved
  queries = _chunks_of_queries(split, q_BGJTK, segments_BT)
  delta = jnp.split((d_BGJTK.astype(accum_dtype(out)) * out).sum(-1), 2, axis=-1)
  chunks = tuple(zip(queries, jnp.split(d_BGJTK, 2, axis=3), delta, lse, strict=True))

  def add_gradients(dqs, dkv, keys):
    """The sums with the gradients of all own queries by these keys."""
    for i, (chunk, d, delta, lse) in enumerate(chunks):
      dq, *dkv = _gradients_over(scoring, chunk, keys, d, delta, lse, (dqs[i], *dkv))
      dqs = dqs[:i] + (dq,) + dqs[i + 1:]
    return dqs, tuple(dkv)

  zeros = lambda x: jnp.zeros(x.shape, accum_dtype(x))
  dqs = tuple(zeros(chunk.q_BGJTK) for chunk in queries)
  if split.method == 'gather':
    keys = _gathered(split, k_BSGK, v_BSGK, segments_BT)
    dqs, dkv = add_gradients(dqs, (zeros(keys.k_BSGK), zeros(keys.v_BSGK)), keys)
    dk, dv = (_scattered(split, d) for d in dkv)
  else:
    def turn(carry, step):
      dqs, held, gradients = carry
      sent = _pass_on(split, held)
      halves = []
      for i, keys in enumerate(_chunks_of_keys(split, held, step)):
        dqs, half = add_gradients(dqs, tuple(jnp.split(d, 2, axis=1)[i] for d in gradients), keys)
        halves.append(half)
      gradients = tuple(jnp.concatenate(pair, axis=1) for pair in zip(*halves, strict=True))
      return (dqs, sent, _pass_on(split, gradients)), None

    carry = dqs, (k_BSGK, v_BSGK, segments_BT), (zeros(k_BSGK), zeros(v_BSGK))
    # After n steps the gradients are back at the device that holds their keys.
    (dqs, _, (dk, dv)), _ = jax.lax.scan(turn, carry, jnp.arange(split.devices))
  dq = jnp.concatenate(dqs, axis=3)
  dsinks_GJ1 = None
  if sinks_GJ1 is not None:  # the value of a sink is 0
    shares = (jnp.exp(sinks_GJ1 - lse) * delta for _, _, delta, lse in chunks)
    dsinks_GJ1 = -sum(share.sum((0, 3))[..., None] for share in shares)
  return dq.astype(q_BGJTK.dtype), dk.astype(k_BSGK.dtype), dv.astype(v_BSGK.dtype), None, dsinks_GJ1


_attend.defvjp(_forward, _backward)


# ------------------------------------------------------------------------------------- one chunk of queries, some keys
def _initial_state(queries, v_BSGK, sinks_GJ1):
  """The largest score so far, the sum of exp(score - largest), and the sum of exp(score - largest) v. Before all keys
  there are only the sinks, whose value is 0."""
  shape, dtype = queries.q_BGJTK.shape[:-1], accum_dtype(v_BSGK)
  total = jnp.zeros((*shape, v_BSGK.shape[-1]), dtype)
  if sinks_GJ1 is None:
    return jnp.full(shape, MASKED, dtype), jnp.zeros(shape, dtype), total
  return jnp.broadcast_to(sinks_GJ1.astype(dtype), shape), jnp.ones(shape, dtype), total


def _softmax_over(scoring: Scoring, queries: Queries, keys: Keys, state):
  """The state after these keys too."""
  def step(state, start, block, visible):
    del start
    top, weight, total = state
    s_BGJTS = jnp.where(visible, scoring.scores(_products(queries.q_BGJTK, block.k_BSGK)), MASKED)
    new_top = jnp.maximum(top, s_BGJTS.max(-1))
    # The sums of queries that had seen nothing but masked keys become 0, because exp(MASKED - score) is exactly 0.
    shrunk = jnp.exp(top - new_top)
    p = jnp.exp(s_BGJTS - new_top[..., None])
    more = jnp.einsum('BGJTS,BSGK->BGJTK', p.astype(block.v_BSGK.dtype), block.v_BSGK,
                      preferred_element_type=total.dtype)
    return new_top, weight * shrunk + p.sum(-1), total * shrunk[..., None] + more

  return _over_blocks(scoring, queries, keys, step, state)


def _gradients_over(scoring: Scoring, queries: Queries, keys: Keys, d_BGJTK, delta, lse, gradients):
  """`gradients` plus those of these queries, keys and values. The attention weights are computed again from the
  log-sum-exp (Dao et al. 2022, appendix B.2)."""
  dtype, q_BGJTK = d_BGJTK.dtype, queries.q_BGJTK

  def step(gradients, start, block, visible):
    dq, dk, dv = gradients
    s = scoring.scores(_products(q_BGJTK, block.k_BSGK))
    p = jnp.exp(jnp.where(visible, s, MASKED) - lse[..., None])
    dp = _products(d_BGJTK, block.v_BSGK)
    ds = (p * (dp - delta[..., None]) * scoring.derivative(s)).astype(dtype)
    dq += jnp.einsum('BGJTS,BSGK->BGJTK', ds, block.k_BSGK, preferred_element_type=dq.dtype)
    dk = _add_at(dk, start, jnp.einsum('BGJTS,BGJTK->BSGK', ds, q_BGJTK, preferred_element_type=dk.dtype))
    dv = _add_at(dv, start, jnp.einsum('BGJTS,BGJTK->BSGK', p.astype(dtype), d_BGJTK, preferred_element_type=dv.dtype))
    return dq, dk, dv

  return _over_blocks(scoring, queries, keys, step, gradients)


def _over_blocks(scoring: Scoring, queries: Queries, keys: Keys, step: Callable, carry: Any) -> Any:
  """Calls carry = step(carry, start, block, visible) for each block of keys that some query may see.

  `start` is the block's first index in `keys`; `visible` is bool [B or 1, 1, 1, T, block].
  """
  T, S = queries.q_BGJTK.shape[3], keys.k_BSGK.shape[1]
  # At least two blocks: XLA would move the products of a single block out of the loop and compute them even if hidden.
  largest = min(max(S // 2, 1), BLOCK)
  size = next(size for size in range(largest, 0, -1) if S % size == 0)
  offset = queries.start - keys.start
  first = 0 if scoring.window is None else jnp.maximum(offset - scoring.window + 1, 0) // size
  stop = -(-jnp.clip(offset + T, 0, S) // size)
  times = queries.start + jnp.arange(T)[:, None]

  def one(i, carry):
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
    segments_BS = None if keys.segments_BS is None else cut(keys.segments_BS)
    block = Keys(keys.start + i * size, cut(keys.k_BSGK), cut(keys.v_BSGK), segments_BS)
    visible = scoring.is_visible(times, block.start + jnp.arange(size))[None]
    if queries.segments_BT is not None and block.segments_BS is not None:
      visible = visible & same_segment(queries.segments_BT, block.segments_BS)
    return step(carry, i * size, block, visible[:, None, None])

  return jax.lax.fori_loop(first, stop, one, carry)


def _products(a_BGJTK, b_BSGK):
  return jnp.einsum('BGJTK,BSGK->BGJTS', a_BGJTK, b_BSGK, preferred_element_type=accum_dtype(a_BGJTK))


def _add_at(x, start, more):
  old = jax.lax.dynamic_slice_in_dim(x, start, more.shape[1], axis=1)
  return jax.lax.dynamic_update_slice_in_dim(x, old + more, start, axis=1)


# ------------------------------------------------------------------------------------------- chunks and transfers
def _chunks_of_queries(split, q_BGJTK, segments_BT):
  """The two chunks of queries of this device."""
  segments = (None, None) if segments_BT is None else jnp.split(segments_BT, 2, axis=1)
  starts = split.starts(q_BGJTK.shape[3] // 2)
  return tuple(map(Queries, starts, jnp.split(q_BGJTK, 2, axis=3), segments))


def _chunks_of_keys(split, held, step):
  """The two chunks of keys that this device holds at a step of the ring."""
  owner = (jax.lax.axis_index(split.axis) - step) % split.devices
  halves = ((None, None) if x is None else jnp.split(x, 2, axis=1) for x in held)
  return tuple(map(Keys, split.starts_of(owner, held[0].shape[1] // 2), *halves))


def _pass_on(split, tree):
  """Sends the arrays to the next device, and returns those of the previous one."""
  around = [(device, (device + 1) % split.devices) for device in range(split.devices)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, split.axis, around), tree)


def _gathered(split, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array | None) -> Keys:
  """The keys and values of all devices, in the order of time."""
  if split.devices == 1:
    return Keys(jnp.int32(0), k_BSGK, v_BSGK, segments_BS)

  def gather(x):
    heads, tails = (jax.lax.all_gather(half, split.axis, axis=1) for half in jnp.split(x, 2, axis=1))
    chunks = jnp.concatenate([heads, jnp.flip(tails, axis=1)], axis=1)
    return chunks.reshape(x.shape[0], -1, *x.shape[2:])

  all_segments_BS = None if segments_BS is None else gather(segments_BS)
  return Keys(jnp.int32(0), gather(k_BSGK), gather(v_BSGK), all_segments_BS)


def _scattered(split, d_BSGK):
  """Sums the gradients of all keys over the devices; each device gets the sums of the keys that it holds."""
  if split.devices == 1:
    return d_BSGK
  chunks = d_BSGK.reshape(d_BSGK.shape[0], 2 * split.devices, -1, *d_BSGK.shape[2:])
  heads, tails = jnp.split(chunks, 2, axis=1)
  sums = (jax.lax.psum_scatter(half, split.axis, scatter_dimension=1) for half in (heads, jnp.flip(tails, axis=1)))
  return jnp.concatenate(list(sums), axis=1)
