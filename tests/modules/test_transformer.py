"""The decoder as a whole: what it may see, what executing it differently must not change, what it starts from."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config import presets
from llm_jax.config.architecture import (
  GLU,
  MLP,
  Architecture,
  Attention,
  Block,
  LayerNorm,
  MixtureOfExperts,
  NormalInit,
  RMSNorm,
  RoPE,
  SigmoidRouter,
)
from llm_jax.config.count import count_parameters
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective

VOCAB, TIME = 67, 24

# A block apart, then twice a pair of blocks that differ in everything: head sizes, groups, width, biases, norms.
FIRST = Block(Attention(2, bias=True), MLP(24, 'relu'), RMSNorm())
GROUPED = Block(Attention(4, 2, head_dim=6), GLU(20), RMSNorm())
WIDE = Block(Attention(2, 1), MLP(40, 'gelu', bias=True), LayerNorm())
MIXED = Architecture(VOCAB, 16, 5, pattern=(GROUPED, WIDE), prefix=(FIRST,), positions=RoPE(), norm=LayerNorm(),
                     tied_head=True)
SPARSE = Architecture(
  VOCAB, 16, 3, prefix=(GROUPED,), positions=RoPE(), norm=RMSNorm(), tied_head=False,
  pattern=(Block(Attention(4, 2), MixtureOfExperts(6, 2, GLU(20), SigmoidRouter(3, 2), GLU(12)), RMSNorm()),))
MODELS = {
  'gpt2': presets.gpt2(16, 2, 2, vocab_size=VOCAB, max_length=TIME + 8),
  'llama': presets.llama(16, 2, 4, num_kv_heads=2, d_ff=24, vocab_size=VOCAB),
  'mixed': MIXED,
  'sparse': SPARSE,
}
AHEAD = dataclasses.replace(SPARSE, multi_token=SPARSE.pattern)
KERNELS = pytest.mark.parametrize('kernels', ('cpu', 'xla'))
ALL_MODELS = pytest.mark.parametrize('name', MODELS)

# Three documents and padding in the first row, two in the second.
LENGTHS = ((7, 10, 5), (15, 9))
WHOLE = np.broadcast_to(np.arange(TIME, dtype=np.int32), (2, TIME))


def tokens(seed=0):
  return np.random.default_rng(seed).integers(0, VOCAB, (2, TIME)).astype(np.int32)


def packed():
  """Positions and segment ids of LENGTHS."""
  positions, segments = np.zeros((2, TIME), np.int32), np.zeros((2, TIME), np.int32)
  for row, lengths in enumerate(LENGTHS):
    for number, (start, length) in enumerate(zip(np.cumsum((0, *lengths)), lengths, strict=False), 1):
      positions[row, start:start + length] = np.arange(length)
      segments[row, start:start + length] = number
  return positions, segments


def abstract(config):
  """Shapes and dtypes of the parameters."""
  return jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']


@functools.cache
def params(config):
  """Random parameters, biases and scales too."""
  random = np.random.default_rng(0)
  return paths.map_named(
    lambda path, leaf: np.float32(path.endswith('scale') + 0.2 * random.standard_normal(leaf.shape)), abstract(config))


@functools.cache
def forward(config, kernels, **execution):
  model = Transformer(config, Execution(kernels=kernels, unroll=False, **execution))
  return lambda *args: np.asarray(jitted(model)({'params': params(config)}, *args))


@functools.cache
def jitted(model):
  return jax.jit(model.apply)


# ------------------------------------------------------------------------------------------------ what it may see
@KERNELS
@ALL_MODELS
def test_causality_is_bitwise(name, kernels):
  run, before, whole = forward(MODELS[name], kernels), tokens(), np.ones_like(WHOLE)
  want = run(before, WHOLE, whole)
  for t in (0, 1, 11, TIME - 1):
    after = before.copy()
    after[:, t] = (after[:, t] + 1) % VOCAB
    got = run(after, WHOLE, whole)
    np.testing.assert_array_equal(got[:, :t], want[:, :t])
    assert (got[:, t] != want[:, t]).any()
    assert t == TIME - 1 or (got[:, -1] != want[:, -1]).any()


@KERNELS
@ALL_MODELS
def test_packed_documents_are_isolated_bitwise(name, kernels):
  run, before = forward(MODELS[name], kernels), tokens()
  positions, segments = packed()
  want = run(before, positions, segments)
  for number in (1, 2, 3):
    changed = segments == number
    got = run(np.where(changed, (before + 1) % VOCAB, before), positions, segments)
    np.testing.assert_array_equal(got[~changed], want[~changed])
    assert (got[changed] != want[changed]).any(-1).all()


@KERNELS
@ALL_MODELS
def test_packed_is_unpacked(name, kernels):
  """Log-probabilities of every document alone in its row, and packed beside others."""
  run, row, (positions, segments) = forward(MODELS[name], kernels), tokens(), packed()
  one = np.ones_like(segments)
  together = jax.nn.log_softmax(run(row, positions, segments))
  for r, lengths in enumerate(LENGTHS):
    for start, length in zip(np.cumsum((0, *lengths)), lengths, strict=False):
      alone = np.zeros((2, TIME), np.int32)
      alone[0, :length] = row[r, start:start + length]
      want = jax.nn.log_softmax(run(alone, WHOLE, one))[0, :length]
      np.testing.assert_allclose(together[r, start:start + length], want, rtol=0, atol=2e-6)


@ALL_MODELS
def test_positions_and_segments_default_to_one_document(name):
  run, row = forward(MODELS[name], 'xla'), tokens()
  one = np.ones_like(WHOLE)
  want = run(row)
  np.testing.assert_allclose(run(row, WHOLE, one), want, rtol=0, atol=2e-6)
  shifted = run(row, WHOLE + 5, one)
  if name == 'gpt2':
    assert np.abs(shifted - want).max() > 0.1
  else:  # rotary positions are relative
    np.testing.assert_allclose(shifted, want, rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------------------------ how it is executed
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


@pytest.mark.parametrize('config', (MODELS['llama'], AHEAD), ids=('llama', 'ahead'))
@pytest.mark.parametrize('execution', (
  pytest.param(Execution(kernels='xla', unroll=True), marks=pytest.mark.slow),
  Execution(kernels='xla', unroll=False, remat='block'),
  Execution(kernels='xla', unroll=False, remat='dots'),
  pytest.param(Execution(kernels='cpu', unroll=True, remat='dots'), marks=pytest.mark.slow),
), ids=str)
def test_execution_changes_nothing(execution, config):
  """Scanned or unrolled, recomputed or kept: the same loss and gradients, routers' and further tokens' included."""
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
  params = Transformer(config).init(jax.random.key(0), tokens())['params']

  def gradient(dtype):
    objective = LanguageModelObjective(Transformer(config, Execution(dtype, kernels=kernels)))
    return dict(paths.leaves(jax.jit(jax.grad(lambda p: objective(p, None, batch, None).total))(params)))

  want, got = gradient('float32'), gradient('bfloat16')
  shared = [path for path in want if path in ('embedding/w', 'positions/w') or path.endswith('/b')]
  for path in shared:
    norm = np.linalg.norm(want[path])
    if norm > 1e-3 * np.linalg.norm(want['embedding/w']):  # a key's bias moves nothing
      assert np.linalg.norm(got[path] - want[path]) < 0.02 * norm, path


# ------------------------------------------------------------------------------------------------ what it starts from
@pytest.mark.parametrize('config, count', (
  (presets.gpt2_124m(), 124_439_808), (presets.llama3_8b(), 8_030_261_248), (MIXED, None)))
def test_parameter_count(config, count):
  """As the published checkpoints hold them, and as the arithmetic over the configuration says."""
  leaves = jax.tree.leaves(abstract(config))
  assert sum(leaf.size for leaf in leaves) == count_parameters(config) == (count or count_parameters(config))
  assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_layers_are_stacked_by_their_place_in_the_pattern():
  shapes = {path: leaf.shape for path, leaf in paths.leaves(abstract(MIXED))}
  assert shapes['prefix_0/attention/query/w'] == (16, 2, 8)
  assert shapes['blocks/block_0/attention/query/w'] == (2, 16, 4, 6)
  assert shapes['blocks/block_0/attention/key/w'] == (2, 16, 2, 6)
  assert shapes['blocks/block_0/attention/out/w'] == (2, 4, 6, 16)
  assert shapes['blocks/block_1/feed_forward/up/b'] == (2, 40)
  assert shapes['blocks/block_1/attention_norm/bias'] == (2, 16)
  assert {path.split('/')[0] for path in shapes} == {'embedding', 'prefix_0', 'blocks', 'final_norm'}


@pytest.mark.parametrize('residual_std', (None, 0.05))
def test_initialisation(residual_std):
  """Normal as configured, the weights that write to the residual stream narrower; each layer drawn by itself."""
  config = dataclasses.replace(
    presets.gpt2(64, 8, 4, vocab_size=500, max_length=200), tied_head=False, init=NormalInit(0.03, residual_std, 0.01))
  init = jax.jit(Transformer(config, Execution(unroll=False)).init)
  made = dict(paths.leaves(init(jax.random.key(0), tokens())['params']))
  for path, leaf in made.items():
    kind = path.rsplit('/', 1)[1]
    if kind == 'w':
      std = 0.03 if residual_std is None else residual_std
      want = {'positions': 0.01, 'out': 0.03 / 4 if residual_std is None else std,
              'down': 0.03 / 4 if residual_std is None else std}.get(path.split('/')[-2], 0.03)
      assert abs(leaf.std() / want - 1) < 0.03 and abs(leaf.mean()) < 0.03 * want, path
    else:
      np.testing.assert_array_equal(leaf, np.full_like(leaf, kind == 'scale'), path)
  up = made['blocks/block_0/feed_forward/up/w']
  assert abs(np.corrcoef(up[0].ravel(), up[1].ravel())[0, 1]) < 0.05
