"""What is chosen of several answers to a prompt."""
import itertools

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  DPO,
  AdamW,
  BestOf,
  Constant,
  Exact,
  JudgedPairs,
  JudgePreference,
  PairJudge,
  Params,
  PassRate,
  Principle,
  Prompts,
  RankedPairs,
  RevisedAnswers,
  Revisions,
  Run,
  Samples,
  SortedDigits,
  Text,
  mix,
  presets,
  stage,
)
from llm_jax.rollout.ranking import rows_of

SAMPLES = Samples('texts', SortedDigits(), (Exact(),), answers=4, max_new_tokens=8)


def record(*answers, prompt='2+2='):
  """Answers are (text, reward) or (text, reward, ended)."""
  made = [{'text': text, 'reward': reward, 'ended': bool(ended)} for text, reward, *rest in answers
          for ended in [rest[0] if rest else True]]
  return {'prompt': prompt, 'answers': made}


def best(*answers, at_least=None):
  found = list(rows_of(BestOf(SAMPLES, at_least), [record(*answers)]))
  return [row['messages'][-1]['content'] for row in found]


def pairs(*answers, **fields):
  found = list(rows_of(RankedPairs(SAMPLES, **fields), [record(*answers)]))
  return [(row['chosen'], row['rejected']) for row in found]


def test_the_best_is_learnt_behind_its_prompt():
  system = [{'role': 'system', 'content': 'be short'}, {'role': 'user', 'content': 'hello'}]
  rows = list(rows_of(BestOf(SAMPLES), [record(('5', 0.0), ('4', 1.0)), record(('hi', -1.0), prompt=system)]))
  assert [row['messages'] for row in rows] == [
    [{'role': 'user', 'content': '2+2='}, {'role': 'assistant', 'content': '4'}],
    [*system, {'role': 'assistant', 'content': 'hi'}]]


def test_of_equal_ones_the_first():
  assert best(('a', 0.5), ('b', 0.5), ('c', 0.1)) == ['a']


def test_what_was_cut_off_or_says_nothing_is_not_learnt():
  assert best(('long', 9.0, False), (' ', 8.0), ('short', 0.1)) == ['short']
  assert best(('long', 9.0, False)) == []
  assert pairs(('long', 9.0, False), ('a', 1.0), ('', 0.0), ('b', 0.5)) == [('a', 'b')]


def test_prompts_whose_answers_all_fail_are_left_out():
  assert best(('a', 0.0), ('b', 0.9), at_least=1.0) == []
  assert best(('a', 0.0), ('b', 1.0), at_least=1.0) == ['b']


def test_the_best_and_the_worst():
  assert pairs(('a', 0.2), ('b', 0.9), ('c', -1.0), ('d', 0.5)) == [('b', 'c')]
  assert pairs(('a', 0.2), ('b', 0.2)) == []  # nothing is preferred
  assert pairs(('a', 0.2), ('b', 0.9), least_gap=0.8) == []
  assert pairs(('a ', 0.2), ('a', 0.9)) == []


def test_all_pairs_that_differ():
  """InstructGPT has all K (K - 1) / 2 of K answers without ties; equal texts are told once."""
  rewards = {'a': 0.2, 'b': 0.9, 'c': -1.0, 'd': 0.2}
  want = {(x, y) for x, y in itertools.permutations(rewards, 2) if rewards[x] > rewards[y]}
  found = pairs(*rewards.items(), ('b', 0.9), pairs='all')
  assert set(found) == want and len(found) == len(want) == 5


# ---------------------------------------------------------------------------------------------- stages
ROWS = dict(seq_len=32, batch_size=4, steps=2, learning_rate=Constant(1e-3), optimizer=AdamW())


def test_stages_that_learn_from_them():
  """Their rows and templates are those of what is written, and held-out prompts are those of the samples."""
  rounds = stage('best', mix(BestOf(SAMPLES)), **ROWS, init=Params('texts'), evals=(PassRate(),))
  assert rounds.samples == (SAMPLES,) and rounds.answering == SAMPLES and rounds.data.template is None
  chats = Samples('texts', Prompts('prompts.jsonl', template='llama3'), (Exact(),))
  pairs = stage('dpo', RankedPairs(chats), **{**ROWS, 'seq_len': 256}, objective=DPO(), init=Params('texts'))
  assert pairs.data.template == 'llama3'


