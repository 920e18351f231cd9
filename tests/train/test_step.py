"""The training step: exact under accumulation and sharding, unmoved by a gradient that is not finite."""
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config import presets
from llm_jax.config.model.architecture import GLU, Attention, Block, MixtureOfExperts, RMSNorm, SoftmaxRouter
from llm_jax.config.objectives import LanguageModel
from llm_jax.config.optimizers import AdamW
from llm_jax.config.run import Mesh
from llm_jax.config.schedules import Cosine
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.loss import Loss
from llm_jax.objectives.protocol import Objective
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding, state_shardings
from llm_jax.train.state import TrainState
from llm_jax.train.step import accumulate, make_train_step
from tests.train.from_the_mean import FromTheMean

VOCAB, ROWS, TIME = 64, 16, 16
CONFIG = presets.llama(32, 2, 8, num_kv_heads=2, d_ff=64, vocab_size=VOCAB, tied_head=True)
SHAPES = jax.eval_shape(Transformer(CONFIG).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
OPTIMIZER = make_optimizer(AdamW(), SHAPES)


def objective(kernels='xla'):
  return LanguageModelObjective(
    Transformer(CONFIG, Execution(kernels=kernels, unroll=False)), LanguageModel(z_loss=1e-4)
  )


@functools.cache
def initial_params():
  """On the host: a donated copy takes nothing away."""
  init = jax.jit(Transformer(CONFIG, Execution(unroll=False)).init)
  return jax.device_get(init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'])


def batch(seed=0):
  """Two documents a row, and masks so ragged that microbatches differ widely in what they count; some rows count
  nothing."""
  random = np.random.default_rng(seed)
  tokens = random.integers(0, VOCAB, (ROWS, TIME + 1)).astype(np.int32)
  weights = (random.random((ROWS, TIME)) < random.random((ROWS, 1)) ** 3).astype(np.float32)
  weights[:3] = 0
  start = random.integers(1, TIME, (ROWS, 1))
  time = np.arange(TIME)[None]
  positions, segments = np.where(time < start, time, time - start), 1 + (time >= start)
  integers = tokens[:, :-1], tokens[:, 1:], positions.astype(np.int32), segments.astype(np.int32)
  return LanguageModelBatch(*integers[:2], weights, *integers[2:])


def assert_close(got, want, tolerance):
  for (path, a), (_, b) in zip(paths.leaves(got), paths.leaves(want), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), path


# ------------------------------------------------------------------------------------------------ accumulation
@functools.cache
def gradients(microbatches):
  run = jax.jit(functools.partial(accumulate, objective()), static_argnums=4)
  grads, loss = run(initial_params(), None, batch(), jax.random.key(0), microbatches)
  return jax.device_get((grads, loss))


@pytest.mark.parametrize('microbatches', (pytest.param(2, marks=pytest.mark.slow), 8))
def test_accumulated_is_the_full_batch(microbatches):
  """On ragged masks: sums over microbatches, divided once."""
  (got, loss), (want, whole) = gradients(microbatches), gradients(1)
  assert loss.weight == whole.weight == batch().weights.sum()
  assert abs(loss.total / loss.weight - whole.total / whole.weight) <= 1e-6
  assert_close(loss.metrics, whole.metrics, 1e-6)
  assert_close(got, want, 1e-6)


@pytest.mark.parametrize('together', (pytest.param(False, marks=pytest.mark.slow), True))
def test_experts_balanced_over_a_step_do_not_see_its_microbatches(together):
  """In scanned and unscanned layers: loss and gradient are those of the whole batch."""
  @functools.cache
  def made(balance_over):
    router = SoftmaxRouter(balance_weight=1.0, layers_together=together, balance_over=balance_over)
    block = Block(Attention(2), MixtureOfExperts(4, 2, GLU(8), router), RMSNorm())
    model = dataclasses.replace(CONFIG, num_layers=3, prefix=(block,), pattern=(block,))
    return Transformer(model, Execution(kernels='xla', unroll=False))

  params = jax.jit(made('step').init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  params = jax.tree.map(lambda p: p * 5, params)  # loads that are far from even

  def gradient(balance_over, microbatches):
    run = functools.partial(accumulate, LanguageModelObjective(made(balance_over)))
    return jax.jit(run, static_argnums=4)(params, None, batch(), jax.random.key(1), microbatches)

  grads, loss = gradient('step', 4)
  whole_grads, whole_loss = gradient('step', 1)
  np.testing.assert_allclose(loss.total, whole_loss.total, rtol=1e-5)
  assert_close(grads, whole_grads, 1e-4)
  np.testing.assert_allclose(gradient('microbatch', 1)[1].total, whole_loss.total, rtol=1e-6)
  assert abs(gradient('microbatch', 4)[1].total / whole_loss.total - 1) > 1e-4


@pytest.mark.parametrize('microbatches', (1, 2, 4))
def test_a_loss_of_a_mean_over_all_rows_is_exact(microbatches):
  rows = np.random.default_rng(0).standard_normal(8).astype(np.float32)
  grads, loss = accumulate(FromTheMean(None, None), {'w': jnp.float32(2)}, None, rows, jax.random.key(0), microbatches)
  x = rows.astype(np.float64)
  error = 2 * x - 2 * x.mean()  # of which the mean has no gradient
  np.testing.assert_allclose(loss.total, np.sum(error ** 2), rtol=1e-6)
  np.testing.assert_allclose(grads['w'], np.sum(2 * error * x), rtol=1e-6)
  assert loss.metrics['own'].weight == 2 * microbatches


# ------------------------------------------------------------------------------------------------ sharding
@functools.cache
def three_steps(mesh_config, microbatches, kernels='xla'):
  """Losses, and the state's leaves on the host. None: one device, no mesh."""
  step = make_train_step(objective(kernels), OPTIMIZER, make_schedule(Cosine(1e-2, warmup=1), 3),
                         microbatches=microbatches, clip_norm=1.0, ema=0.9)
  state = TrainState.create(jax.tree.map(jnp.asarray, initial_params()), OPTIMIZER, ema=True)
  losses = []
  if mesh_config is None:
    run = jax.jit(step, donate_argnums=0)
    for k in range(3):
      state, metrics = run(state, None, batch(k))
      losses.append(metrics['loss'])
  else:
    mesh = make_mesh(mesh_config)
    shardings = state_shardings(state, state.params, mesh)
    with jax.set_mesh(mesh):
      run = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
      state = jax.device_put(state, shardings)
      for k in range(3):
        state, metrics = run(state, None, jax.device_put(batch(k), batch_sharding(mesh)))
        losses.append(metrics['loss'])
  return np.array(losses), jax.device_get(state), state


@pytest.mark.parametrize('mesh, microbatches, kernels', (
  pytest.param(Mesh(data=8), 1, 'xla', marks=pytest.mark.slow),
  pytest.param(Mesh(fsdp=8, data=1), 1, 'xla', marks=pytest.mark.slow),
  (Mesh(tensor=8, data=1), 1, 'xla'),
  pytest.param(Mesh(data=2, fsdp=2, tensor=2), 2, 'xla', marks=pytest.mark.slow),
  (Mesh(data=2, fsdp=4), 2, 'cpu'),
  (Mesh(data=2, fsdp=2, tensor=2), 2, 'cpu'),
  (Mesh(data=2, fsdp=2, context=2), 2, 'xla'),
), ids=str)
def test_eight_devices_are_one(mesh, microbatches, kernels):
  """Three whole steps: losses, parameters and their average; the key/value heads (2) do not divide by tensor=8."""
  losses, state, placed = three_steps(mesh, microbatches, kernels)
  want_losses, want, _ = three_steps(None, 1)
  np.testing.assert_allclose(losses, want_losses, rtol=0, atol=1e-6)
  assert_close(state.params, want.params, 1e-5)
  assert_close(state.ema, want.ema, 1e-5)
  sizes = {path: leaf.size / leaf.addressable_shards[0].data.size for path, leaf in paths.leaves(placed)}
  split = {'embedding/w': mesh.fsdp * mesh.tensor, 'blocks/block_0/feed_forward/up/w': mesh.fsdp * mesh.tensor,
           'blocks/block_0/attention/key/w': mesh.fsdp * (mesh.tensor if mesh.tensor == 2 else 1)}
  for path, parts in split.items():  # the moments and the average too
    places = [name for name in sizes if name.endswith(path)]
    assert len(places) == 4 and all(sizes[name] == parts for name in places)


def test_constraints_are_in_the_program():
  """They vanish silently where the mesh is not set as `constrain` needs it."""
  state = jax.eval_shape(lambda params: TrainState.create(params, OPTIMIZER, ema=False), initial_params())
  step = make_train_step(objective(), OPTIMIZER, make_schedule(Cosine(1e-2), 3))

  def constraints():
    text = jax.jit(lambda *args: step(*args)).lower(state, None, batch()).as_text()
    return len(re.findall(r'sharding_constraint|@Sharding', text))

  assert constraints() == 0
  with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
    assert constraints() >= 10


# ------------------------------------------------------------------------------------------------ the update
def objective_of(function):
  """An objective that is function(params, frozen, batch, rng) -> Loss and nothing more."""
  class OfFunction(Objective):
    def __call__(self, params, frozen, batch, rng, statistics=None):
      return function(params, frozen, batch, rng)
  return OfFunction(None, None)


# A linear model: loss = sum over rows of weight * (w x + b - y)^2. Any objective that returns sums will do.
def quadratic(params, frozen, rows, rng):
  error = rows[:, :3] @ params['w'] + params['b'] - rows[:, 3]
  return Loss(jnp.sum(error ** 2), jnp.float32(len(rows)), {'error': jnp.sum(error)})


def rows(seed=0):
  return np.random.default_rng(seed).standard_normal((8, 4)).astype(np.float32)


def toy_params():
  return {'w': jnp.array([0.5, -1.0, 2.0]), 'b': jnp.array(0.25)}


def toy(optimizer, schedule, **options):
  state = TrainState.create(toy_params(), optimizer, ema=options.get('ema') is not None)
  return jax.jit(make_train_step(objective_of(quadratic), optimizer, schedule, **options), donate_argnums=0), state


def toy_gradient(params, data):
  """In float64."""
  x, y = data[:, :3].astype(np.float64), data[:, 3].astype(np.float64)
  error = x @ params['w'] + params['b'] - y
  return {'w': 2 * x.T @ error / len(data), 'b': 2 * error.mean()}


@pytest.mark.parametrize('clip_norm', (None, 0.7))
def test_update_is_the_schedules_rate_times_the_clipped_gradient(clip_norm):
  schedule = make_schedule(Cosine(0.1, warmup=2), 6)
  step, state = toy(optax.sgd(1.0), schedule, clip_norm=clip_norm)
  want = jax.tree.map(lambda x: np.asarray(x, np.float64), toy_params())
  for k in range(6):
    grad = toy_gradient(want, rows(k))
    norm = np.sqrt(np.sum(grad['w'] ** 2) + grad['b'] ** 2)
    state, metrics = step(state, None, rows(k))
    rate = float(schedule(k)) * (min(1.0, clip_norm / norm) if clip_norm else 1.0)
    want = {name: want[name] - rate * grad[name] for name in want}
    np.testing.assert_allclose(metrics['learning_rate'], schedule(k), rtol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), state.params, want)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
@pytest.mark.parametrize('bad', (np.nan, np.inf, 3e38))
def test_a_step_that_is_not_finite_changes_nothing_but_counters(bad, backend, monkeypatch):
  """NaN, infinity, and an overflow in the sum of squares alone; in the form for CPU, and in that for others."""
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  step, state = toy(make_optimizer(AdamW(), toy_params()), make_schedule(Cosine(0.1), 9), clip_norm=1.0, ema=0.9)
  state, _ = step(state, None, rows())
  before = jax.device_get(state)
  poisoned = rows()
  poisoned[3, 1] = bad
  for k in (1, 2):
    state, metrics = step(state, None, poisoned)
    after = jax.device_get(state)
    assert after.step == 1 + k and after.skipped == k == metrics['skipped'] and not metrics['is_spike']
    for field in ('params', 'opt_state', 'ema'):
      jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(before, field))
  state, metrics = step(state, None, rows(1))
  assert state.skipped == 0 and metrics['skipped'] == 0 and state.step == 4
  assert (np.asarray(state.params['w']) != before.params['w']).all() and np.isfinite(state.params['w']).all()


def test_average_of_parameters():
  """ema = d ema + (1 - d) params, from the first parameters on, against float64."""
  step, state = toy(make_optimizer(AdamW(), toy_params()), make_schedule(Cosine(0.1), 30), ema=0.9)
  want = jax.tree.map(lambda x: np.asarray(x, np.float64), toy_params())
  for k in range(30):
    state, _ = step(state, None, rows(k))
    want = {name: 0.9 * want[name] + 0.1 * np.asarray(state.params[name], np.float64) for name in want}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-7), state.ema, want)
  assert np.abs(np.asarray(state.ema['w']) - state.params['w']).max() > 1e-3


