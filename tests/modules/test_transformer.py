"""The decoder as a whole: what it may see, and what it starts from."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import NormalInit
from llm_jax.config.model.count import count_parameters
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from tests.modules.packed import (
  ALL_MODELS,
  LENGTHS,
  MIXED,
  MODELS,
  TIME,
  VOCAB,
  WHOLE,
  abstract,
  forward,
  packed,
  tokens,
)

KERNELS = pytest.mark.parametrize('kernels', ('cpu', 'xla'))


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
  together = jax.nn.log_softmax(run(row, positions, segments))
  for r, lengths in enumerate(LENGTHS):
    for start, length in zip(np.cumsum((0, *lengths)), lengths, strict=False):
      alone = np.zeros((2, TIME), np.int32)
      alone[0, :length] = row[r, start:start + length]
      one = np.broadcast_to(np.int32(np.arange(TIME) < length), (2, TIME))
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


@pytest.mark.parametrize('given, line', [
  ([[1, 2]], "tokens = 'list .*: give an integer array"),
  (np.ones(4, int), "tokens = 'int64 .4.': give an integer array"),
  (np.ones((1, 4)), "tokens = 'float64 .1, 4.': give an integer array"),
  (np.ones((1, 9), int), "tokens = '9 in a row': there are 8 learned positions")])
def test_what_are_no_tokens_is_refused(given, line):
  """Behind the learned positions the last would stand in for all that follow, without a word."""
  model = Transformer(presets.gpt2(16, 1, 2, vocab_size=20, max_length=8))
  params = jax.jit(model.init)(jax.random.key(0), np.ones((1, 8), int))
  with pytest.raises(ConfigError, match=line):
    model.apply(params, given)
  for name in ('positions', 'segment_ids'):
    with pytest.raises(ConfigError, match=rf'{name} = \[8\]: give an array \[1, 8\]'):
      model.apply(params, np.ones((1, 8), int), **{name: np.arange(8)})
