"""Causal attention of rows that are split over devices in time, each holding two chunks (`sharding/context_split.py`),
or of long rows that one device holds.

'gather': every device gathers all keys and values, and computes what its queries see (Llama 3, section 3.3.2). They are
gathered again in the backward pass, and their gradients scattered.
'ring': keys and values go round, one device further at each of n steps (Liu et al. 2023, "Ring Attention", section 3);
a device never holds more than its own and its neighbour's. In the backward pass their gradients travel with them.

Both take a block of keys at a time with a running maximum and sum (Dao et al. 2022, "FlashAttention", algorithm 1), and
skip the blocks that the causal mask and the window hide.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.modules.kernels import wide
from llm_jax.modules.kernels.on_devices import on_each_device
from llm_jax.modules.kernels.scores import MASKED, Form, same_segment
from llm_jax.sharding.context_split import ContextSplit

BLOCK = 512  # keys a step, at most


class Queries(NamedTuple):
  """Consecutive tokens of each row that ask, the first of them the row's token `start`."""
  start: jax.Array
  q_BGRTK: jax.Array
  segments_BT: jax.Array | None


class Keys(NamedTuple):
  """Consecutive tokens of each row that are seen."""
  start: jax.Array
  k_BSGK: jax.Array
  v_BSGK: jax.Array
  segments_BS: jax.Array | None


def context_attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segment_ids_BT: jax.Array | None,
                      form: Form, split: ContextSplit) -> jax.Array:
  """`causal_attention` of rows in the order of `split.arrange`, as the result is; each device computes its queries."""
  def attend(q_BTHK, k_BSGK, v_BSGK, segment_ids_BT):
    B, T, H, K = q_BTHK.shape
    q_BGRTK = q_BTHK.reshape(B, T, k_BSGK.shape[2], -1, K).transpose(0, 2, 3, 1, 4)
    y_BGRTV = _attend(q_BGRTK, k_BSGK, v_BSGK, segment_ids_BT, form, split)
    return y_BGRTV.transpose(0, 3, 1, 2, 4).reshape(B, T, H, -1)

  return on_each_device(attend, q_BTHK, k_BSGK, v_BSGK, segment_ids_BT, split)


# ------------------------------------------------------------------------------------------- on one device
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q_BGRTK, k_BSGK, v_BSGK, segments_BT, form, split):
  return _forward(q_BGRTK, k_BSGK, v_BSGK, segments_BT, form, split)[0]


def _forward(q_BGRTK, k_BSGK, v_BSGK, segments_BT, form, split):
  queries = _chunks_of_queries(split, q_BGRTK, segments_BT)

  def see(states, stretches):
    for keys in stretches:
      states = tuple(_softmax_over(form, asking, keys, state) for asking, state in zip(queries, states, strict=True))
    return states

  states = tuple(_nothing_seen(asking, v_BSGK) for asking in queries)
  if split.form == 'gather':
    states = see(states, (_gathered(split, k_BSGK, v_BSGK, segments_BT),))
  else:
    def turn(carry, step):
      states, held = carry
      sent = _pass_on(split, held)  # while this device reads them
      return (see(states, _chunks_of_keys(split, held, step)), sent), None

    carry = states, (k_BSGK, v_BSGK, segments_BT)
    (states, held), _ = jax.lax.scan(turn, carry, jnp.arange(split.devices - 1))
    states = see(states, _chunks_of_keys(split, held, split.devices - 1))

  out = jnp.concatenate([total / weight[..., None] for _, weight, total in states], axis=3).astype(q_BGRTK.dtype)
  lse = [top + jnp.log(weight) for top, weight, _ in states]
  return out, (q_BGRTK, k_BSGK, v_BSGK, segments_BT, out, lse)


