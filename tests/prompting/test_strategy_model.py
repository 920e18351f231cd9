"""Strategies between the harness and a model, and how a command line names them."""
import json

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llm_jax.config.errors import ConfigError
from llm_jax.config.strategies import (
  ActivePrompt,
  AutoCoT,
  Chaining,
  SelfConsistency,
  TreeOfThoughts,
  ZeroShotCoT,
  read_strategy,
)
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.harness.text import HarnessText
from llm_jax.prompting.answerer import HarnessAnswerer
from llm_jax.prompting.program import Generate, Score, ScoredText
from llm_jax.prompting.room import check_room
from llm_jax.prompting.strategy_model import StrategyModel, read_files

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
  model = StrategyModel(TEXT, None, strategy, files=read_files(strategy))
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
  with pytest.raises(ConfigError, match="'auto_cot': a question with its examples takes .* and the model reads 600"):
    answers_of(AutoCoT(2), answers, 'Q: apples?' + 'x' * 250 + '\nA:', 'Q: trains?\nA:')


def test_reasoning_that_leaves_no_room_is_refused_before_a_run():
  requests = [Instance('generate_until', {}, ('x' * 200, {'until': ['.'], 'max_gen_toks': 5}), 3, metadata=('t', 3, 1)),
              Instance('loglikelihood', {}, ('a', 'b'), 4)]
  check_room(TEXT, SelfConsistency(), requests)
  check_room(TEXT, ZeroShotCoT(100), requests)
  with pytest.raises(ConfigError, match="'zero_shot_cot': question 3 takes up to 665 tokens with it"):
    check_room(TEXT, ZeroShotCoT(400), requests)


def test_the_answer_of_a_chain_is_its_last_one(tmp_path):
  path = tmp_path / 'chain.json'
  path.write_text(json.dumps([{'template': '{input} First:', 'name': 'plan', 'stops': ['.']},
                              {'template': 'Plan: {plan} For {input} So:', 'max_new_tokens': 5}]))
  texts, model = answers_of(Chaining(str(path)), {'First:': [' add'], 'So:': [' 4 ']}, 'x A:')
  assert texts == ['4']
  assert [(prompt, options['until'], options['max_gen_toks']) for prompt, options in model.plain.asked] == [
    ('x A: First:', ['.'], 256), ('Plan: add For x A: So:', [], 5)]


@pytest.mark.parametrize('rows, line', [
  ('{', 'cannot be read'), ('[]', 'is no list of prompts'), ('[3]', 'prompt 1.*is no object with'),
  ('[{"name": "a"}]', "needs a 'template'"), ('[{"template": "a", "stop": "b"}]', 'is unknown: use'),
  ('[{"template": "{plan}"}]', "'{plan}': is no answer of a prompt before it: use one of input, previous"),
  ('[{"template": "{"}]', 'is no template'), ('[{"template": "a", "stops": "b"}]', 'give a list of texts'),
  ('[{"template": "a", "max_new_tokens": 0}]', 'use 1 or more')])
def test_files_of_chains_that_are_none(tmp_path, rows, line):
  path = tmp_path / 'chain.json'
  path.write_text(rows)
  with pytest.raises(ConfigError, match=line):
    read_files(Chaining(str(path)))


def test_the_answer_of_a_tree_is_what_most_ballots_are_for():
  """Of three first lines the second gets the votes, and a line behind it gives the answer."""
  said = {'A:': ['One.', 'Two.', ''], 'A:Two.\n': ['More.', 'The answer is 7.', 'More.'],
          'The best choice is': ['2', '2', '1']}
  texts, model = answers_of(TreeOfThoughts(thoughts=3, breadth=1, depth=4, votes=3), said, 'Q A:')
  assert texts == ['Two.\nThe answer is 7.']
  asked = [prompt for prompt, _ in model.plain.asked]
  assert asked[:3] == ['Q A:'] * 3 and asked[6:9] == ['Q A:Two.\n'] * 3
  assert asked[3].endswith('Q A:\n\nChoice 1: One.\nChoice 2: Two.\n\nThe best choice is') and len(asked) == 12


