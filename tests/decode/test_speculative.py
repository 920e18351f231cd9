"""Speculative decoding: the same tokens, or the same distribution, as without it."""
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import GLU, Block, LatentAttention, MixtureOfExperts, RMSNorm
from llm_jax.config.run import Mesh
from llm_jax.decode.drafting import HeadsDraft, ModelDraft
from llm_jax.decode.generate import generate
from llm_jax.decode.program import Program
from llm_jax.decode.sampling import Greedy, Sampling, distribution, init_seen
from llm_jax.decode.speculative import decode, prefill, speculate, stream_speculated
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings

VOCAB, NEW = 64, 14
SCANNED = Execution(unroll=False, kernels='xla')  # compiles faster
PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 10, 11, 12, 13]]
GPT2 = presets.gpt2(32, 2, 4, vocab_size=VOCAB, max_length=21)  # of which the longest prompt leaves none unused
LLAMA = presets.llama(32, 2, num_heads=4, num_kv_heads=2, d_ff=48, vocab_size=VOCAB)


def rolling(config, window):
  [block] = config.pattern
  block = dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=window))
  return dataclasses.replace(config, pattern=(block,))


@functools.cache
def make_params(config, seed=0, scale=1.0):
  """Weights large enough that the tokens vary."""
  config = dataclasses.replace(config, init=dataclasses.replace(config.init, std=0.3 * scale))
  return jax.jit(Transformer(config).init)(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))['params']


def near(config, noise=0.03):
  """Parameters that often, but not always, agree with those of `make_params`."""
  return jax.tree.map(lambda a, b: a + noise * b, make_params(config), make_params(config, seed=1))


CONFIGS = {'gpt2': GPT2, 'rolling': rolling(LLAMA, 4)}
EXECUTIONS = {'gpt2': Execution(), 'rolling': SCANNED}


@pytest.mark.parametrize('name', CONFIGS)
def test_greedy_tokens_are_those_without_a_draft(name):
  config = CONFIGS[name]
  execution = EXECUTIONS[name]
  found = speculate(config, make_params(config), PROMPTS, NEW, draft=(config, near(config)), execution=execution)
  assert found.tokens == generate(config, make_params(config), PROMPTS, NEW, execution=execution).tokens
  assert 0 < found.acceptance_rate < 1


def test_experts_of_little_capacity_serve_every_token_while_decoding():
  """Neither padding, nor pieces of a prompt, nor drafts change what is generated."""
  mixture = MixtureOfExperts(4, 2, GLU(16), capacity_factor=0.5)
  config = dataclasses.replace(LLAMA, pattern=(dataclasses.replace(LLAMA.pattern[0], feed_forward=mixture),))
  params = make_params(config)
  alone = [generate(config, params, [prompt], NEW, execution=SCANNED).tokens[0] for prompt in PROMPTS]
  assert generate(config, params, PROMPTS, NEW, execution=SCANNED).tokens == alone
  assert generate(config, params, PROMPTS, NEW, prefill_chunk=5, execution=SCANNED).tokens == alone
  assert speculate(config, params, PROMPTS, NEW, draft=(config, near(config)), execution=SCANNED).tokens == alone


LATENT = Block(LatentAttention(2, 12, 6, 4, 8, q_rank=10), GLU(24), RMSNorm(1e-6))
HEADS = {
  'latent, one': dataclasses.replace(LLAMA, pattern=(LATENT,), multi_token=(LATENT,)),
  'rolling, three': dataclasses.replace(rolling(LLAMA, 4), multi_token=LLAMA.pattern + rolling(LLAMA, 3).pattern * 2),
}


