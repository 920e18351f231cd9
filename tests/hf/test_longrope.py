"""Positions that go by the length of a sequence, against transformers' Phi-3: passes over rows and packed documents,
and texts that grow beyond the length where they turn otherwise."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import llm_jax
from llm_jax.config.errors import ConfigError
from llm_jax.decode.generate import generate, stream
from llm_jax.decode.sampling import Sampling
from llm_jax.modules.cache import init_cache
from llm_jax.modules.transformer import Transformer
from tests.hf import hf_models

ORIGINAL = 16  # the longest sequence that is turned by the short factors
NEW = 24
TEXT = np.random.default_rng(0).integers(0, hf_models.VOCAB, 64).tolist()


@functools.cache
def pair():
  theirs = hf_models.make(hf_models.phi3(partial_rotary_factor=0.75, sliding_window=30, **hf_models.longrope(
    ORIGINAL, pairs=3)))
  return theirs, *hf_models.to_ours(theirs)


def their_logits(tokens):
  with torch.no_grad():
    return pair()[0](torch.tensor([tokens])).logits[0].numpy()


@functools.cache
def compiled():
  _, config, params = pair()
  return jax.jit(lambda *row: Transformer(config).apply({'params': params}, *row))


def full_pass(tokens):
  """Log-probabilities after the last of the tokens."""
  return np.asarray(jax.nn.log_softmax(compiled()(np.array([tokens]))[0, -1]))


# ------------------------------------------------------------------------------------------------ passes
@pytest.mark.parametrize('length', [ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL])
def test_a_row_goes_by_its_length(length):
  tokens = TEXT[:length]
  want = their_logits(tokens)
  np.testing.assert_allclose(compiled()(np.array([tokens]))[0], want, atol=1e-5)
  where = np.arange(length, dtype=np.int32)[None]
  np.testing.assert_allclose(compiled()(np.array([tokens]), where)[0], want, atol=1e-5)


def test_the_lengths_matter():
  """The first tokens of a text give other logits in a longer text; nothing above would be a test otherwise."""
  short, long = their_logits(TEXT[:ORIGINAL]), their_logits(TEXT[:ORIGINAL + 1])
  assert np.abs(short[1:] - long[1:ORIGINAL]).max(-1).min() > 1e-3


def test_each_document_of_a_row_goes_by_its_own_length():
  lengths, starts = (ORIGINAL, 5, ORIGINAL + 1), (0, ORIGINAL, ORIGINAL + 5)
  padding = 4
  segments = np.repeat([1, 2, 3, 0], [*lengths, padding])[None]
  positions = np.concatenate([np.arange(length) for length in (*lengths, padding)])[None]
  got = compiled()(np.array([TEXT[:segments.size]]), positions, segments)[0]
  for start, length in zip(starts, lengths, strict=True):
    stop = start + length
    np.testing.assert_allclose(got[start:stop], their_logits(TEXT[start:stop]), atol=1e-5)


@pytest.mark.parametrize('length', [ORIGINAL, ORIGINAL + 1])
def test_with_a_cache_its_length_decides(length):
  _, config, params = pair()
  want = their_logits(TEXT[:length])
  logits, _ = Transformer(config).apply({'params': params}, np.array([TEXT[:length]]),
                                        cache=init_cache(config, 1, length))
  np.testing.assert_allclose(logits[0], want, atol=1e-5)


# ------------------------------------------------------------------------------------------------ generation
# Prompts that end below, at and beyond the length; those of the first two cases grow beyond it.
PROMPTS = (TEXT[:3], TEXT[5:5 + ORIGINAL], TEXT[:ORIGINAL + 1], TEXT[:2 * ORIGINAL])


@functools.cache
def greedy_of_theirs():
  theirs, found = pair()[0], []
  for prompt in PROMPTS:
    given = torch.tensor([prompt])
    whole = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, min_new_tokens=NEW,
                            do_sample=False, pad_token_id=0)
    found.append(whole[0, len(prompt):].tolist())
  return found


def test_greedy_texts_are_those_of_transformers():
  """One alone, and all together: short and long texts of one batch do not disturb each other."""
  _, config, params = pair()
  assert generate(config, params, PROMPTS[:1], NEW).tokens == greedy_of_theirs()[:1]
  assert generate(config, params, PROMPTS, NEW, prefill_chunk=7).tokens == greedy_of_theirs()


def test_log_probs_are_those_of_a_pass_over_the_whole_text():
  _, config, params = pair()
  out = generate(config, params, PROMPTS[:1], NEW, log_probs=True)
  [tokens], [log_probs] = out.tokens, out.log_probs
  assert len(tokens) == len(log_probs) == NEW
  for i in (0, ORIGINAL - 3, ORIGINAL - 2, NEW - 1):  # the second reads ORIGINAL tokens, the third one more
    want = full_pass(PROMPTS[0] + tokens[:i])
    assert want.argmax() == tokens[i]
    np.testing.assert_allclose(log_probs[i], want.max(), atol=1e-5)


@pytest.mark.parametrize('sampling', [Sampling(0.8, top_k=20), Sampling(1.0, repetition_penalty=1.3)])
def test_a_stream_is_what_generate_gives(sampling):
  """Draws depend on the row and the position alone, so that they go on where a text is read anew."""
  _, config, params = pair()
  key, rows = jax.random.key(3), [[] for _ in PROMPTS]
  whole = generate(config, params, PROMPTS, NEW, sampling, key).tokens
  for new in stream(config, params, PROMPTS, NEW, sampling, key, chunk=5):
    for row, tokens in zip(rows, new, strict=True):
      row.extend(tokens)
  assert rows == whole and len(set(map(tuple, whole))) == len(PROMPTS)


def test_stop_tokens_end_a_row_on_both_sides():
  _, config, params = pair()
  free = greedy_of_theirs()
  stops = (free[0][4], free[1][10])  # before the first text grows beyond the length, and after the second has
  got = generate(config, params, PROMPTS, NEW, stop_tokens=stops).tokens
  for row, tokens in zip(free, got, strict=True):
    end = next((i + 1 for i, token in enumerate(row) if token in stops), NEW)
    assert tokens == row[:end]


def test_beams_and_speculation_stay_on_one_side():
  _, config, params = pair()
  first, *_, last = greedy_of_theirs()
  short = ORIGINAL + 1 - len(PROMPTS[0])  # the last token is predicted from a text of ORIGINAL tokens
  assert llm_jax.beam_search(config, params, PROMPTS[:1], short, 1).tokens == [[first[:short]]]
  assert llm_jax.speculate(config, params, PROMPTS[-1:], 6, draft=(config, params)).tokens == [last[:6]]
  said, new = r'^max_new_tokens = .* beyond \[16\] tokens LongRoPEScaling turns', short + 1
  for prompts in ([PROMPTS[0]], [PROMPTS[0], PROMPTS[3]]):
    with pytest.raises(ConfigError, match=said):
      llm_jax.beam_search(config, params, prompts, new, 2)
    with pytest.raises(ConfigError, match=said):
      llm_jax.speculate(config, params, prompts, new, draft=(config, params))


def test_bad_requests_are_named_here_too():
  _, config, params = pair()
  for prompts, new, field in (([[]], 2, r'prompts\[0\]'), (3, 2, 'prompts'), ([[1]], 0, 'max_new_tokens')):
    with pytest.raises(ConfigError, match=f'^{field} = '):
      generate(config, params, prompts, new)
    with pytest.raises(ConfigError, match=f'^{field} = '):
      next(stream(config, params, prompts, new))


def test_a_batch_trains_as_its_documents():
  """The gradient of packed documents is the sum of theirs."""
  _, config, params = pair()
  model, lengths = Transformer(config), (9, ORIGINAL + 4)

  def loss(params, tokens, *where):
    logits = model.apply({'params': params}, tokens, *where)
    return (logits ** 2).sum()

  segments, positions = np.repeat([1, 2], lengths)[None], np.concatenate([np.arange(n) for n in lengths])[None]
  text, gradient = TEXT[:sum(lengths)], jax.jit(jax.grad(loss))
  got = gradient(params, np.array([text]), positions, segments)
  want = jax.tree.map(jnp.add, *(gradient(params, np.array([part])) for part in (text[:9], text[9:])))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
