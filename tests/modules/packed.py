"""Small decoders that differ in everything, and rows of packed documents for them to read."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  Architecture,
  Attention,
  Block,
  LayerNorm,
  LongRoPEScaling,
  MixtureOfExperts,
  RMSNorm,
  RoPE,
  SigmoidRouter,
)
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer

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
LONGROPE = LongRoPEScaling((1.0, 1.5), (2.0, 6.0), 4.0, original_length=9)  # of LENGTHS some are longer, some are not
MODELS = {
  'gpt2': presets.gpt2(16, 2, 2, vocab_size=VOCAB, max_length=TIME + 8),
  'llama': presets.llama(16, 2, 4, num_kv_heads=2, d_ff=24, vocab_size=VOCAB),
  'mixed': MIXED,
  'sparse': SPARSE,
  'two lengths': presets.phi3(16, 2, 4, 24, num_kv_heads=2, vocab_size=VOCAB, head_dim=6, rotary_dim=4,
                              scaling=LONGROPE),
}
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
