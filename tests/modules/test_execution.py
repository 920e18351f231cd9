"""The decoder executed differently: what that must not change."""
import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config import presets
from llm_jax.modules.execution import Execution, dtype_of
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective
from tests.modules.packed import (
  ALL_MODELS,
  MIXED,
  MODELS,
  SPARSE,
  TIME,
  VOCAB,
  abstract,
  forward,
  jitted,
  packed,
  params,
  tokens,
)

AHEAD = dataclasses.replace(SPARSE, multi_token=SPARSE.pattern)


def batch():
  """A packed batch whose padding weighs nothing."""
  positions, segments = packed()
  weights = (segments > 0).astype(np.float32)
  return LanguageModelBatch(*map(jnp.asarray, (tokens(), tokens(1), weights, positions, segments)))


@functools.cache
def loss_and_gradients(config, execution, dropout=False):
  objective = LanguageModelObjective(Transformer(config, execution))

  def mean(p):
    loss = objective(p, None, batch(), jax.random.key(3) if dropout else None)
    return loss.total / loss.weight
  return jax.jit(jax.value_and_grad(mean))(params(config))


def assert_same(got, want, tolerance=1e-6):
  (got_loss, got), (want_loss, want) = got, want
  assert abs(got_loss - want_loss) <= tolerance
  for (path, a), (_, b) in zip(paths.leaves(got), paths.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), path


OTHER = {
  'unrolled': Execution(kernels='xla', unroll=True),
  'blocks again': Execution(kernels='xla', unroll=False, remat='block'),
  'all but products again': Execution(kernels='xla', unroll=False, remat='dots'),
  'products in the memory of the host': Execution(kernels='xla', unroll=False, remat='offload'),
  'products kept, unrolled': Execution(kernels='cpu', unroll=True, remat='dots'),
}
DECODERS = {'llama': MODELS['llama'], 'ahead': AHEAD}
QUICK = (
  ('blocks again', 'ahead'), ('all but products again', 'llama'), ('products in the memory of the host', 'llama'))


@pytest.mark.parametrize('how, name', [
  pytest.param(*each, marks=[] if each in QUICK else [pytest.mark.slow])
  for each in itertools.product(OTHER, DECODERS)])
def test_execution_changes_nothing(how, name):
  """Scanned or unrolled, recomputed or kept: the same loss and gradients, routers' and further tokens' included."""
  execution, config = OTHER[how], DECODERS[name]
  plain = Execution(kernels=execution.kernels, unroll=False)
  assert_same(loss_and_gradients(config, execution), loss_and_gradients(config, plain))


def test_unrolled_blocks_run_in_the_scans_order():
  got = jitted(Transformer(MIXED, Execution(kernels='xla', unroll=True)))({'params': params(MIXED)}, tokens())
  np.testing.assert_allclose(got, forward(MIXED, 'xla')(tokens()), rtol=0, atol=2e-6)


def test_recomputed_blocks_drop_the_same():
  config = dataclasses.replace(MODELS['llama'], dropout=0.3)
  plain = loss_and_gradients(config, Execution(unroll=False), dropout=True)
  assert_same(loss_and_gradients(config, Execution(unroll=True, remat='block'), dropout=True), plain)


@ALL_MODELS
def test_bfloat16(name):
  """bfloat16 inside, float32 logits; parameters and their gradients stay float32."""
  config = MODELS[name]
  model = Transformer(config, Execution(dtype='bfloat16', unroll=False))
  features = jax.eval_shape(functools.partial(model.apply, method='features'), {'params': params(config)}, tokens())
  assert features.dtype == jnp.bfloat16 and features.shape == (2, TIME, config.d_model)
  got, want = jitted(model)({'params': params(config)}, tokens()), forward(config, 'xla')(tokens())
  assert got.dtype == jnp.float32 and got.shape == (2, TIME, VOCAB)
  error = np.linalg.norm(got - want) / np.linalg.norm(want)
  # bfloat16 has 8 bits; where two experts score nearly the same, it chooses the other one
  assert 1e-4 < error < (0.1 if name == 'sparse' else 3e-2)
  made = jax.eval_shape(model.init, jax.random.key(0), tokens())['params']
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize('platform, version, dtype', [
  ('cpu', None, 'float32'), ('tpu', None, 'bfloat16'), ('gpu', '7.0', 'float32'), ('gpu', '7.5', 'float32'),
  ('gpu', '8.0', 'bfloat16'), ('gpu', '10.0', 'bfloat16'), ('gpu', 'gfx90a', 'bfloat16')])