def test_state_is_donated():
  step, state = toy(make_optimizer(AdamW(), toy_params()), make_schedule(Cosine(0.1), 9), ema=0.9)
  new, _ = step(state, None, rows())
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


def test_randomness_is_a_function_of_seed_and_step():
  """The same after a restart in the middle; another at every step, microbatch and seed."""
  def noisy(params, frozen, batch, rng):
    noise = jax.random.normal(rng)
    return Loss(params['w'] * 0 + noise, jnp.float32(1), {})

  def losses(seed, start, steps, microbatches=1):
    state = TrainState.create({'w': jnp.float32(1)}, optax.sgd(1.0), ema=False).replace(step=jnp.int32(start))
    step = jax.jit(
      make_train_step(objective_of(noisy), optax.sgd(1.0), lambda step: 0.0, seed=seed, microbatches=microbatches)
    )
    out = []
    for _ in range(steps):
      state, metrics = step(state, None, np.zeros((2, 1)))
      out.append(float(metrics['loss']))
    return out

  assert losses(0, 0, 4)[2:] == losses(0, 2, 2)
  assert len({*losses(0, 0, 4), *losses(1, 0, 4), *losses(0, 0, 4, microbatches=2)}) == 12


def test_frozen_parameters_are_an_argument():
  """Read by the objective, never changed or donated."""
  def distance(params, frozen, batch, rng):
    return Loss(jnp.sum((params['w'] - frozen.reference['w']) ** 2), jnp.float32(1), {})

  state = TrainState.create({'w': jnp.zeros(3)}, optax.sgd(1.0), ema=False)
  frozen = Frozen(reference={'w': jnp.ones(3)})
  step = jax.jit(make_train_step(objective_of(distance), optax.sgd(1.0), lambda step: 0.25), donate_argnums=0)
  state, metrics = step(state, frozen, None)
  np.testing.assert_array_equal(frozen.reference['w'], 1)
  np.testing.assert_allclose(state.params['w'], 0.5)
  assert metrics['loss'] == 3
