"""What training adds to next-token prediction: routers' losses and loads, and predicting further tokens."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SigmoidRouter,
  SoftmaxRouter,
)
from llm_jax.config.objectives import LanguageModel
from llm_jax.config.optimizers import AdamW, Muon
from llm_jax.config.schedules import Constant
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective, targets_ahead
from llm_jax.objectives.loss import as_numbers
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.train.state import TrainState
from llm_jax.train.step import accumulate, make_train_step

VOCAB, B, T, E = 61, 4, 16, 6
DENSE = Block(Attention(2), GLU(24), RMSNorm())
SIGMOID = Block(Attention(2), MixtureOfExperts(E, 2, GLU(20), SigmoidRouter(bias_rate=0.01), GLU(12)), RMSNorm())
SOFTMAX = Block(Attention(2), MixtureOfExperts(E, 2, GLU(20), SoftmaxRouter(0.5, 0.25)), RMSNorm())
MODEL = Architecture(VOCAB, 16, 2, pattern=(SIGMOID,), positions=RoPE(), norm=RMSNorm(), tied_head=False,
                     multi_token=(SIGMOID, DENSE))
BIASES = ('blocks/block_0', 'multi_token_0/block')


def batch(seed=0):
  """Two documents a row, of other lengths in each, then padding; the last target of a document does not count."""
  random = np.random.default_rng(seed)
  ids = random.integers(0, VOCAB, (B, T + 1)).astype(np.int32)
  segments, positions = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
  for row in range(B):
    a, b = 4 + row, T - 2 * row
    segments[row, :a], segments[row, a:b] = 1, 2
    positions[row, :a], positions[row, a:b] = np.arange(a), np.arange(b - a)
  last = np.concatenate([segments[:, 1:] != segments[:, :-1], np.ones((B, 1), bool)], 1)
  weights = ((segments > 0) & ~last).astype(np.float32)
  return LanguageModelBatch(ids[:, :-1], ids[:, 1:], weights, positions, segments)


@functools.cache
def model(config=MODEL):
  return Transformer(config, Execution(unroll=False, kernels='xla'))  # compiles faster


@functools.cache
def params(config=MODEL):
  made = jax.eval_shape(model(config).init, jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  random = np.random.default_rng(0)
  return paths.map_named(
    lambda path, leaf: np.float32(path.endswith('scale') + 0.2 * random.standard_normal(leaf.shape)), made)


def objective(config=MODEL, sources=(), **fields):
  return LanguageModelObjective(model(config), LanguageModel(**fields), sources)


@functools.cache
def gradients(objective, microbatches=1):
  run = jax.jit(lambda p: accumulate(objective, p, None, batch(), jax.random.key(0), microbatches))
  return jax.device_get(run(params(objective.model.config)))


# ------------------------------------------------------------------------------------------------ further tokens
def test_targets_ahead_stay_in_their_document():
  data = batch()
  for k in (1, 2):
    targets, weights = targets_ahead(data, k)
    for row in range(B):
      for i in range(T):
        segment = data.segment_ids[row, i]
        counts = segment > 0 and i + k + 1 < T and data.segment_ids[row, i + k + 1] == segment
        assert weights[row, i] == counts
        assert not counts or targets[row, i] == data.tokens[row, i + k + 1]


def test_further_tokens_are_scored_as_the_equations_say():
  """Equations 21 to 25 of DeepSeek-V3 written out for one document at a time, through the model's own blocks."""
  data, tree, total = batch(), params(), 0.0
  features = jax.jit(lambda p, *a: model().apply({'params': p}, *a, method='features_ahead'))
  for row in range(B):
    for segment in (1, 2):
      own = data.segment_ids[row] == segment
      tokens = data.tokens[row, own][None]
      ahead = features(tree, np.pad(tokens, ((0, 0), (0, T - tokens.size))), None, np.arange(T)[None] < tokens.size)[0]
      for k in (1, 2):
        log_p = jax.nn.log_softmax(ahead[k][0] @ tree['head']['w'].T)
        total -= sum(np.asarray(log_p)[i, tokens[0, i + k + 1]] for i in range(tokens.size - k - 1)) / 2
  with_ahead, without = gradients(objective())[1], gradients(objective(multi_token_weight=0.0))[1]
  np.testing.assert_allclose(with_ahead.metrics['multi_token_nll'], total, rtol=1e-5)
  np.testing.assert_allclose(with_ahead.total - without.total, 0.3 * total, rtol=1e-4)
  assert total / with_ahead.weight > 1  # nats a token: nothing is silently zero


def test_gradient_of_further_tokens_reaches_the_trunk():
  got, _ = gradients(objective())
  without, _ = gradients(objective(multi_token_weight=0.0))
  for (path, a), (_, b) in zip(paths.leaves(got), paths.leaves(without), strict=True):
    if path.endswith('balance/bias'):
      assert not a.any() and not b.any()
    else:
      assert np.linalg.norm(a - b) > 1e-3 * np.linalg.norm(a) > 0, path
      # With weight 0 the first further block still has its router's balance loss, the second has nothing.
      assert path.startswith('multi_token_0') or path.startswith('multi_token_1') == (not b.any()), path


