"""Scores of continuations against the full forward pass of every kind of cache, and against transformers."""
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.config.errors import ConfigError
from llm_jax.config.model.positions import LearnedPositions
from llm_jax.config.run import Mesh
from llm_jax.decode.request import common_beginning
from llm_jax.decode.score import Scored, score
from llm_jax.decode.score_plan import make_batches, make_rows
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings
from tests.hf import hf_models
from tests.modules.decoders import DECODERS, VOCAB, make_params
from tests.runtime.test_processes import launch

SCANNED = Execution(unroll=False, kernels='xla')  # compiles faster


def questions(vocab, shared, count=4, seed=0):
  """(contexts, continuations): questions behind `shared` equal tokens, each with four choices, of which two are one
  token long and one is another with a token more."""
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(0, vocab, n).tolist()
  beginning = draw(shared)
  contexts, continuations = [], []
  for _ in range(count):
    context = beginning + draw(int(rng.integers(1, 9)))
    longest = draw(4)
    for choice in (draw(1), draw(1), longest, longest[:3]):
      contexts.append(context)
      continuations.append(choice)
  return contexts, continuations


def expected_scores(logits_of, contexts, continuations):
  """From the logits [time, vocab] of one text at a time."""
  found = []
  for context, continuation in zip(contexts, continuations, strict=True):
    logits = logits_of(context + continuation[:-1])[len(context) - 1:]
    log_probs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(
      -1, keepdims=True)
    chosen = log_probs[np.arange(len(continuation)), continuation]
    found.append(Scored(tuple(chosen), tuple(log_probs.argmax(-1) == continuation)))
  return found


def check_equal(found, expected, atol=2e-5):
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=atol)
    assert one.is_largest == other.is_largest


SLOW = ('full', 'local-global', 'rolling', 'dense-banded', 'sinks', 'latent', 'parallel')