def _backward(form, split, saved, d_BGRTV):
  q_BGRTK, k_BSGK, v_BSGK, segments_BT, out, lse = saved
  queries = _chunks_of_queries(split, q_BGRTK, segments_BT)
  delta = jnp.split((d_BGRTV.astype(wide(out)) * out).sum(-1), 2, axis=-1)
  asked = tuple(zip(queries, jnp.split(d_BGRTV, 2, axis=3), delta, lse, strict=True))

  def see(dqs, dkv, keys):
    for i, (asking, d, delta, lse) in enumerate(asked):
      dq, *dkv = _gradients_over(form, asking, keys, d, delta, lse, (dqs[i], *dkv))
      dqs = dqs[:i] + (dq,) + dqs[i + 1:]
    return dqs, tuple(dkv)

  zeros = lambda x: jnp.zeros(x.shape, wide(x))
  dqs = tuple(zeros(asking.q_BGRTK) for asking in queries)
  if split.form == 'gather':
    keys = _gathered(split, k_BSGK, v_BSGK, segments_BT)
    dqs, dkv = see(dqs, (zeros(keys.k_BSGK), zeros(keys.v_BSGK)), keys)
    dk, dv = (_scattered(split, d) for d in dkv)
  else:
    def turn(carry, step):
      dqs, held, gradients = carry
      sent, halves = _pass_on(split, held), []
      for i, keys in enumerate(_chunks_of_keys(split, held, step)):
        dqs, half = see(dqs, tuple(jnp.split(d, 2, axis=1)[i] for d in gradients), keys)
        halves.append(half)
      gradients = tuple(jnp.concatenate(pair, axis=1) for pair in zip(*halves, strict=True))
      return (dqs, sent, _pass_on(split, gradients)), None

    carry = dqs, (k_BSGK, v_BSGK, segments_BT), (zeros(k_BSGK), zeros(v_BSGK))
    dqs, _, (dk, dv) = jax.lax.scan(turn, carry, jnp.arange(split.devices))[0]  # n steps bring them home
  dq = jnp.concatenate(dqs, axis=3)
  return dq.astype(q_BGRTK.dtype), dk.astype(k_BSGK.dtype), dv.astype(v_BSGK.dtype), None


_attend.defvjp(_forward, _backward)


# ------------------------------------------------------------------------------------------- some queries, some keys
def _nothing_seen(queries, v_BSGK):
  """The largest score so far, the sum of exp(score - largest), and that of exp(score - largest) v."""
  shape, dtype = queries.q_BGRTK.shape[:-1], wide(v_BSGK)
  return jnp.full(shape, MASKED, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, v_BSGK.shape[-1]), dtype)


def _softmax_over(form: Form, queries: Queries, keys: Keys, state):
  def step(state, start, block, seen):
    top, weight, total = state
    s_BGRTS = jnp.where(seen, form.scores(_products(queries.q_BGRTK, block.k_BSGK)), MASKED)
    new_top = jnp.maximum(top, s_BGRTS.max(-1))
    # Where nothing was seen yet, what was summed up is undone: exp(MASKED - score) is exactly 0.
    shrunk, p = jnp.exp(top - new_top), jnp.exp(s_BGRTS - new_top[..., None])
    more = jnp.einsum('BGRTS,BSGK->BGRTK', p.astype(block.v_BSGK.dtype), block.v_BSGK,
                      preferred_element_type=total.dtype)
    return new_top, weight * shrunk + p.sum(-1), total * shrunk[..., None] + more

  return _over_blocks(form, queries, keys, step, state)


def _gradients_over(form: Form, queries: Queries, keys: Keys, d_BGRTV, delta, lse, gradients):
  """Adds to the gradients of these queries, keys and values; the weights are computed again (Dao et al. 2022,
  appendix B.2)."""
  dtype, q_BGRTK = d_BGRTV.dtype, queries.q_BGRTK

  def step(gradients, start, block, seen):
    dq, dk, dv = gradients
    s = form.scores(_products(q_BGRTK, block.k_BSGK))
    p = jnp.exp(jnp.where(seen, s, MASKED) - lse[..., None])
    ds = (p * (_products(d_BGRTV, block.v_BSGK) - delta[..., None]) * form.slopes(s)).astype(dtype)
    dq += jnp.einsum('BGRTS,BSGK->BGRTK', ds, block.k_BSGK, preferred_element_type=dq.dtype)
    dk = _add_at(dk, start, jnp.einsum('BGRTS,BGRTK->BSGK', ds, q_BGRTK, preferred_element_type=dk.dtype))
    dv = _add_at(dv, start, jnp.einsum('BGRTS,BGRTK->BSGK', p.astype(dtype), d_BGRTV, preferred_element_type=dv.dtype))
    return dq, dk, dv

  return _over_blocks(form, queries, keys, step, gradients)


