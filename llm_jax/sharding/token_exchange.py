"""Tokens sent to the devices that have their experts, and the results sent back.

A device sends one copy of a token for each expert that the token chose, in rounds of buffers of one size: as many
rounds as the fullest queue of any device takes. So no token is dropped, and no buffer is larger than a round's,
whatever the router chose; an uneven choice takes more rounds. The backward pass computes each round again, because
what all of them would keep is too much.

Shapes: D model width, X chosen experts, M tokens (B x T), A assignments of tokens to experts (M x X).
"""
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.sharding.rounds import room_in_round


class Queues(NamedTuple):
  """The copies of a device's tokens, in line for the devices that they are sent to.

  order_A: copies, by the device that they go to; those that go to none come last.
  place_A: of each copy in its device's line.   device_A: the number of devices for none.
  starts, sizes: of each device's line, within `order_A`.
  """
  order_A: jax.Array
  place_A: jax.Array
  device_A: jax.Array
  starts: jax.Array
  sizes: jax.Array


class Round(NamedTuple):
  """What is sent in a round, `room` rows for each device.

  copies: the copy in each row; A for none.   row_A: the row of each copy; the number of rows for none.
  """
  copies: jax.Array
  row_A: jax.Array


def exchange(expert_ffn: Callable, x_MD: jax.Array, expert_MX: jax.Array, weight_MX: jax.Array,
             weights: Mapping[str, jax.Array], axis: str) -> jax.Array:
  """The weighted sum of the outputs of each token's experts, float32 [M, D]; under `shard_map`.

  The outputs are sent back in x's dtype.

  Args:
    expert_ffn, weights: see `experts.run_on_own_experts`; `weights` are those of this device's experts.
    expert_MX: index among the experts of all devices.
    axis: of the mesh, which shares the experts out.
  """
  own_experts = next(iter(weights.values())).shape[0]
  devices = jax.lax.axis_size(axis)
  expert_A = expert_MX.reshape(-1)
  queues = line_up(expert_A, own_experts, devices)
  room = room_in_round(len(expert_A), own_experts, devices)
  # The same number on all devices, so that all of them take part in every exchange.
  everywhere = tuple(name for name, size in jax.sharding.get_abstract_mesh().shape.items() if size > 1)
  rounds = jax.lax.pmax(-(-queues.sizes.max() // room), everywhere)
  swap = functools.partial(jax.lax.all_to_all, axis_name=axis, split_axis=0, concat_axis=0, tiled=True)

  def one_round(number, inputs, fixed):
    x_MD, weight_A1, weights = inputs
    expert_A, queues = fixed
    chosen = round_of(queues, number, room)
    sent_x = swap(copies_of(x_MD, chosen))
    sent_weight = swap(copies_of(weight_A1, chosen)[:, 0])
    sent_expert = swap(expert_A.at[chosen.copies].get(mode='fill', fill_value=own_experts * devices))
    own_expert = sent_expert - jax.lax.axis_index(axis) * own_experts
    y = expert_ffn(sent_x[None], own_expert[None, :, None], sent_weight[None, :, None], weights)[0]
    return sum_of_copies(swap(y.astype(x_MD.dtype)), chosen, len(x_MD))

  return sum_of_rounds(one_round, rounds, (x_MD, weight_MX.reshape(-1, 1), weights), (expert_A, queues))


def line_up(expert_A: jax.Array, own_experts: int, devices: int) -> Queues:
  is_chosen_A = (expert_A >= 0) & (expert_A < own_experts * devices)
  device_A = jnp.where(is_chosen_A, expert_A // own_experts, devices)
  order_A = jnp.argsort(device_A, stable=True)
  sizes = (device_A[:, None] == jnp.arange(devices)).sum(0, dtype=jnp.int32)
  starts = jnp.cumsum(sizes) - sizes
  place_A = jnp.argsort(order_A) - starts.at[device_A].get(mode='fill', fill_value=0)
  return Queues(order_A, place_A, device_A, starts, sizes)


def round_of(queues: Queues, number: jax.Array, room: int) -> Round:
  """The copies of round `number`: up to `room` for each device."""
  places = number * room + jnp.broadcast_to(jnp.arange(room), (len(queues.sizes), room))
  no_copy = len(queues.order_A)
  is_taken = places < queues.sizes[:, None]
  copies = queues.order_A.at[queues.starts[:, None] + places].get(mode='clip')
  place_A = queues.place_A - number * room
  no_row = places.size
  is_sent_A = (place_A >= 0) & (place_A < room) & (queues.device_A < len(queues.sizes))
  return Round(jnp.where(is_taken, copies, no_copy).reshape(-1),
               jnp.where(is_sent_A, queues.device_A * room + place_A, no_row))


# ---------------------------------------------------------------------------------------------- rows
@jax.custom_vjp
def copies_of(x: jax.Array, chosen: Round) -> jax.Array:
  """The rows of a round, zeros where there is no copy.   x: two axes, a row for each token or for each copy.

  `copies_of` and `sum_of_copies` are each other's transposes, and both are gathers; automatic differentiation would
  make scatters.
  """
  copies = len(chosen.row_A) // len(x)
  return x.at[chosen.copies // copies].get(mode='fill', fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def sum_of_copies(y: jax.Array, chosen: Round, tokens: int) -> jax.Array:
  """For each token the sum of its copies' rows, in float32 or higher. With as many tokens as copies, each one's row."""
  rows = y.at[chosen.row_A.reshape(tokens, -1)].get(mode='fill', fill_value=0)
  return rows.sum(1, dtype=jnp.promote_types(y.dtype, jnp.float32))


def _copies_forward(x, chosen):
  return copies_of(x, chosen), (chosen, x[:, :0])


def _copies_backward(saved, d):
  chosen, empty = saved
  total: Any = sum_of_copies(d, chosen, len(empty))  # Any as in modules/kernels/context_attention.py
  return total.astype(empty.dtype), None


def _sum_forward(y, chosen, tokens):
  return sum_of_copies(y, chosen, tokens), (chosen, y[:, :0])


def _sum_backward(tokens, saved, d):
  del tokens
  chosen, empty = saved
  return copies_of(d.astype(empty.dtype), chosen), None


copies_of.defvjp(_copies_forward, _copies_backward)
sum_of_copies.defvjp(_sum_forward, _sum_backward)


# ---------------------------------------------------------------------------------------------- rounds
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_of_rounds(one_round: Callable, rounds: jax.Array, inputs: Any, fixed: Any) -> Any:
  """The sum of one_round(number, inputs, fixed) over the numbers below `rounds`, which is known when the program runs.

  inputs: arrays with gradients, which are summed in float32 or higher.   fixed: arrays of integers.
  """
  result = jax.eval_shape(one_round, rounds, inputs, fixed)

  def add(number, total):
    return jax.tree.map(jnp.add, total, one_round(number, inputs, fixed))

  return jax.lax.fori_loop(0, rounds, add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result))


def _rounds_forward(one_round, rounds, inputs, fixed):
  return sum_of_rounds(one_round, rounds, inputs, fixed), (rounds, inputs, fixed)


def _rounds_backward(one_round, saved, d):
  rounds, inputs, fixed = saved

  def add(number, total):
    _, transpose = jax.vjp(lambda inputs: one_round(number, inputs, fixed), inputs)
    return jax.tree.map(lambda sum, part: sum + part, total, transpose(d)[0])

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), inputs)
  total = jax.lax.fori_loop(0, rounds, add, zeros)
  return None, jax.tree.map(lambda leaf, gradient: gradient.astype(leaf.dtype), inputs, total), None


sum_of_rounds.defvjp(_rounds_forward, _rounds_backward)
