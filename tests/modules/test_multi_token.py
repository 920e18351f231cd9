"""Blocks that predict one token further: made with the model, paid for only where they are asked, drafting."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  LatentAttention,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SigmoidRouter,
)
from llm_jax.modules.execution import Execution
from llm_jax.modules.multi_token import init_draft_cache
from llm_jax.modules.transformer import Transformer

VOCAB, B, T, D = 41, 2, 12, 16
LATENT = Block(LatentAttention(2, 12, 6, 4, 8, q_rank=10), GLU(24), RMSNorm(1e-6))
SPARSE = dataclasses.replace(LATENT, feed_forward=MixtureOfExperts(4, 2, GLU(20), SigmoidRouter(), GLU(12)))
WINDOWED = Block(Attention(2, 1, window=5), GLU(24), RMSNorm(1e-6))
MODEL = Architecture(VOCAB, D, 3, prefix=(LATENT,), pattern=(SPARSE,), positions=RoPE(), norm=RMSNorm(1e-6),
                     tied_head=False, multi_token=(SPARSE, WINDOWED))


def model(kernels=None):
  return Transformer(MODEL, Execution(unroll=False, kernels=kernels))


def tokens():
  return np.random.default_rng(0).integers(0, VOCAB, (B, T)).astype(np.int32)


def shapes(config):
  return jax.eval_shape(Transformer(config).init, jax.random.key(0), np.zeros((1, 1), np.int32))['params']


def params():
  random = np.random.default_rng(0)
  return paths.map_named(lambda path, leaf: np.float32(
    path.endswith('scale') + 0.2 * random.standard_normal(leaf.shape)), shapes(MODEL))


def test_parameters():
  """Made by `init`, named as the README's tables expect, the rest untouched by them."""
  made = {path: leaf.shape for path, leaf in paths.leaves(shapes(MODEL))}
  without = {path: leaf.shape for path, leaf in paths.leaves(shapes(dataclasses.replace(MODEL, multi_token=())))}
  ahead = {path: shape for path, shape in made.items() if path.startswith('multi_token_')}
  assert {**without, **ahead} == made and not without.keys() & ahead.keys()
  for k in (0, 1):
    assert ahead[f'multi_token_{k}/project/w'] == (2 * D, D)
    assert all(ahead[f'multi_token_{k}/{name}/scale'] == (D,) for name in ('hidden_norm', 'embedding_norm', 'norm'))
  assert ahead['multi_token_0/block/feed_forward/experts/gate/w'] == (4, D, 20)
  assert ahead['multi_token_1/block/attention/key/w'] == (D, 1, 8)


def test_plain_forward_does_not_pay():
  """The same program with and without them."""
  def program(config):
    forward = lambda p, t: Transformer(config, Execution(unroll=False)).apply({'params': p}, t)
    return str(jax.make_jaxpr(forward)(shapes(dataclasses.replace(MODEL, multi_token=())), tokens()))
  plain = dataclasses.replace(MODEL, multi_token=())
  assert program(dataclasses.replace(MODEL, multi_token=(SPARSE,))) == program(plain)


def test_first_depth_is_the_papers():
  """Equations 21 and 22 in NumPy around the block: concatenation order, both norms, the shared embedding."""
  tree, forward = params(), jax.jit(lambda p, t: model('xla').apply({'params': p}, t, method='features_ahead'))
  rms = lambda x, scale: x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6) * scale
  (features, ahead, _), _ = forward(tree, tokens())
  module = tree['multi_token_0']
  following = tree['embedding']['w'][np.roll(tokens(), -1, 1)]
  both = [rms(np.asarray(features), module['hidden_norm']['scale']), rms(following, module['embedding_norm']['scale'])]
  inputs = np.concatenate(both, -1) @ module['project']['w']
  # the block alone, as the only one of a model without embedding lookup: its tokens' vectors are the inputs
  alone = dataclasses.replace(MODEL, vocab_size=B * T, num_layers=1, prefix=(SPARSE,), multi_token=(), norm=MODEL.norm)
  lone = {'embedding': {'w': inputs.reshape(-1, D)}, 'prefix_0': module['block'], 'final_norm': module['norm'],
          'head': {'w': np.zeros((B * T, D), np.float32)}}
  run = jax.jit(lambda p, t: Transformer(alone, Execution(kernels='xla')).apply({'params': p}, t, method='features'))
  want = run(lone, np.arange(B * T).reshape(B, T))
  np.testing.assert_allclose(ahead, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kernels', (pytest.param('cpu', marks=pytest.mark.slow), 'xla'))
def test_draft_is_the_training_forward(kernels):
  """A prompt at once, then one token at a time, through a cache for each depth (latent, and one that rolls)."""
  tree, ids, run = params(), tokens(), model(kernels)
  features, _ = jax.jit(lambda p, t: run.apply({'params': p}, t, method='features_ahead'))(tree, ids)
  caches = [init_draft_cache(MODEL, B, T, depth=depth) for depth in (0, 1)]
  assert caches[1].prefix[0].capacity == 5 < caches[0].prefix[0].capacity == T

  @jax.jit
  def draft(p, x, first, second, caches):
    logits, x, cache = run.apply({'params': p}, x, first, caches[0], method='draft', depth=0)
    further, _, other = run.apply({'params': p}, x, second, caches[1], method='draft', depth=1)
    return logits, further, [cache, other]

  end = T - 2  # the last positions have no token two further on
  got = []
  for start, stop in ((0, 5), (5, 8), *((i, i + 1) for i in range(8, end))):
    piece = lambda k, start=start, stop=stop: jnp.asarray(ids[:, start + k:stop + k])
    *logits, caches = draft(tree, features[0][:, start:stop], piece(1), piece(2), caches)
    got.append(logits)
  for depth in (0, 1):
    want = features[depth + 1] @ tree['head']['w'].T
    np.testing.assert_allclose(np.concatenate([g[depth] for g in got], 1), want[:, :end], rtol=0, atol=1e-5)