@pytest.mark.parametrize('make, message', [
  (lambda: Samples('texts', SortedDigits(), ()), 'rewards = ..: name at least one'),
  (lambda: Samples('texts', SortedDigits(), (Exact(),), answers=1), 'answers = 1: the best is chosen among several'),
  (lambda: Samples('texts', SortedDigits(), (Exact(),), rows_at_once=4), 'rows_at_once = 4: answers to one prompt'),
  (lambda: Samples('texts', SortedDigits(), (Exact(),), count=0), 'count = 0'),
  (lambda: RankedPairs(SAMPLES, pairs='some'), "pairs = 'some'"),
  (lambda: stage('best', BestOf(SAMPLES), **{**ROWS, 'seq_len': 8}), 'samples.max_new_tokens = 8: leaves no room'),
  (lambda: stage('best', BestOf(SAMPLES), **ROWS, objective=DPO(), init=Params('texts')), 'learns from pairs of'),
  (lambda: stage('best', RankedPairs(SAMPLES), **ROWS), "objective = 'LanguageModel': learns from text"),
  (lambda: PassRate(temperature=0.0), 'temperature = 0.0: use 0.001 or more, or None for that of the rollout'),
  (lambda: stage('a', Text('books'), **ROWS, evals=(PassRate(),)), 'the stage has neither a rollout nor samples'),
  (lambda: Run(presets.llama(d_model=16, num_layers=1, num_heads=2, vocab_size=257), (
    stage('best', BestOf(SAMPLES), **ROWS),)), "samples.stage = 'texts': name an earlier stage"),
])
def test_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


# ---------------------------------------------------------------------------------------------- a judge, and revisions
JUDGE = PairJudge(Params('texts'), '{prompt} {first} {second}')
JUDGED = Samples('texts', SortedDigits(), (JudgePreference(JUDGE),), answers=2, max_new_tokens=8)


def test_a_judged_pair_has_the_probability_of_its_chosen_answer():
  records = [record(('5', 0.2), ('4', 0.8)), record(('yes', 0.5), ('no', 0.5)), record(('a', 0.9), (' a', 0.1)),
             record(('a', 0.9, False), ('b', 0.1)), record(('a', 0.9), (' ', 0.1))]
  rows = list(rows_of(JudgedPairs(JUDGED), records))
  assert [(row['chosen'], row['rejected'], row['soft_label']) for row in rows] == [('4', '5', 0.8), ('no', 'yes', 0.5)]


@pytest.mark.parametrize('keep, want', [('all', ['b', 'd', 'e']), ('last', ['d', 'e'])])
def test_revisions_that_were_kept_are_learnt(keep, want):
  revision = lambda text, kept=True: {'text': text, 'kept': kept}
  records = [{'prompt': 'p', 'revisions': [revision('b'), revision('c', False), revision('d')]},
             {'prompt': 'q', 'revisions': [revision('e'), revision(None, False)]}, {'prompt': 'r', 'revisions': []}]
  source = RevisedAnswers(Revisions('texts', SortedDigits(), (Principle('again'),)), keep)
  rows = list(rows_of(source, records))
  assert [row['messages'][-1] for row in rows] == [{'role': 'assistant', 'content': text} for text in want]
  assert rows[-1]['messages'][0] == {'role': 'user', 'content': 'q'}


@pytest.mark.parametrize('make, message', [
  (lambda: JudgedPairs(SAMPLES), 'samples.rewards = .*: the probability that the one answer is better is the label'),
  (lambda: JudgedPairs(Samples('a', SortedDigits(), (JudgePreference(JUDGE),), answers=3)),
   'samples.answers = 3: the judge compares two'),
  (lambda: JudgedPairs(Samples('a', SortedDigits(), (JudgePreference(JUDGE, weight=2.0),), answers=2)),
   'samples.rewards = .*: the probability'),
  (lambda: Revisions('a', SortedDigits(), ()), 'principles = .*: name at least one'),
  (lambda: RevisedAnswers(Revisions('a', SortedDigits(), (Principle('x'),)), 'first'), "keep = 'first': use one of"),
])
def test_refused_of_judged_pairs_and_revisions(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_a_demonstration_is_chosen_before_every_other_answer():
  """Once before each text, however it was rewarded; not before itself."""
  source = RankedPairs(SAMPLES, demonstration='answer')
  made = record(('5', 0), ('4', 1), ('3', 0), ('5', 0), ('6', 0, False))
  rows = list(rows_of(source, [{**made, 'columns': {'answer': 4}}]))
  assert [(row['chosen'], row['rejected']) for row in rows] == [('4', '5'), ('4', '3')]
  assert source.file_name != RankedPairs(SAMPLES).file_name
  with pytest.raises(ConfigError, match="demonstration = 'answer': the row of the prompt '2.2=' has only ..other"):
    list(rows_of(source, [{**made, 'columns': {'other': 4}}]))