@pytest.mark.parametrize('name', [
  'two lengths', 'everything', *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_scores_are_those_of_the_full_forward_pass(name):
  """Behind a beginning that is longer than the windows, and (two lengths) on both sides of where positions turn."""
  config, params = DECODERS[name], make_params(DECODERS[name])
  apply = jax.jit(Transformer(config, SCANNED).apply)
  contexts, continuations = questions(VOCAB, shared=11)

  def logits(ids):  # of one length, so that one program serves
    padded = jnp.array([ids + [0] * (32 - len(ids))])
    is_token = (jnp.arange(32) < len(ids)).astype(jnp.int32)[None]
    return np.array(apply({'params': params}, padded, None, is_token)[0, :len(ids)], np.float64)

  expected = expected_scores(logits, contexts, continuations)
  check_equal(score(config, params, contexts, continuations, execution=SCANNED, batch_size=6), expected)


def test_scores_are_those_of_transformers():
  model = hf_models.make(hf_models.llama())
  config, params = hf_models.to_ours(model)

  def logits(ids):
    with torch.no_grad():
      return model(torch.tensor([ids])).logits[0].double().numpy()

  contexts, continuations = questions(hf_models.VOCAB, shared=40)
  expected = expected_scores(logits, contexts, continuations)
  for options in (dict(), dict(batch_size=3), dict(share_prefixes=False)):
    found = score(config, params, contexts, continuations, execution=SCANNED, **options)
    check_equal(found, expected)


CONFIG = dataclasses.replace(DECODERS['full'], vocab_size=64)  # which two devices divide


@pytest.fixture(scope='module')
def alone():
  """The scores of one device."""
  return score(CONFIG, make_params(CONFIG), *questions(64, shared=11), batch_size=8, execution=SCANNED)


def test_scores_over_devices_are_those_of_one(alone):
  params = make_params(CONFIG)
  mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
  sharded = jax.device_put(params, param_shardings(params, mesh))
  check_equal(score(CONFIG, sharded, *questions(64, shared=11), batch_size=8, execution=SCANNED), alone)


def say(lists):
  """What two processes say."""
  process = launch(2, 'tests.decode.score_worker', lists, DEVICES_PER_PROCESS='2')
  output, _ = process.communicate(timeout=400)
  said = [json.loads(written) for _, written in re.findall(r'^\[([01])\] (\{.*)$', output, re.MULTILINE)]
  assert [one['processes'] for one in said] == [2, 2], output
  return said


@pytest.mark.slow
@pytest.mark.usefixtures('signals_are_heard')
def test_scores_of_two_processes_are_those_of_one(alone):
  for said in say('same'):
    check_equal([Scored(*one) for one in zip(said['log_probs'], said['is_largest'], strict=True)],
                [Scored(list(one.log_probs), list(one.is_largest)) for one in alone])
  for said in say('other'):
    assert said['error'].startswith('contexts = ') and 'differs from process 0 on process 1' in said['error']


def test_long_texts_are_read_in_pieces():
  config, params = DECODERS['rolling'], make_params(DECODERS['rolling'])
  rng = np.random.default_rng(0)
  ids = rng.integers(0, VOCAB, 1_100).tolist()
  [found] = score(config, params, [ids[:1]], [ids[1:]], execution=SCANNED)
  logits = jax.jit(Transformer(config, SCANNED).apply)({'params': params}, jnp.array([ids[:-1]]))[0]
  check_equal([found], expected_scores(lambda _: np.array(logits, np.float64), [ids[:1]], [ids[1:]]), 1e-4)


def test_a_window_keeps_its_prefix_while_longer_texts_are_read_in_pieces():
  """The first piece of the shorter text is padding alone."""
  config, params = DECODERS['rolling'], make_params(DECODERS['rolling'])
  rng = np.random.default_rng(0)
  beginning, long, short = (rng.integers(0, VOCAB, count).tolist() for count in (900, 600, 5))
  apply = jax.jit(Transformer(config, SCANNED).apply)

  def logits(ids):
    padded = jnp.array([ids + [0] * (1_504 - len(ids))])
    return np.array(apply({'params': params}, padded)[0, :len(ids)], np.float64)

  contexts, continuations = [beginning] * 2, [long, short]
  found = score(config, params, contexts, continuations, execution=SCANNED)
  check_equal(found, expected_scores(logits, contexts, continuations), 1e-4)


# ------------------------------------------------------------------------------------------- what is read
def tokens_read(contexts, continuations, batch_size=16, share_prefixes=True):
  rows = make_rows([tuple(ids) for ids in contexts], [tuple(ids) for ids in continuations])
  batches = list(make_batches(DECODERS['full'], rows, batch_size, share_prefixes))
  seen = sorted(wanted.request for batch in batches for row in batch.rows for wanted in row.wanted)
  assert seen == list(range(len(contexts)))
  return sum(batch.tokens for batch in batches)


def test_a_common_beginning_is_read_once():
  contexts, continuations = questions(VOCAB, shared=500, count=20)
  assert tokens_read(contexts, continuations) < tokens_read(contexts, continuations, share_prefixes=False) / 8


def test_a_context_is_read_once_for_its_choices():
  """Where every question has other examples."""
  rng = np.random.default_rng(0)
  contexts = [context for _ in range(8) for context in [rng.integers(0, VOCAB, 500).tolist()] * 4]
  continuations = [rng.integers(0, VOCAB, 3).tolist() for _ in contexts]
  assert tokens_read(contexts, continuations) < tokens_read(contexts, continuations, share_prefixes=False) / 3


def test_texts_that_differ_in_their_last_token_are_one_row():
  rows = make_rows([(1, 2)] * 4, [(3,), (4,), (5, 6), (5, 7)])
  assert [row.ids for row in rows] == [(1, 2), (1, 2, 5)]
  assert [[wanted.request for wanted in row.wanted] for row in rows] == [[0, 1], [2, 3]]


def test_common_beginnings():
  assert common_beginning([(1, 2, 3), (1, 2), (1, 2, 4)]) == (1, 2)
  assert common_beginning([(1,), (2,)]) == () and common_beginning([(1, 2)]) == (1, 2)


# ------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize('contexts, continuations, line', [
  ([[]], [[1]], r'contexts\[0\] = \[\]: give at least one token'),
  ([[1]], [[]], r'continuations\[0\] = \[\]: give at least one token'),
  ([[1], [VOCAB]], [[1], [1]], r'contexts\[1\] = 53: not a token'),
  ([[1]], [[1], [2]], 'continuations = 2: give one for each of the 1 contexts'),
  ([[1] * 60], [[1] * 6], r"contexts\[0\] = '65 tokens with the continuation': the model has 64 learned positions"),
  ([['a']], [[1]], 'give a list of token ids')])
def test_requests_that_cannot_be_scored_are_named(contexts, continuations, line):
  config = dataclasses.replace(DECODERS['dense-banded'], positions=LearnedPositions(64))
  with pytest.raises(ConfigError, match=line):
    score(config, {}, contexts, continuations)


def test_nothing_asked_is_nothing_scored():
  assert score(DECODERS['full'], {}, [], []) == []
