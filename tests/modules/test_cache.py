"""Caches: their size, and that what is written in any pieces is what a full forward pass sees."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import presets
from llm_jax.modules.cache import cache_bytes, init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from tests.modules.decoders import DECODERS, LLAMA, VOCAB, WINDOW, decoder, make_params, windowed

B, T = 2, 20  # six windows and more
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (B, T))
EXECUTIONS = {'unrolled': Execution(unroll=True), 'scanned': Execution(unroll=False, kernels='xla')}


@functools.cache
def steps(name, execution='unrolled'):
  """(cached step, logits of the full forward pass over TOKENS)."""
  model, params = Transformer(DECODERS[name], EXECUTIONS[execution]), make_params(DECODERS[name])
  step = jax.jit(lambda tokens, cache, *where: model.apply({'params': params}, tokens, *where, cache=cache))
  return step, np.array(jax.jit(model.apply)({'params': params}, TOKENS))


def run(step, cache, tokens, sizes, padding_B=(0, 0)):
  """Logits and cache after reading `tokens` in pieces, the first of each row being padding."""
  pieces, positions = [], np.arange(sum(sizes)) + int(cache.next) - np.array(padding_B)[:, None]
  for start, stop in itertools.pairwise([0, *itertools.accumulate(sizes)]):
    where = positions[:, start:stop]
    logits, cache = step(tokens[:, start:stop], cache, np.maximum(where, 0), np.int32(where >= 0))
    pieces.append(logits)
  return np.concatenate(pieces, 1), cache


def close(got, want):
  """To float32's rounding of sums, which goes with the largest logit and not with each."""
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


# ---------------------------------------------------------------------------------------------- values
# Few sizes, as each is a program: below, at and far beyond the window.
SIZES = {'tokens': (1,) * T, 'a window': (WINDOW,) + (1,) * 17, 'long prompt': (17, 1, 1, 1), 'then more': (17, 3),
         'wraps': (1, 3, 3, 1, 3, 1, 1, 3, 3, 1)}
MORE = ('a window', 'then more')  # which the others show, nearly


@pytest.mark.parametrize('sizes', [pytest.param(sizes, marks=[pytest.mark.slow] * (name in MORE))
                                   for name, sizes in SIZES.items()], ids=SIZES)
@pytest.mark.parametrize('name', DECODERS)
def test_pieces_equal_the_whole(name, sizes):
  step, full = steps(name)
  logits, cache = run(step, init_cache(DECODERS[name], B, T), TOKENS, sizes)
  close(logits, full)
  assert int(cache.next) == T


def test_scanned_layers_equal_the_whole():
  step, full = steps('everything', 'scanned')
  logits, _ = run(step, init_cache(DECODERS['everything'], B, T), TOKENS, (17, 1, 1, 1))
  close(logits, full)


def test_positions_go_on_where_the_cache_ends():
  step, full = steps('everything')
  cache = run(step, init_cache(DECODERS['everything'], B, T), TOKENS, (17,))[1]
  close(step(TOKENS[:, 17:], cache)[0], full[:, 17:])


def test_a_window_matters():
  """The rolling decoders' full pass does not see beyond the window: nothing above would be a test otherwise."""
  config = DECODERS['rolling']
  wide = jax.jit(Transformer(decoder((windowed(LLAMA, T),))).apply)({'params': make_params(config)}, TOKENS)
  full = steps('rolling')[1]
  close(wide[:, :WINDOW], full[:, :WINDOW])
  assert np.abs(wide[:, WINDOW:] - full[:, WINDOW:]).max(-1).min() > 1e-3


@pytest.mark.parametrize('name', DECODERS)
def test_padding_on_the_left_is_never_seen(name):
  """A row gives what it gives without padding, and what stands in the padding changes no logit, bit by bit."""
  step, full = steps(name)
  padding, sizes = (4, 1), (3, 3, 1, 1, 3, 1)
  tokens = np.stack([np.roll(row, count)[:sum(sizes)] for row, count in zip(TOKENS, padding, strict=True)])
  changed = np.where(np.arange(sum(sizes)) < np.array(padding)[:, None], (tokens + 1) % VOCAB, tokens)
  logits, again = (run(step, init_cache(DECODERS[name], B, T), rows, sizes, padding)[0] for rows in (tokens, changed))
  assert np.isfinite(logits).all()
  for row, count in enumerate(padding):
    close(logits[row, count:], full[row, :sum(sizes) - count])
    np.testing.assert_array_equal(again[row, count:], logits[row, count:])


