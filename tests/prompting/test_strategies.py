"""Strategies on a model that knows its answers by heart, against lm-evaluation-harness and scikit-learn."""
import json
import math
import random
import zlib

import numpy as np
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.filters.extraction import RegexFilter
from lm_eval.filters.selection import MajorityVoteFilter
from sklearn.cluster import KMeans

from llm_jax.config.errors import ConfigError
from llm_jax.harness.index import official
from llm_jax.harness.tasks import TaskSource, build_requests, load_tasks
from llm_jax.prompting import active, auto_cot, chain_of_thought
from llm_jax.prompting.answers import LAST_NUMBER, STRICT_NUMBER, UNPARSED, Pattern, disagreement, entropy, majority
from llm_jax.prompting.chaining import Link, chain
from llm_jax.prompting.few_shot import Normalisation, choose
from llm_jax.prompting.program import Exemplar, Generate, Score, ScoredText, run_together

THEREFORE = chain_of_thought.THEREFORE


class ByHeart:
  """Answers from a dictionary of the ends of prompts; keeps what it is asked, round by round."""

  def __init__(self, answers):
    self.answers, self.rounds = answers, []

  def __call__(self, asks):
    self.rounds.append(list(asks))
    return [self.answer(ask) for ask in asks]

  def answer(self, ask):
    if isinstance(ask, Score):
      return tuple(scored(ask.prompt, choice) for choice in ask.choices)
    said = next(text for end, text in self.answers.items() if ask.prompt.endswith(end))
    return tuple(said) if isinstance(said, list) else (said,) * ask.samples


