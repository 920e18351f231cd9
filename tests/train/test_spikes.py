"""Steps whose loss or gradient norm jumps are skipped, told and replayed; parameters that may be bad push out none."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.config.spikes import SkipSpikes
from llm_jax.objectives.loss import Loss
from llm_jax.train.spikes import PRIOR_DEVIATION, PRIOR_STEPS, RecentSpread, limits, observe
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step
from tests.train.test_step import objective_of

RULE = SkipSpikes()


def after(values: np.ndarray, rule: SkipSpikes = RULE) -> RecentSpread:
  recent = RecentSpread.create()
  for value in values:
    recent = observe(recent, jnp.asarray(value, jnp.float32), rule)
  return recent


@pytest.mark.parametrize('steps', [1, 2, 20, 128])
def test_the_limit_is_six_deviations_of_the_logarithms(steps):
  """Against NumPy in float64."""
  values = np.exp(np.random.default_rng(steps).normal([1.0, -2.0], [0.1, 0.5], (steps, 2)))
  logs = np.log(values)
  prior = PRIOR_STEPS * PRIOR_DEVIATION ** 2
  deviation = np.sqrt((prior + steps * logs.var(0)) / (PRIOR_STEPS + steps))
  np.testing.assert_allclose(limits(after(values), RULE), np.exp(logs.mean(0) + 6 * deviation), rtol=1e-4)


def test_nothing_is_a_spike_before_anything_is_known_and_one_of_100_times_is_from_the_second_step_on():
  assert np.isinf(limits(RecentSpread.create(), RULE)).all()
  np.testing.assert_allclose(limits(after(np.ones((1, 2))), RULE), 100 ** math.sqrt(8 / 9), rtol=1e-5)


def test_old_steps_fade():
  """After ten windows at another level, mean and spread are those of that level."""
  rule = SkipSpikes(window=16)
  recent = after(np.concatenate([np.full((50, 2), 100.0), np.full((160, 2), 1.0)]), rule)
  np.testing.assert_allclose(recent.mean, 0, atol=1e-3)
  np.testing.assert_allclose(recent.variance, 0, atol=1e-2)


def test_losses_without_a_logarithm_count_for_nothing():
  recent = after(np.array([[2.0, 1.0], [-3.0, 1.0], [0.0, 1.0], [2.0, 1.0]]))
  np.testing.assert_array_equal(recent.count, [2, 4])
  np.testing.assert_allclose(recent.mean, [math.log(2.0), 0.0], rtol=1e-6)


def scaled(params, frozen, batch, rng):
  """A loss of about 1 with a gradient of about 1, both times `batch`."""
  return Loss(batch[0] * (2.0 + params['w']), jnp.float32(1), {})


def train(sizes, start=None, skip_spikes: SkipSpikes | None = RULE):
  """Losses x size; whether each step was a spike, and the state."""
  optimizer = optax.adam(1.0)
  state = start or TrainState.create({'w': jnp.float32(0)}, optimizer, ema=False)
  step = jax.jit(make_train_step(objective_of(scaled), optimizer, lambda step: 1e-3, skip_spikes=skip_spikes))
  spikes = []
  for size in sizes:
    state, metrics = step(state, None, jnp.full(1, size, jnp.float32))
    spikes.append(bool(metrics['is_spike']))
  return spikes, jax.device_get(state)


SIZES = np.exp(np.random.default_rng(0).normal(0, 0.2, 60))


@pytest.mark.parametrize('at', [1, 5, 30, 59])
def test_a_spike_of_100_times_is_skipped_and_only_that(at):
  sizes = SIZES.copy()
  sizes[at] *= 100
  spikes, state = train(sizes)
  assert np.flatnonzero(spikes).tolist() == [at]
  _, without = train(np.delete(sizes, at))
  assert state.params['w'] == without.params['w'] and state.skipped == (at == 59) and state.step == 60
  for ours, theirs in zip(jax.tree.leaves(state.recent), jax.tree.leaves(without.recent), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_the_mutation():
  """With the rule off, the same step moves the parameters: the test above has a point."""
  sizes = SIZES.copy()
  sizes[30] *= 100
  spikes, state = train(sizes, skip_spikes=None)
  _, without = train(np.delete(sizes, 30), skip_spikes=None)
  assert not any(spikes) and state.params['w'] != without.params['w'] and not state.recent.count.any()


def test_a_replay_is_bitwise():
  """The state alone decides: saved before a spike and taken up again, the same steps are skipped."""
  sizes = SIZES.copy()
  sizes[[20, 21, 40]] *= 100
  spikes, whole = train(sizes)
  _, half = train(sizes[:21])
  assert half.skipped == 1
  again, resumed = train(sizes[21:], start=jax.tree.map(jnp.asarray, half))
  assert again == spikes[21:] and np.flatnonzero(spikes).tolist() == [20, 21, 40]
  for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_a_loss_that_falls_slowly_and_noisily_is_no_spike():
  """From 10 to 0.01 over 1,000 steps, the gradient's norm between 0.1 and 10 of its level."""
  rng = np.random.default_rng(1)
  recent = RecentSpread.create()
  look = jax.jit(lambda recent, value: (observe(recent, value, RULE), value > limits(recent, RULE)))
  for k in range(1_000):
    loss = 10 * 0.001 ** (k / 1_000) * math.exp(rng.normal(0, 0.3))
    norm = math.exp(rng.uniform(-2.3, 2.3))
    recent, above = look(recent, jnp.array([loss, norm], jnp.float32))
    assert not above.any(), k