def _over_blocks(form: Form, queries: Queries, keys: Keys, step: Callable, carry: Any) -> Any:
  """step(carry, start, block, seen) for each block of keys, `start` in `keys`, that some query sees."""
  T, S = queries.q_BGRTK.shape[3], keys.k_BSGK.shape[1]
  # Two blocks or more: of a single one XLA would compute the products before the loop, whether they are seen or not.
  size = next(size for size in range(min(max(S // 2, 1), BLOCK), 0, -1) if S % size == 0)
  offset = queries.start - keys.start
  first = 0 if form.window is None else jnp.maximum(offset - form.window + 1, 0) // size
  stop = -(-jnp.clip(offset + T, 0, S) // size)
  times = queries.start + jnp.arange(T)[:, None]

  def one(i, carry):
    cut = lambda x: None if x is None else jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
    block = Keys(keys.start + i * size, *map(cut, keys[1:]))
    seen = form.sees(times, block.start + jnp.arange(size))[None]
    if block.segments_BS is not None:
      seen = seen & same_segment(queries.segments_BT, block.segments_BS)
    return step(carry, i * size, block, seen[:, None, None])

  return jax.lax.fori_loop(first, stop, one, carry)


def _products(a_BGRTK, b_BSGK):
  return jnp.einsum('BGRTK,BSGK->BGRTS', a_BGRTK, b_BSGK, preferred_element_type=wide(a_BGRTK))


def _add_at(x, start, more):
  old = jax.lax.dynamic_slice_in_dim(x, start, more.shape[1], axis=1)
  return jax.lax.dynamic_update_slice_in_dim(x, old + more, start, axis=1)


# ------------------------------------------------------------------------------------------- which, from where
def _chunks_of_queries(split, q_BGRTK, segments_BT):
  segments = (None, None) if segments_BT is None else jnp.split(segments_BT, 2, axis=1)
  starts = split.starts(q_BGRTK.shape[3] // 2)
  return tuple(map(Queries, starts, jnp.split(q_BGRTK, 2, axis=3), segments))


def _chunks_of_keys(split, held, step):
  """The chunks of keys that a device holds at a step of the ring."""
  owner = (jax.lax.axis_index(split.axis) - step) % split.devices
  halves = ((None, None) if x is None else jnp.split(x, 2, axis=1) for x in held)
  return tuple(map(Keys, split.starts_of(owner, held[0].shape[1] // 2), *halves))


def _pass_on(split, tree):
  around = [(device, (device + 1) % split.devices) for device in range(split.devices)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, split.axis, around), tree)


def _gathered(split, *held):
  """All keys in the order of time."""
  if split.devices == 1:
    return Keys(jnp.int32(0), *held)

  def gather(x):
    heads, tails = (jax.lax.all_gather(half, split.axis, axis=1) for half in jnp.split(x, 2, axis=1))
    chunks = jnp.concatenate([heads, jnp.flip(tails, axis=1)], axis=1)
    return chunks.reshape(x.shape[0], -1, *x.shape[2:])
  return Keys(jnp.int32(0), *(None if x is None else gather(x) for x in held))


def _scattered(split, d_BSGK):
  """The sums over devices of the gradients of all keys, to the devices that hold them."""
  if split.devices == 1:
    return d_BSGK
  chunks = d_BSGK.reshape(d_BSGK.shape[0], 2 * split.devices, -1, *d_BSGK.shape[2:])
  heads, tails = jnp.split(chunks, 2, axis=1)
  sums = (jax.lax.psum_scatter(half, split.axis, scatter_dimension=1) for half in (heads, jnp.flip(tails, axis=1)))
  return jnp.concatenate(list(sums), axis=1)
