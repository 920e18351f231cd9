"""Passages before the questions of tasks, and what they do to the likelihood of answers."""
import pytest
from lm_eval.api.instance import Instance

from llm_jax.config.errors import ConfigError
from llm_jax.config.strategies import Retrieval, read_strategy
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.harness.model import HarnessModel
from llm_jax.harness.text import HarnessText
from llm_jax.prompting.program import ScoredText
from llm_jax.prompting.retrieval import (
  GOLD,
  NONE,
  PROMPTS,
  Passages,
  Question,
  RetrievalModel,
  check_passages,
  likelihoods,
)
from llm_jax.retrieve.bm25 import BM25

TEXT = HarnessText(ByteTokenizer(), None, True, 257, 100)
FACTS = ('aldor has 17', 'bemin has 25', 'cask has 38')
EXAMPLES = 'Q: of cask?\nA: 38\n\n'


def passages(**changes):
  return Passages(FACTS, BM25(FACTS), **changes)


def asked_of(model_passages, requests, monkeypatch):
  """The contexts that reach the model."""
  seen = []
  monkeypatch.setattr(HarnessModel, 'loglikelihood', lambda self, requests, _=False: seen.extend(requests))
  monkeypatch.setattr(HarnessModel, 'generate_until', lambda self, requests, _=False: seen.extend(requests))
  model = RetrievalModel(TEXT, None, model_passages)
  getattr(model, requests[0].request_type)(requests)
  return [request.args for request in seen]


def test_questions_stand_behind_what_is_found_for_them_and_not_for_the_examples(monkeypatch):
  requests = [Instance('loglikelihood', {}, (f'{EXAMPLES}Q: of bemin?\nA:', f' {choice}'), 0) for choice in (25, 17)]
  assert asked_of(passages(), requests, monkeypatch) == [
    (f'bemin has 25\n\n{EXAMPLES}Q: of bemin?\nA:', ' 25'), (f'bemin has 25\n\n{EXAMPLES}Q: of bemin?\nA:', ' 17')]
  written = [Instance('generate_until', {'q': 'aldor'}, ('Q: of it?', {'until': ['.']}), 0)]
  assert asked_of(passages(field='q', count=2), written, monkeypatch) == [
    ('bemin has 25\n\naldor has 17\n\nQ: of it?', {'until': ['.']})]
  alone = [Instance('loglikelihood', {}, ('', 'a whole text'), 0)]
  assert asked_of(passages(), alone, monkeypatch) == [('', 'a whole text')]


def test_what_is_too_long_with_its_passages_is_refused_before_a_run():
  requests = [Instance('loglikelihood', {'a': 1}, ('x' * 60, ' y'), 0, metadata=('t', 7, 1)),
              Instance('generate_until', {'a': 1}, ('x' * 20, {'until': ['.'], 'max_gen_toks': 30}), 1)]
  check_passages(TEXT, FACTS, 2, 'a', requests)
  with pytest.raises(ConfigError, match="'retrieval:count=3': question 7 with its passages takes up to 10[0-9] tokens"):
    check_passages(TEXT, FACTS, 3, 'a', requests)
  with pytest.raises(ConfigError, match="field=b': is no field of a question: use one of a"):
    check_passages(TEXT, FACTS, 1, 'b', requests)


def test_likelihoods_of_answers_behind_each_kind_of_passage():
  """Of a model that believes what it reads."""
  def model(asks):
    assert all(ask.prompt.startswith('Q: ') and ask.prompt.endswith('?\nA:') for ask in asks)
    assert all(choice.startswith(' ') for ask in asks for choice in ask.choices)
    return [[ScoredText(-1.0 if choice.strip() in ask.prompt else -5.0, 1) for choice in ask.choices] for ask in asks]

  questions = [Question(f'of {name}?', str(code), {place}) for place, (name, code) in enumerate(
    (('aldor', 17), ('bemin', 25), ('cask', 38)))]
  found = {one.prompt: one for one in likelihoods(model, questions, FACTS, [[0, 1], [1], [0]], 'Q: {}\nA:'.format)}
  assert tuple(found) == PROMPTS and found[NONE].gain is None
  assert [found[name].estimate.mean for name in (NONE, 'retrieved', GOLD)] == [-5, pytest.approx(-7 / 3), -1]
  assert found[GOLD].gain.estimate.mean == 4 and -5 <= found['random'].estimate.mean <= -1


def test_the_strategy_by_name():
  assert read_strategy('retrieval:index=a/b,count=3,method=dense') == Retrieval('a/b', 3, 'dense')
  for text, line in (('retrieval', 'name the folder'), ('retrieval:index=a,count=0', 'count=0'),
                     ('retrieval:index=a,method=x', 'use bm25, dense or fused')):
    with pytest.raises(ConfigError, match=line):
      read_strategy(text)