@pytest.mark.parametrize('name', ['rolling', 'everything'])
def test_rewind_forgets(name):
  """After other tokens were read and taken back, the logits are those of the text alone; time and again."""
  step, full = steps(name)
  cache, other = init_cache(DECODERS[name], B, T, lookahead=4), (TOKENS + 7) % VOCAB
  rewind = jax.jit(lambda cache, count: cache.rewind(count))
  pieces, start = [], 0
  for wrong, size in (((3,), 3), ((1, 1), 1), ((3, 1), 3), ((1,), 1), ((1, 3), 3), ((1,), 3), ((3,), 1), ((3,), 1)):
    _, cache = run(step, cache, other[:, start:], wrong)
    cache = rewind(cache, sum(wrong))
    assert int(cache.next) == start
    logits, cache = run(step, cache, TOKENS[:, start:], (size,))
    pieces.append(logits)
    start += size
  close(np.concatenate(pieces, 1), full[:, :start])


@pytest.mark.parametrize('name', ['local-global', 'everything'])
def test_select_takes_rows(name):
  step, full = steps(name)
  cache = run(step, init_cache(DECODERS[name], B, T), TOKENS, (17,))[1]
  select = jax.jit(lambda cache, rows: cache.select(rows))
  for taken in ([[1, 0]], [[1, 1]], [[1], [0, 0]]):  # the last by way of one row alone
    kept, rows = cache, np.arange(B)
    for some in map(np.array, taken):
      kept, rows = select(kept, some), rows[some]
    close(run(step, kept, TOKENS[rows, 17:], (3,))[0], full[rows, 17:])
  one = jax.eval_shape(lambda: init_cache(DECODERS[name], 1, T))
  assert jax.tree.map(jnp.shape, jax.eval_shape(select, cache, np.array([1]))) == jax.tree.map(jnp.shape, one)


# ---------------------------------------------------------------------------------------------- memory
def measured(cache):
  return sum(part.nbytes for part in jax.tree.leaves((cache.prefix, cache.pattern)))


# Numbers that a token and that a row of S takes, from the decoders' shapes.
KV, LATENTS, S = 2 * 2 * 8, 12 + 4, 64
NUMBERS = {'full': (3 * KV, 3 * KV * S), 'rolling': (2 * KV, 2 * KV * WINDOW), 'latent': (2 * LATENTS, 2 * LATENTS * S),
           'local-global': (4 * 24, 2 * 24 * (WINDOW + S)), 'dense-banded': (3 * 64, 64 * (6 + S + 1)),
           'everything': (2 * KV + LATENTS, KV * S + LATENTS * S + KV * WINDOW)}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('name', NUMBERS)
def test_bytes_by_the_formula(name, dtype):
  per_token, total = cache_bytes(DECODERS[name], 3, S, dtype)
  assert (per_token, total) == tuple(n * jnp.dtype(dtype).itemsize * rows
                                     for n, rows in zip(NUMBERS[name], (1, 3), strict=True))
  assert measured(init_cache(DECODERS[name], 3, S, dtype)) == total


def test_a_rolling_cache_does_not_grow():
  sizes = {length: sum(leaf.nbytes for leaf in jax.tree.leaves(init_cache(DECODERS['rolling'], 1, length, lookahead=2)))
           for length in (8, 1_000, 1_000_000)}
  assert len(set(sizes.values())) == 1
  assert cache_bytes(DECODERS['rolling'], 1, 1_000_000, lookahead=2).total == measured(
      init_cache(DECODERS['rolling'], 1, 8, lookahead=2))
  assert measured(init_cache(DECODERS['rolling'], 1, 2)) == cache_bytes(DECODERS['rolling'], 1, 2).total


def test_opt_13b_takes_800_kb_a_token():
  """2 x 40 layers x 5,120 x 2 bytes, 1.6 GB at 2,048 tokens (Kwon et al. 2023, vLLM, section 3)."""
  opt = presets.gpt2(5_120, 40, 40, vocab_size=50_272, max_length=2_048)
  assert cache_bytes(opt, 1, 2_048, jnp.bfloat16) == (819_200, 1_677_721_600)
  cache = jax.eval_shape(lambda: init_cache(opt, 1, 2_048, jnp.bfloat16))
  assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.pattern)) == 1_677_721_600


def test_published_models():
  """Llama 3 8B: 2 x 32 layers x 8 heads x 128. DeepSeek-V3: 61 layers x (512 + 64). Mistral 7B: its window at most."""
  assert cache_bytes(presets.llama3_8b(), 1, 1, jnp.bfloat16) == (131_072, 131_072)
  assert cache_bytes(presets.deepseek_v3(), 1, 1, jnp.bfloat16).per_token == 2 * 61 * 576 == 70_272
  assert cache_bytes(presets.mistral_7b(), 1, 32_768, jnp.bfloat16).total == 4_096 * 131_072