def scored(prompt, choice):
  """Any number that depends on both."""
  return ScoredText(-zlib.crc32(f'{prompt}|{choice}'.encode()) / 2**28, 1 + len(choice) // 3)


# ---------------------------------------------------------------------------------------------- programs
def test_what_all_programs_ask_is_answered_at_once():
  def count(number):
    for turn in range(number):
      yield [Generate(f'{number} {turn}')] * number
    return number

  model = ByHeart({'': 'x'})
  assert run_together([count(2), count(0), count(3)], model) == [2, 0, 3]
  assert [len(asks) for asks in model.rounds] == [5, 5, 3]


# ---------------------------------------------------------------------------------------------- few-shot
QUESTIONS = [{'question': f'{i} and {j}?', 'choices': ['one', 'a much longer one', 'three'], 'answer': j % 3}
             for i in range(6) for j in range(6)]
EXAMPLES = [Exemplar('Why?', 'So.'), Exemplar('How?', 'Well.')]


@pytest.mark.parametrize('normalisation, metric', [
  (Normalisation.NONE, 'acc'), (Normalisation.PER_BYTE, 'acc_norm'), (Normalisation.UNCONDITIONAL, 'acc_mutual_info')])
def test_choices_are_those_of_the_harness(normalisation, metric):
  task = ConfigurableTask(config={
    'task': 'mine', 'output_type': 'multiple_choice', 'doc_to_text': 'Q: {{question}}\nA:', 'test_split': 'test',
    'doc_to_choice': '{{choices}}', 'doc_to_target': '{{answer}}',
    'custom_dataset': lambda **_: {'test': __import__('datasets').Dataset.from_list(QUESTIONS)},
    'metric_list': [{'metric': metric, 'aggregation': 'mean', 'higher_is_better': True}]})
  programs = [choose(row['question'], row['choices'], normalisation=normalisation, unconditional='')
              for row in QUESTIONS]
  chosen = run_together(programs, ByHeart({}))
  for doc, place in zip(task.test_docs(), chosen, strict=True):
    results = [(scored(*request.args).log_prob, False)
               for request in task.construct_requests(doc, task.doc_to_text(doc), metadata=('mine', 0, 1))]
    assert task.process_results(doc, results)[metric] == (place == doc['answer'])
  assert len(set(chosen)) == 3


def test_choices_by_tokens_and_behind_examples():
  model = ByHeart({})
  [place] = run_together([choose('What?', ['a', 'bcdefgh'], EXAMPLES, Normalisation.PER_TOKEN)], model)
  [[ask]] = model.rounds
  assert ask == Score('Q: Why?\nA: So.\n\nQ: How?\nA: Well.\n\nQ: What?\nA:', (' a', ' bcdefgh'))
  values = [scored(ask.prompt, choice).log_prob / (1 + len(choice) // 3) for choice in ask.choices]
  assert place == int(np.argmax(values))


# ---------------------------------------------------------------------------------------------- chains of thought
def gsm8k(name, tmp_path):
  """(prompt of the harness, the examples of its task)."""
  path = tmp_path / 'gsm8k.jsonl'
  rows = [{'question': f'How many are {i} apples?', 'answer': f'#### {i}'} for i in range(3)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  task = load_tasks(TaskSource((name,), {name: path})).tasks[name]
  [prompt, *_] = [request.args[0] for request in build_requests({name: task}, 1, 0, None, None, True)[name]]
  samples = task.fewshot_cfg.samples or []
  return prompt, [Exemplar(row['question'], row['target']) for row in samples]


def test_prompts_are_those_of_the_harness(tmp_path):
  prompt, examples = gsm8k('gsm8k_cot', tmp_path)
  model = ByHeart({'': ' So it is 1. The answer is 1.'})
  [found] = run_together([chain_of_thought.few_shot_cot('How many are 0 apples?', examples)], model)
  assert len(examples) == 8 and model.rounds[0][0].prompt == prompt and found.answer == '1.'
  assert model.rounds[0][0].stops == ('Q:', '</s>', '<|im_end|>')
  zero_shot, _ = gsm8k('gsm8k_cot_zeroshot', tmp_path)
  model = ByHeart({'is': ' 7.\nQ:', 'step.': ' We think.\n'})
  [found] = run_together([chain_of_thought.zero_shot_cot('How many are 0 apples?')], model)
  assert model.rounds[0][0].prompt == zero_shot
  assert model.rounds[1][0].prompt == f'{zero_shot} We think.\nTherefore, the answer (arabic numerals) is'
  assert found.answer == '7.'
  assert found.texts == (' We think.\nTherefore, the answer (arabic numerals) is 7.\nQ:',)


def random_texts(count):
  draw = random.Random(0)
  parts = ['The answer is ', '-', '$', '3', '17', '1,000', '.', ' ', '\n', 'so', '4.5', ',', '##', 'is -2.', '9']
  return [''.join(draw.choices(parts, k=draw.randrange(9))) for _ in range(count)]


@pytest.mark.parametrize('pattern', [STRICT_NUMBER, LAST_NUMBER, Pattern(r'(a)?(b)?x', 0)])
def test_extraction_is_that_of_the_harness(pattern):
  texts = [*random_texts(10_000), 'x', 'bx', 'abx']
  [expected] = RegexFilter(pattern.expression, pattern.which).apply([texts], [])
  assert [pattern(text) for text in texts] == expected
  assert len(set(expected)) > 2 and UNPARSED in expected


def test_votes():
  draw = random.Random(0)
  for _ in range(300):
    answers = draw.choices(['1', '2', '3', UNPARSED], k=draw.randrange(1, 8))
    [[expected]] = MajorityVoteFilter().apply([answers], [])
    assert majority(answers, drop_unparsed=False) == expected
  five = [UNPARSED, '4', UNPARSED, '4', UNPARSED]  # the harness takes what could not be read for the answer
  assert majority(five, drop_unparsed=False) == UNPARSED and majority(five) == '4'
  assert majority([UNPARSED]) == UNPARSED


def test_self_consistency():
  chains = [' It is 5. The answer is 5.', ' Hm. The answer is 6.', ' Or so. The answer is 6.', ' No idea']
  model = ByHeart({'A:': chains})
  ask = Generate('Q: How many?\nA:', 4, 0.7)
  [found] = run_together([chain_of_thought.self_consistency(ask, STRICT_NUMBER)], model)
  assert found.answer == '6' and found.text == chains[1] and found.answers == ('5', '6', '6', UNPARSED)


def test_prompts_are_chained():
  model = ByHeart({'Translate: Hallo': ' hello ', 'Shout: hello': 'HELLO', 'Compare hello with Hallo': 'yes'})
  links = [Link('Translate: {input}', 'english'), Link('Shout: {previous}'), Link('Compare {english} with {input}')]
  assert run_together([chain(links, 'Hallo')], model) == [['hello', 'HELLO', 'yes']]
  assert [asks[0].prompt for asks in model.rounds] == ['Translate: Hallo', 'Shout: hello', 'Compare hello with Hallo']
  with pytest.raises(ConfigError, match="'french' is no answer of a link before it: use one of input, previous"):
    run_together([chain([Link('{french}')], 'Hallo')], model)


# ---------------------------------------------------------------------------------------------- Auto-CoT
def test_clusters_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  for seed in range(5):
    vectors = np.concatenate([rng.normal(center, 1.5, (30, 6)) for center in (0, 3, 6)])
    centres = vectors[rng.choice(90, 4, replace=False)]
    ours = auto_cot.lloyd(vectors, centres)
    theirs = KMeans(4, init=centres, n_init=1, algorithm='lloyd', tol=0).fit(vectors)
    assert (ours.labels == theirs.labels_).all()
    np.testing.assert_allclose(ours.centres, theirs.cluster_centers_, atol=1e-9)
    drawn = auto_cot.k_means(vectors, 3, seed)
    best = KMeans(3, n_init=10, random_state=0).fit(vectors).inertia_
    inertia = ((vectors - drawn.centres[drawn.labels]) ** 2).sum()
    assert inertia <= 1.3 * best
    assert (drawn.labels == auto_cot.k_means(vectors, 3, seed).labels).all()


def test_examples_differ_and_are_simple():
  """Of two clusters; the nearest question of the first is too long, its second reasons at too great length."""
  questions = ['apples ' * 61, 'apples and apples', 'apples apples pears', 'trains', 'trains and trains']
  vectors = np.array([[0.0, 0], [0.1, 0], [0.25, 0], [5, 5], [5, 9]])
  groups = auto_cot.nearest_first(vectors, auto_cot.lloyd(vectors, vectors[[0, 3]]))
  assert groups[0] == [1, 0, 2] and set(groups[1]) == {3, 4}
  model = ByHeart({
    "apples and apples\nA: Let's think step by step.": '\n'.join(['a step'] * 6),
    "apples apples pears\nA: Let's think step by step.": ' One.\nTwo.\n',
    "trains\nA: Let's think step by step.": ' Steam.',
    f'a step\n{THEREFORE}': ' 3.', f'Two.\n{THEREFORE}': ' 4', f'Steam.\n{THEREFORE}': ' no number'})
  programs = [auto_cot.example_of([questions[i] for i in group]) for group in ([0, 1, 2], [3])]
  assert run_together(programs, model) == [Exemplar('apples apples pears', 'The answer is 4.', 'One.\nTwo.'), None]
  assert all(len(auto_cot.auto_cot(questions, auto_cot.word_vectors(questions), count)) == count for count in (1, 2, 5))
  with pytest.raises(ConfigError, match='clusters = 6: use 1 to 5'):
    auto_cot.auto_cot(questions, vectors, 6)


def test_word_vectors():
  vectors = auto_cot.word_vectors(['the red apple', 'the red apple!', 'the train'])
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
  assert vectors[0] @ vectors[1] == pytest.approx(1) and vectors[0] @ vectors[2] < 1e-9


# ---------------------------------------------------------------------------------------------- Active-Prompt
def test_the_most_unsure_questions_are_annotated(tmp_path):
  answers = {'a A:': ['1', '1', '1', '1'], 'b A:': ['1', '2', '3', '2'], 'c A:': ['1', '2', '1', '1']}
  model = ByHeart(answers)
  programs = [active.ask_often(Generate(prompt, 4, 0.7), prompt[0]) for prompt in answers]
  pool = run_together(programs, model)
  assert [item.uncertainty for item in pool] == [0.25, 0.75, 0.5]
  assert entropy(answers['b A:']) == pytest.approx(2 * math.log(4) / 4 + math.log(2) / 2)
  assert entropy(answers['a A:']) == 0 and disagreement(['x']) == 1
  chosen = active.most_unsure(pool, 2)
  assert [item.question for item in chosen] == ['b', 'c']
  path = tmp_path / 'annotations.jsonl'
  active.write_annotations(chosen, path)
  with pytest.raises(ConfigError, match="annotations.jsonl:1' = .*has no rationale|:1.*has no rationale"):
    active.read_annotations(path)
  rows = [json.loads(line) | {'rationale': 'Because.', 'answer': 'So.'} for line in path.read_text().splitlines()]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert active.read_annotations(path) == [Exemplar('b', 'So.', 'Because.'), Exemplar('c', 'So.', 'Because.')]
  for content, line in (('{', ':1.*is damaged'), ('', 'it holds no question'), ('{"question": "a"}', 'is damaged')):
    path.write_text(content)
    with pytest.raises(ConfigError, match=line):
      active.read_annotations(path)
  with pytest.raises(ConfigError, match='count = 4: use 1 to 3'):
    active.most_unsure(pool, 4)


def test_the_definitions_are_there():
  assert {'gsm8k_cot', 'gsm8k_cot_zeroshot'} <= official().tasks.keys()