@pytest.mark.parametrize('name', [pytest.param('latent, one', marks=pytest.mark.slow), 'rolling, three'])
def test_heads_draft(name):
  """The same tokens; and what the heads draft, after rounds that accepted more and fewer tokens, is what they
  predict without a cache."""
  config, params = HEADS[name], make_params(HEADS[name])
  expected = generate(config, params, PROMPTS, NEW, execution=SCANNED).tokens
  assert speculate(config, params, PROMPTS, NEW, execution=SCANNED).tokens == expected

  program = Program(config, SCANNED, Greedy(), (), lookahead=len(config.multi_token))
  drafter = HeadsDraft(program, len(config.multi_token))
  padded = np.array([[0] * (8 - len(prompt)) + prompt for prompt in PROMPTS])
  state = prefill(program, drafter, params, params, jax.random.key(0), padded, np.array([3, 1, 7]), NEW)
  state = decode(program, drafter, params, params, jax.random.key(0), state, NEW - 5)
  step = int(state.step)
  newest = state.tokens_BN[:, step - 1]
  pick = lambda logits_BV, seen_BV, k: (logits_BV.argmax(-1).astype(jnp.int32), logits_BV)
  draft = jax.jit(lambda state: drafter.draft(params, state.drafter_state, newest, state.positions_B, None, pick))
  _, drafts = draft(state)
  model = Transformer(config, SCANNED)
  ahead = jax.jit(lambda tokens: [model.apply({'params': params}, x, method='logits') for x in
                  model.apply({'params': params}, tokens, method='features_ahead')[0][1:]])
  for row, prompt in enumerate(PROMPTS):
    text = [*prompt, *state.tokens_BN[row, :step].tolist(), *drafts.tokens_ZB[:, row].tolist()]
    n = len(prompt) + step - 1
    logits = ahead(np.array([text + [0] * (24 - len(text))]))
    for k, q_BV in enumerate(drafts.q_ZBV):
      np.testing.assert_allclose(q_BV[row], logits[k][0, n - 1], atol=2e-4)


def test_another_architecture_drafts():
  small = presets.gpt2(16, 1, 2, vocab_size=VOCAB, max_length=32)
  sampling = Greedy(repetition_penalty=1.3)
  found = speculate(LLAMA, make_params(LLAMA), PROMPTS, NEW, sampling, draft=(small, make_params(small)),
                    draft_tokens=2, execution=SCANNED)
  assert found.tokens == generate(LLAMA, make_params(LLAMA), PROMPTS, NEW, sampling, execution=SCANNED).tokens


def test_a_draft_that_is_the_model_is_always_accepted():
  params, sampling = make_params(LLAMA), Sampling(0.8, top_k=20)
  found = speculate(LLAMA, params, PROMPTS, NEW, sampling, jax.random.key(1), draft=(LLAMA, params),
                    execution=SCANNED)
  assert found.acceptance_rate == 1 and list(map(len, found.tokens)) == [NEW] * 3


def test_stop_tokens_end_a_row():
  request = LLAMA, make_params(LLAMA), PROMPTS, NEW
  free = generate(*request, execution=SCANNED).tokens
  stops = (free[0][4], free[2][0])
  expected = generate(*request, stop_tokens=stops, execution=SCANNED).tokens
  assert {len(row) for row in expected} != {NEW}
  how = dict(draft=(LLAMA, near(LLAMA)), stop_tokens=stops, execution=SCANNED)
  assert speculate(*request, **how).tokens == expected
  streamed = list(stream_speculated(*request, **how, chunk=3))
  assert [sum((new[row] for new in streamed), []) for row in range(3)] == expected and len(streamed) > 2


def test_a_mesh_changes_nothing():
  params, draft = make_params(LLAMA), near(LLAMA)
  mesh = make_mesh(Mesh(data=1, tensor=2, fsdp=4))
  spread = lambda params: jax.device_put(params, param_shardings(params, mesh))
  found = speculate(LLAMA, spread(params), PROMPTS, NEW, draft=(LLAMA, spread(draft)), execution=SCANNED)
  assert found == speculate(LLAMA, params, PROMPTS, NEW, draft=(LLAMA, draft), execution=SCANNED)


# ------------------------------------------------------------------------------------------- in distribution
TINY = presets.llama(8, 1, num_heads=2, d_ff=12, vocab_size=4)
STOP, LENGTH, DRAFTED, SEEDS = 3, 4, 2, 2_000
TINY_PROMPTS = [[0], [2, 1, 2]]


def exact(config, params, prompt, sampling):
  """Every text that can come out, with its probability, from full forward passes."""
  texts = list(itertools.product(range(4), repeat=LENGTH))
  rows = jnp.array([[*prompt, *text] for text in texts])
  logits = jax.jit(Transformer(config, SCANNED).apply)({'params': params}, rows)
  total = {}
  for i in range(LENGTH):
    before = rows[:, :len(prompt) + i]
    seen = init_seen(sampling, before, jnp.ones(before.shape, bool), 4)
    p = np.array(distribution(logits[:, len(prompt) + i - 1], sampling, seen), np.float64)
    for text, row in zip(texts, p, strict=True):
      if i == 0 or text[:i] in total and text[i - 1] != STOP:
        total[text[:i + 1]] = total.get(text[:i], 1.0) * row[text[i]]
  return {text: p for text, p in total.items() if len(text) == LENGTH or text[-1] == STOP}


