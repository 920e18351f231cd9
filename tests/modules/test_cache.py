"""The key/value cache: its size, and that what is written in any pieces is what a full forward pass sees."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import presets
from llm_jax.modules.cache import init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer

LLAMA = presets.llama(32, 3, num_heads=4, num_kv_heads=2, d_ff=48, vocab_size=53)
LLAMA = dataclasses.replace(LLAMA, prefix=LLAMA.pattern)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_bytes_by_the_formula(dtype):
  batch, length = 3, 20
  cache = init_cache(LLAMA, batch, length, dtype)
  measured = sum(leaf.nbytes for leaf in jax.tree.leaves((cache.prefix, cache.pattern)))
  layers, kv_heads, head_dim = 3, 2, 8
  assert measured == 2 * layers * kv_heads * head_dim * jnp.dtype(dtype).itemsize * batch * length


def test_llama3_8b_takes_128_kib_a_token():
  """2 x 32 layers x 8 heads x 128 x 2 bytes."""
  cache = jax.eval_shape(lambda: init_cache(presets.llama3_8b(), 1, 1, jnp.bfloat16))
  assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.pattern)) == 131_072


@pytest.mark.parametrize('chunks', [(9,), (1,) * 9, (4, 3, 2)])
def test_chunks_equal_the_whole(chunks):
  model = Transformer(LLAMA, Execution(unroll=False))
  tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, LLAMA.vocab_size)
  params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
  step = jax.jit(lambda tokens, cache: model.apply({'params': params}, tokens, cache=cache))
  cache, pieces, start = init_cache(LLAMA, 2, 12), [], 0
  for size in chunks:
    logits, cache = step(tokens[:, start:start + size], cache)
    pieces.append(logits)
    start += size
  full = jax.jit(model.apply)({'params': params}, tokens)
  np.testing.assert_allclose(np.concatenate(pieces, 1), full, atol=1e-5)
  assert int(cache.next) == 9


def test_padding_is_never_seen():
  """What stands in padding changes no logit, bit by bit."""
  model = Transformer(LLAMA)
  tokens = jax.random.randint(jax.random.key(1), (1, 6), 0, LLAMA.vocab_size)
  params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
  real = jnp.array([[1, 1, 1, 1, 0, 0]])

  @jax.jit
  def after_padding(tokens):
    cache = init_cache(LLAMA, 1, 8)
    _, cache = model.apply({'params': params}, tokens, jnp.where(real, jnp.arange(6), 0), real, cache=cache)
    return model.apply({'params': params}, jnp.array([[5]]), jnp.array([[4]]), cache=cache)[0]

  changed = tokens.at[:, 4:].set((tokens[:, 4:] + 1) % LLAMA.vocab_size)
  np.testing.assert_array_equal(after_padding(tokens), after_padding(changed))
  full = jax.jit(model.apply)({'params': params}, jnp.append(tokens[:, :4], jnp.array([[5]]), axis=1))
  np.testing.assert_allclose(after_padding(tokens)[:, 0], full[:, 4], atol=1e-5)
