"""Strategies between the harness and a model, and how a command line names them."""
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llm_jax.config.errors import ConfigError
from llm_jax.config.strategies import AutoCoT, SelfConsistency, ZeroShotCoT, read_strategy
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.harness.text import HarnessText
from llm_jax.prompting.answerer import HarnessAnswerer
from llm_jax.prompting.program import Generate, Score, ScoredText
from llm_jax.prompting.strategy_model import StrategyModel, check_room

TEXT = HarnessText(ByteTokenizer(), None, True, 257, 600)


class Fake(LM):
  """Writes by the end of a prompt; keeps the requests."""

  def __init__(self, answers):
    super().__init__()
    self.answers, self.asked = answers, []

  def generate_until(self, requests):
    self.asked += [request.args for request in requests]
    said = {end: iter(texts) for end, texts in self.answers.items()}
    return [next(next(texts for end, texts in said.items() if request.args[0].endswith(end))) for request in requests]

  def loglikelihood(self, requests):
    return [(-float(len(request.args[0] + request.args[1])), False) for request in requests]

  def loglikelihood_rolling(self, requests):
    raise NotImplementedError


def answers_of(strategy, answers, *prompts, until=('Q:',)):
  model = StrategyModel(TEXT, None, strategy)
  model.plain = Fake(answers)
  options = {'until': list(until), 'max_gen_toks': 50, 'do_sample': False}
  requests = [Instance('generate_until', {}, (prompt, options), i) for i, prompt in enumerate(prompts)]
  return model.generate_until(requests), model


def test_self_consistency_answers_with_a_text_that_most_agree_with():
  texts, model = answers_of(SelfConsistency(3, 0.5), {'A:': ['is 4', 'is 5', 'so 5'], 'B:': ['none', 'no', '7']},
                            'Q: x\nA:', 'Q: y\nB:')
  assert texts == ['is 5', '7']
  assert model.plain.asked[0] == ('Q: x\nA:', {'until': ['Q:'], 'max_gen_toks': 50, 'do_sample': True,
                                               'temperature': 0.5})
  assert len(model.plain.asked) == 6
  assert answers_of(SelfConsistency(3, like_harness=True), {'B:': ['none', 'no', '7']}, 'B:')[0] == ['none']


def test_zero_shot_cot_answers_with_reasoning_and_answer():
  texts, model = answers_of(ZeroShotCoT(), {'step.': [' Two and two.'], 'is': [' 4']}, 'Q: x\nA:')
  assert texts == [' Two and two.\nTherefore, the answer (arabic numerals) is 4']
  assert [prompt for prompt, _ in model.plain.asked] == [
    "Q: x\nA: Let's think step by step.",
    "Q: x\nA: Let's think step by step. Two and two.\nTherefore, the answer (arabic numerals) is"]


def test_auto_cot_answers_behind_its_own_examples_but_not_behind_one_of_the_question():
  answers = {'step.': [' Yes.'] * 2, 'is': [' 4', ' 5'], 'apples?\nA:': ['four'], 'trains?\nA:': ['five']}
  texts, model = answers_of(AutoCoT(2), answers, 'Q: apples?\nA:', 'Q: trains?\nA:')
  assert texts == ['four', 'five']
  apples, trains = model.exemplars if 'apples' in model.exemplars[0].question else model.exemplars[::-1]
  shown = lambda exemplar: f'{exemplar.question} Yes. {exemplar.answer}'
  assert [prompt for prompt, _ in model.plain.asked[-2:]] == [
    f'{shown(trains)}\n\nQ: apples?\nA:', f'{shown(apples)}\n\nQ: trains?\nA:']
  assert {apples.answer, trains.answer} == {'The answer is 4.', 'The answer is 5.'}


def test_examples_that_leave_no_room_are_refused():
  answers = {'step.': ['y' * 300] * 2, 'is': [' 4', ' 5']}
  with pytest.raises(ConfigError, match='auto_cot:clusters=2.*takes .* tokens, and the model reads 600'):
    answers_of(AutoCoT(2), answers, 'Q: apples?' + 'x' * 250 + '\nA:', 'Q: trains?\nA:')


def test_reasoning_that_leaves_no_room_is_refused_before_a_run():
  requests = [Instance('generate_until', {}, ('x' * 200, {'until': ['.'], 'max_gen_toks': 5}), 3, metadata=('t', 3, 1)),
              Instance('loglikelihood', {}, ('a', 'b'), 4)]
  check_room(TEXT, SelfConsistency(), requests)
  check_room(TEXT, ZeroShotCoT(100), requests)
  with pytest.raises(ConfigError, match="'zero_shot_cot': question 3 with its reasoning takes up to 665 tokens"):
    check_room(TEXT, ZeroShotCoT(400), requests)


def test_an_answerer_of_both_kinds():
  answerer = HarnessAnswerer(Fake({'a': ['1', '2'], 'b': ['3']}), lambda prompt, text: len(text))
  asks = [Generate('a', 2, 0.7, 5), Score('x', ('y', 'zz')), Generate('b')]
  assert answerer(asks) == [('1', '2'), (ScoredText(-2.0, 1), ScoredText(-3.0, 2)), ('3',)]
  assert answerer.model.asked[0][1] == {'until': [], 'max_gen_toks': 256, 'do_sample': True, 'temperature': 0.7,
                                        'top_k': 5}
  assert answerer.model.asked[2][1]['do_sample'] is False


@pytest.mark.parametrize('text, strategy', [
  ('self_consistency', SelfConsistency()), ('self_consistency:n=4,temperature=0.5', SelfConsistency(4, 0.5)),
  ('self_consistency:like_harness=true', SelfConsistency(like_harness=True)),
  ('zero_shot_cot:tokens=9', ZeroShotCoT(9)), ('auto_cot:clusters=3', AutoCoT(3))])
def test_strategies_by_name(text, strategy):
  assert read_strategy(text) == strategy


@pytest.mark.parametrize('text, line', [
  ('self_consistent', "'self_consistent': no such strategy: use self_consistency"),
  ('other', 'use zero_shot_cot, self_consistency, auto_cot'),
  ('auto_cot:n=3', 'has no such setting: use clusters, seed'),
  ('self_consistency:n=x', "'n=x': use a value such as 40"), ('self_consistency:n=0', 'n=0.*use 1 or more'),
  ('self_consistency:temperature=0', 'use a number above 0'), ('zero_shot_cot:tokens=0', 'tokens=0'),
  ('self_consistency:like_harness=maybe', 'use a value such as False'), ('auto_cot:clusters=0', 'clusters=0')])
def test_wrong_strategies_are_named(text, line):
  with pytest.raises(ConfigError, match=line):
    read_strategy(text)