def surprise(drawn, probabilities):
  """The probability of counts at least as far from `probabilities`, by Pearson's chi-square; rare texts as one."""
  texts = [text for text, p in probabilities.items() if p * len(drawn) >= 8]
  index = {text: i for i, text in enumerate(texts)}
  counts = np.bincount([index.get(text, len(texts)) for text in drawn], minlength=len(texts) + 1)
  expected = np.array([probabilities[text] for text in texts])
  expected = len(drawn) * np.append(expected, 1 - expected.sum())
  kept = expected > 1e-3
  return scipy.stats.chi2.sf(((counts - expected)[kept] ** 2 / expected[kept]).sum(), kept.sum() - 1)


def draw_many(program, drafter, params, draft_params):
  """Texts of each of the two rows, which end at different times and hold each other up; and the acceptance rate."""
  padded = jnp.array([[0] * 15 + TINY_PROMPTS[0], [0] * 13 + TINY_PROMPTS[1]])

  @jax.jit
  def draw(key):
    state = prefill(program, drafter, params, draft_params, key, padded, jnp.array([1, 3]), LENGTH)
    state = decode(program, drafter, params, draft_params, key, state, LENGTH)
    return state.tokens_BN[:, :LENGTH], state.lengths_B, state.accepted.sum(), state.drafted.sum()

  tokens, lengths, accepted, drafted = map(np.array, jax.vmap(draw)(jax.random.split(jax.random.key(0), SEEDS)))
  texts = [[tuple(text[:length].tolist()) for text, length in zip(tokens[:, row], lengths[:, row], strict=True)]
           for row in range(2)]
  return texts, accepted.sum() / drafted.sum()


@pytest.mark.parametrize('sampling', [
  Sampling(1.3), pytest.param(Sampling(0.9, top_k=3, repetition_penalty=1.5), marks=pytest.mark.slow)])
def test_draws_follow_the_model(sampling):
  params, draft = make_params(TINY, scale=2.0), make_params(TINY, seed=3, scale=2.0)
  program = Program(TINY, SCANNED, sampling, (STOP,), lookahead=DRAFTED)
  texts, rate = draw_many(program, ModelDraft(program, DRAFTED), params, draft)
  assert 0.05 < rate < 0.95
  for row, prompt in zip(texts, TINY_PROMPTS, strict=True):
    assert surprise(row, exact(TINY, params, prompt, sampling)) > 1e-3
    assert surprise(row, exact(TINY, draft, prompt, sampling)) < 1e-9  # the test sees a wrong distribution


@pytest.mark.slow
def test_draws_with_heads_follow_the_model():
  config, sampling = dataclasses.replace(TINY, multi_token=TINY.pattern * 2), Sampling(0.8)
  params = make_params(config, scale=2.0)
  program = Program(config, Execution(), sampling, (STOP,), lookahead=2)
  texts, rate = draw_many(program, HeadsDraft(program, 2), params, params)
  assert 0.05 < rate < 0.95
  for row, prompt in zip(texts, TINY_PROMPTS, strict=True):
    assert surprise(row, exact(TINY, params, prompt, sampling)) > 1e-3


@pytest.mark.parametrize('changes,field', [
    (dict(draft_tokens=0), 'draft_tokens'), (dict(draft=None), 'draft'),
    (dict(draft=(TINY, {})), 'draft.vocab_size'),
    (dict(draft=(GPT2, {}), max_new_tokens=15), r'prompts\[2\]'), (dict(prompts=[[]]), r'prompts\[0\]')])
def test_wrong_requests_are_named(changes, field):
  request = dict(prompts=PROMPTS, max_new_tokens=NEW, draft=(LLAMA, {'nothing': np.zeros(1)})) | changes
  with pytest.raises(ConfigError, match=field):
    speculate(LLAMA, {'nothing': np.zeros(1)}, **request)
