"""A training step of parameters in bfloat16, beside one in float32 from the same numbers."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.optimizers import Adafactor, AdamW, Lion, Muon
from llm_jax.config.run import Mesh
from llm_jax.config.schedules import Constant
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.rounding import widened
from llm_jax.optim.schedules import make_schedule
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import in_host_memory, replicated, state_shardings
from llm_jax.train.build import store_param
from llm_jax.train.compile import with_optimizer_on_host
from llm_jax.train.state import TrainState
from llm_jax.train.step import accumulate, make_train_step
from tests.checkpoints.checkpoint_states import make_metadata
from tests.train.test_step import batch, initial_params, objective


def rounded_params():
  return paths.map_named(lambda path, leaf: store_param(path, jnp.asarray(leaf), 'bfloat16'), initial_params())


def make_state(params, optimizer, ema=False):
  return jax.jit(lambda params: TrainState.create(params, optimizer, ema))(params)


@functools.cache
def steps(kind, seed=0):
  """Two steps from the rounded numbers, in bfloat16 or float32."""
  params = rounded_params()
  params = params if kind == 'bfloat16' else widened(params)
  optimizer = make_optimizer(AdamW(), params)
  step = jax.jit(make_train_step(objective(), optimizer, make_schedule(Constant(1e-3), 10), seed=seed, ema=0.9))
  found = [make_state(params, optimizer, ema=True)]
  for i in range(2):
    found.append(step(found[-1], None, batch(i))[0])
  return jax.device_get(found)


def test_an_update_is_one_of_the_two_neighbours_of_that_in_float32():
  """Gradients differ by what bfloat16 rounds off them, which moves AdamW's first update by little."""
  before, after, _ = steps('bfloat16')
  exact = dict(paths.leaves(steps('float32')[1].params))
  for path, leaf in paths.leaves(after.params):
    assert leaf.dtype == (jnp.bfloat16 if path.endswith('/w') else np.float32), path
    wide, moved = leaf.astype(np.float32), exact[path]
    distance_of_neighbours = 2.0**-7 * np.abs(moved) + 1e-6
    near = np.abs(wide - moved) <= distance_of_neighbours + 1e-4  # a tenth of the update, where a sign may differ
    assert near.mean() > 0.99, path
  moves = [np.mean(a.astype(np.float32) - b.astype(np.float32)) for (_, a), (_, b) in
           zip(paths.leaves(after.params), paths.leaves(before.params), strict=True)]
  assert any(moves)


def test_moments_are_those_of_float32_gradients_and_the_average_is_float32():
  (_, _, after), (_, _, exact) = steps('bfloat16'), steps('float32')
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(after.ema)} == {'float32'}
  for (path, leaf), (_, wanted) in zip(paths.leaves(after.opt_state), paths.leaves(exact.opt_state), strict=True):
    assert leaf.dtype == wanted.dtype, path
    assert np.linalg.norm(leaf - wanted) <= 0.02 * np.linalg.norm(wanted), path


def test_the_same_seed_rounds_the_same_and_another_one_differently():
  again = steps.__wrapped__('bfloat16')[1].params
  first, other = steps('bfloat16')[1].params, steps('bfloat16', seed=1)[1].params
  assert all((a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))
  assert (first['embedding']['w'] != other['embedding']['w']).any()


def test_what_is_saved_and_read_goes_on_bitwise(tmp_path):
  """With moments in 8 bits, in the memory of the host, and a moving average; the checkpoint is read onto them."""
  params = rounded_params()
  optimizer = make_optimizer(AdamW(moments='int8'), params)
  mesh = make_mesh(Mesh(), jax.devices()[:1])
  shapes = jax.eval_shape(lambda: TrainState.create(params, optimizer, ema=True))
  shardings = state_shardings(shapes, shapes.params, mesh)
  shardings = dataclasses.replace(shardings, opt_state=in_host_memory(shardings.opt_state))
  step = make_train_step(objective(), optimizer, make_schedule(Constant(1e-3), 10), ema=0.9)
  step = with_optimizer_on_host(step, shardings.opt_state)
  step = jax.jit(step, out_shardings=(shardings, replicated(mesh)))
  state = jax.device_put(TrainState.create(params, optimizer, ema=True), shardings)
  for i in range(2):
    state, _ = step(state, None, batch(i))
  with CheckpointStore(tmp_path) as store:
    store.save(2, state, make_metadata())
  abstract = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                          shapes, shardings)
  restored = CheckpointStore(tmp_path).at(2).restore(abstract)
  assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(restored.opt_state)} == {'pinned_host'}
  untouched, _ = step(state, None, batch(2))
  resumed, _ = step(restored, None, batch(2))
  for (path, a), (_, b) in zip(paths.leaves(untouched), paths.leaves(resumed), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
def test_gradients_of_microbatches_are_summed_in_float32(kernels):
  params = rounded_params()
  run = jax.jit(functools.partial(accumulate, objective(kernels)), static_argnums=4)
  pieces, _ = run(params, None, batch(), jax.random.key(0), 8)
  exact, _ = run(widened(params), None, batch(), jax.random.key(0), 8)
  for (path, ours), (_, wanted) in zip(paths.leaves(pieces), paths.leaves(exact), strict=True):
    assert ours.dtype == jnp.float32, path
    assert np.linalg.norm(ours - wanted) <= 0.004 * np.linalg.norm(wanted), path  # a bfloat16 of each piece


@pytest.mark.parametrize('optimizer', [Adafactor(), Lion(moments='int8'), Muon(moments='bfloat16'),
                                       AdamW(moments='int8')], ids=lambda each: type(each).__name__)
def test_all_optimizers_learn_in_bfloat16(optimizer):
  params = rounded_params()
  made = make_optimizer(optimizer, params)
  rate = {Lion: 1e-3, Adafactor: 0.3}.get(type(optimizer), 1e-2)  # Lion's updates are larger, Adafactor's relative
  step = jax.jit(make_train_step(objective(), made, make_schedule(Constant(rate), 20), clip_norm=1.0))
  state = make_state(params, made)
  losses = []
  for _ in range(12):
    state, metrics = step(state, None, batch())
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.3, losses