# ------------------------------------------------------------------------------------------------ routers
def test_router_losses_enter_the_total():
  """Balance and z losses of every layer, weighted by the router's own weights, on top of the cross-entropy."""
  config = Architecture(VOCAB, 16, 3, pattern=(SOFTMAX,), positions=RoPE(), norm=RMSNorm(), tied_head=False)
  free = dataclasses.replace(SOFTMAX, feed_forward=dataclasses.replace(
    SOFTMAX.feed_forward, router=SoftmaxRouter(0.0, 0.0)))
  plain = dataclasses.replace(config, pattern=(free,))
  (grads, loss), (plain_grads, want) = gradients(objective(config)), gradients(objective(plain))
  np.testing.assert_allclose(want.total, want.metrics['nll'], rtol=1e-6)
  added = 3 * (0.5 * loss.metrics['balance_loss'] + 0.25 * loss.metrics['router_z'])
  np.testing.assert_allclose(loss.total - want.total, added, rtol=1e-4)
  assert loss.metrics['balance_loss'] / loss.weight > 2 and loss.metrics['load_spread'] / loss.weight > 1
  router = lambda grads: grads['blocks']['block_0']['feed_forward']['router']['w']
  assert np.linalg.norm(router(grads) - router(plain_grads)) > 0.1 * np.linalg.norm(router(plain_grads))
  assert loss.step_sums == {}


def test_loads_and_losses_add_up_over_microbatches():
  """The sequence-wise loss and the loads are sums over sequences: pieces of a batch give what the batch gives."""
  (got, loss), (want, whole) = gradients(objective(), 2), gradients(objective())
  assert {path.split('/feed_forward')[0] for path in whole.step_sums} == set(BIASES)
  real = (batch().segment_ids > 0).sum()
  for path, load in whole.step_sums.items():
    np.testing.assert_array_equal(loss.step_sums[path], load)
    np.testing.assert_array_equal(load.sum(-1), 2 * real)
  np.testing.assert_allclose(loss.total, whole.total, rtol=1e-6)
  for (path, a), (_, b) in zip(paths.leaves(got), paths.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= 2e-6 * max(np.linalg.norm(b), 1e-3), path


@pytest.mark.parametrize('optimizer, microbatches', (
  pytest.param(AdamW(weight_decay=0.5), 1, marks=pytest.mark.slow), (Muon(weight_decay=0.5), 2)), ids=('adamw', 'muon'))
def test_step_moves_balance_biases_against_the_load_and_nothing_else_does(optimizer, microbatches):
  transformation = make_optimizer(optimizer, params())
  step = jax.jit(make_train_step(objective(), transformation, make_schedule(Constant(0.01), 9), ema=0.5,
                                 microbatches=microbatches))
  before = TrainState.create(jax.tree.map(jnp.asarray, params()), transformation, ema=True)
  after, metrics = step(before, None, batch())
  loads = gradients(objective())[1].step_sums
  moved = dict(paths.leaves(after.params))
  for path, old in paths.leaves(params()):
    if not path.endswith('balance/bias'):
      assert (moved[path] != old).any(), path
      continue
    excess = loads[path] - loads[path].mean(-1, keepdims=True)
    np.testing.assert_allclose(moved[path], old - 0.01 * np.sign(excess), rtol=0, atol=1e-7)
    np.testing.assert_allclose(dict(paths.leaves(after.ema))[path], (moved[path] + old) / 2, rtol=0, atol=1e-7)
  assert 1 < metrics['load_spread'] <= E / 2 and metrics['multi_token_nll'] > 1

  # A step that is not finite moves no bias either.
  poisoned = jax.tree.map(lambda x: x, before)
  poisoned.params['head']['w'] = poisoned.params['head']['w'].at[0, 0].set(jnp.nan)
  after, _ = step(poisoned, None, batch())
  for path, leaf in paths.leaves(after.params):
    np.testing.assert_array_equal(leaf, dict(paths.leaves(poisoned.params))[path])


def test_dense_models_have_neither():
  config = Architecture(VOCAB, 16, 2, pattern=(DENSE,), positions=RoPE(), norm=RMSNorm(), tied_head=False)
  loss = jax.eval_shape(lambda p: objective(config)(p, None, batch(), None), params(config))
  assert set(loss.metrics) == {'nll', 'accuracy'} and loss.step_sums == {}
  tree = params(config)
  assert objective(config).after_step(tree, {}) is tree
  assert optax.tree.sum(jax.tree.map(np.size, tree)) > 0


# ---------------------------------------------------------------------------------------------- sources
def test_the_loss_of_each_source_of_a_mixture():
  """Is that of its rows alone, and asking for it changes neither the loss nor a bit of the gradient."""
  config = dataclasses.replace(MODEL, pattern=(DENSE,), multi_token=())
  told, sources = objective(config, sources=('a', 'b', 'c')), np.array([2, 0, 2, 0], np.int32)
  mixed = batch().replace(sources=sources)
  run = jax.jit(lambda told, batch, pieces: accumulate(told, params(config), None, batch, jax.random.key(0), pieces),
                static_argnums=(0, 2))
  for pieces in (1, 2):
    (grads, loss), (plain_grads, plain) = run(told, mixed, pieces), run(objective(config), batch(), pieces)
    assert jax.tree.all(jax.tree.map(np.array_equal, grads, plain_grads)) and loss.total == plain.total
    means = as_numbers(loss.metrics)
    assert means.keys() - plain.metrics.keys() == {'loss/a', 'loss/c'}  # no row is from b
    for name, number in (('a', 0), ('c', 2)):
      weights = mixed.weights * (sources == number)[:, None]
      alone = run(objective(config), batch().replace(weights=weights), pieces)[1]
      np.testing.assert_allclose(means[f'loss/{name}'], alone.metrics['nll'] / weights.sum(), rtol=1e-6)