def test_the_dtype_that_suits_a_chip(monkeypatch, platform, version, dtype):
  """V100 has compute capability 7.0, T4 7.5, A100 8.0."""
  device = types.SimpleNamespace(platform=platform, compute_capability=version)
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  assert dtype_of('auto') == dtype
  assert dtype_of('float32') == 'float32' and dtype_of('bfloat16') == 'bfloat16'


def test_dropout_needs_a_key_and_is_a_function_of_it():
  config = dataclasses.replace(MODELS['gpt2'], dropout=0.2)
  model, variables = Transformer(config, Execution(unroll=False)), {'params': params(MODELS['gpt2'])}
  apply = jax.jit(lambda key: model.apply(variables, tokens(), rngs={'dropout': key}))
  one, again, other = (np.asarray(apply(jax.random.key(seed))) for seed in (0, 0, 1))
  without = np.asarray(jax.jit(model.apply)(variables, tokens()))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 1e-2 and np.abs(one - without).max() > 1e-2
  np.testing.assert_allclose(without, forward(MODELS['gpt2'], 'xla')(tokens()), rtol=0, atol=2e-6)


def test_what_is_computed_again_is_protected_outside_of_a_loop():
  """XLA could otherwise merge a block with its own recomputation, and keep its activations."""
  model = Transformer(MIXED, Execution(kernels='xla', unroll=False, remat='block'))
  loss = lambda params: model.apply({'params': params}, tokens()).sum()

  def protected(jaxpr, depth=0):
    for equation in jaxpr.eqns:
      if 'prevent_cse' in equation.params:
        yield depth, equation.params['prevent_cse']
      for value in equation.params.values():
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          yield from protected(inner, depth + (equation.primitive.name == 'scan'))

  found = set(protected(jax.make_jaxpr(loss)(abstract(MIXED)).jaxpr))
  assert found == {(0, True), (1, False)}


@pytest.mark.parametrize('kernels', ('cpu', 'xla'))
def test_gradients_of_bfloat16_are_sums_in_float32(kernels):
  """Of what many tokens share: a frequent token's row, a position, a bias. A sum in bfloat16 would stop growing."""
  config = presets.gpt2(16, 1, 2, vocab_size=VOCAB, max_length=TIME)
  rng = np.random.default_rng(0)
  shape = 200, TIME
  ids = np.where(rng.random(shape) < 0.7, 3, rng.integers(0, VOCAB, shape)).astype(np.int32)
  batch = LanguageModelBatch(ids, np.full(shape, 5, np.int32), np.ones(shape, np.float32),
                             np.broadcast_to(np.arange(TIME, dtype=np.int32), shape), np.ones(shape, np.int32))
  params = jax.jit(Transformer(config).init)(jax.random.key(0), tokens())['params']

  def gradient(dtype):
    objective = LanguageModelObjective(Transformer(config, Execution(dtype, kernels=kernels)))
    return dict(paths.leaves(jax.jit(jax.grad(lambda p: objective(p, None, batch, None).total))(params)))

  want, got = gradient('float32'), gradient('bfloat16')
  shared = [path for path in want if path in ('embedding/w', 'positions/w') or path.endswith('/b')]
  for path in shared:
    norm = np.linalg.norm(want[path])
    if norm > 1e-3 * np.linalg.norm(want['embedding/w']):  # a key's bias moves nothing
      assert np.linalg.norm(got[path] - want[path]) < 0.02 * norm, path