def test_a_tree_without_an_answer_is_asked_for_it():
  said = {'A:': ['One.'], 'The best choice is': ['1'], 'is': [' 3']}
  texts, _ = answers_of(TreeOfThoughts(thoughts=1, breadth=1, depth=1, votes=1), said, 'Q A:')
  assert texts == ['One.\nTherefore, the answer (arabic numerals) is 3']


def test_a_person_writes_the_examples_of_what_the_model_is_unsure_of(tmp_path):
  path = tmp_path / 'annotations.jsonl'
  strategy = ActivePrompt(str(path), count=1, n=2)
  answers = {'a A:': ['is 1', 'is 1', 'one'], 'b A:': ['is 1', 'is 2', 'two']}
  model = StrategyModel(TEXT, None, strategy)
  model.plain = Fake(answers)
  options = {'until': ['Q:'], 'max_gen_toks': 9}
  requests = [Instance('generate_until', {}, (f'{name} A:', options), 0) for name in 'ab']
  assert model.annotate(requests, strategy) == 1
  [row] = map(json.loads, path.read_text().splitlines())
  assert row['question'] == 'b A:' and row['answers'] == ['1', '2']
  path.write_text(json.dumps(row | {'rationale': ' Because.', 'answer': 'It is 2.'}))
  texts, model = answers_of(strategy, {'a A:': ['x'], 'b A:': ['y']}, 'a A:', 'b A:')
  assert texts == ['x', 'y']
  assert [prompt for prompt, _ in model.plain.asked] == ['b A: Because. It is 2.\n\na A:', 'b A:']


def test_strategies_that_leave_no_room_are_refused_before_a_run(tmp_path):
  options = {'until': ['.'], 'max_gen_toks': 5}
  request = Instance('generate_until', {}, ('x' * 200, options), 3, metadata=('t', 3, 1))
  check_room(TEXT, TreeOfThoughts(thoughts=1, breadth=1, depth=1, tokens=10), [request])
  with pytest.raises(ConfigError, match='question 3 takes up to .*: use fewer examples, or a smaller breadth'):
    check_room(TEXT, TreeOfThoughts(), [request])
  path = tmp_path / 'chain.json'
  path.write_text(json.dumps([{'template': '{input}{input}', 'max_new_tokens': 197}]))
  check_room(TEXT, Chaining(str(path)), [request], read_files(Chaining(str(path))))
  path.write_text(json.dumps([{'template': '{input}{input}', 'max_new_tokens': 198}]))
  with pytest.raises(ConfigError, match='shorten its templates'):
    check_room(TEXT, Chaining(str(path)), [request], read_files(Chaining(str(path))))


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
  ('zero_shot_cot:tokens=9', ZeroShotCoT(9)), ('auto_cot:clusters=3', AutoCoT(3)),
  ('chaining:file=a.json', Chaining('a.json')), ('tree_of_thoughts:breadth=4', TreeOfThoughts(breadth=4)),
  ('active_prompt:annotations=a,uncertainty=entropy', ActivePrompt('a', uncertainty='entropy'))])
def test_strategies_by_name(text, strategy):
  assert read_strategy(text) == strategy


@pytest.mark.parametrize('text, line', [
  ('self_consistent', "'self_consistent': no such strategy: use self_consistency"),
  ('other', 'use zero_shot_cot, self_consistency, auto_cot, '),
  ('auto_cot:n=3', 'has no such setting: use clusters, seed'),
  ('self_consistency:n=x', "'n=x': use a value such as 40"), ('self_consistency:n=0', 'n=0.*use 1 or more'),
  ('self_consistency:temperature=0', 'use a number above 0'), ('zero_shot_cot:tokens=0', 'tokens=0'),
  ('chaining', 'name the file'), ('tree_of_thoughts:depth=0', 'depth=0'), ('active_prompt', 'name the file'),
  ('active_prompt:annotations=a,uncertainty=b', 'use disagreement or entropy'),
  ('self_consistency:like_harness=maybe', 'use a value such as False'), ('auto_cot:clusters=0', 'clusters=0')])
def test_wrong_strategies_are_named(text, line):
  with pytest.raises(ConfigError, match=line):
    read_strategy(text)
