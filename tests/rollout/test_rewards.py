"""Rewards: what each gives, and what is said where one gives no number."""
import pathlib

import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.rewards import Exact, Function, Length, PythonParses, PythonPasses, Regex, reward_names
from llm_jax.config.rollout import Rollout
from llm_jax.data.prompts import Prompt
from llm_jax.rollout import rewards as rewards_module
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime.errors import RewardError
from llm_jax.runtime.sandbox import End, Outcome


def answer(text: str, ended: bool = True, length: int = 5, **columns) -> Answer:
  return Answer(Prompt('question', (1, 2), columns), (3,) * length, text, ended, (0.0,) * length)


def scores(reward, *answers: Answer) -> list[float]:
  return Rewards(Rollout((reward,))).score(answers)[0].tolist()


def test_each_kind():
  right, cut = answer(' 42\n', answer=42), answer('42', False, answer=42)
  assert scores(Exact(), right, cut, answer('4', answer=42)) == [1, 0, 0]
  assert scores(Regex(r'\A\d+\Z'), answer('12'), answer('12 apples')) == [1, 0]
  fenced = '```python\nx = 1\n```'
  assert scores(PythonParses(), answer(fenced), answer('x = 1'), answer('x ='), answer('x = 1', False)) == [1, 1, 0, 0]
  lengths = [answer('', length=length) for length in (4, 6, 8, 10, 30)]
  assert scores(Length(longest=10, margin=4), *lengths) == [0, 0, -0.5, -1, -1]


def test_programs_pass_the_tests_of_their_row():
  """The sandbox's own tests have what else a program may not do."""
  tests = ['assert add(2, 2) == 4', 'assert add(-1, 1) == 0']
  right, wrong = 'def add(a, b):\n  return a + b', 'def add(a, b):\n  return a * b'
  answers = [
    answer(f'Here:\n```python\n{right}\n```\nDone.', tests=tests), answer(right, tests='\n'.join(tests)),
    answer(right, False, tests=tests),  # cut off
    answer(wrong, tests=tests), answer('def add(', tests=tests), answer('import sys\nsys.exit(0)', tests=tests),
    answer('open("/tmp/x", "w")', tests=tests), answer(f'while True: pass\n{right}', tests=tests),
    answer(right, tests=tests),
  ]
  reward = PythonPasses(allow_code=True, seconds=2.0)
  assert scores(reward, *answers) == [1, 1, 0, 0, 0, 0, 0, 0, 1]


def test_equal_programs_are_run_once(monkeypatch):
  ran: list[str] = []
  monkeypatch.setattr(rewards_module, 'run_program', lambda program, limits: ran.append(program) or Outcome(End.PASSED))
  same = [answer('x = 1', tests='assert x') for _ in range(3)]
  assert scores(PythonPasses(allow_code=True), *same, answer('x = 2', tests='assert x')) == [1] * 4
  assert ran == ['x = 1\nassert x\n', 'x = 2\nassert x\n']


@pytest.mark.parametrize('columns, message', [
  ({}, "has no 'tests', only"), ({'tests': 3}, 'has tests=3: give a program, or a list of programs'),
])
def test_rows_without_tests_are_named(columns, message):
  with pytest.raises(RewardError, match=message):
    scores(PythonPasses(allow_code=True), answer('x', **columns))


def test_weights_and_names(tmp_path):
  rollout = Rollout((Regex('a', weight=2.0), Regex('b', weight=-0.5), Exact()))
  assert rollout.names == ('regex', 'regex:2', 'exact')
  rewards = Rewards(rollout)
  found = rewards.score([answer('ab', answer='ab'), answer('b', answer='a')])
  np.testing.assert_array_equal(found, [[1, 0], [1, 1], [1, 0]])
  np.testing.assert_array_equal(rewards.weighted(found), [2.5, -0.5])
  assert reward_names((Function('a.py:f'), Function('b.py:f'))) == ('f', 'f:2')


def write(folder: pathlib.Path, body: str) -> Function:
  path = folder / 'rewards.py'
  path.write_text(f'def score(prompts, answers, **columns):\n  {body}\n')
  return Function(f'{path}:score')


def test_a_function_gets_prompts_answers_and_columns(tmp_path):
  reward = write(tmp_path, 'return [len(p) + len(a) + (w or 0) for p, a, w in zip(prompts, answers, columns["w"])]')
  assert scores(reward, answer('ab', w=10), answer('abc')) == [20, 11]


@pytest.mark.parametrize('body, message', [
  ('return [0.0, float("nan")]', "reward score gave nan for row 1, the answer 'second' to 'question'"),
  ('return [1.0]', 'reward score gave 1 numbers for 2 answers'),
  ('return None', 'reward score gave a NoneType for 2 answers'),
  ('return [1.0, "good"]', "reward score gave 'good' for row 1"),
  ('return [1 / 0]', 'reward score raised ZeroDivisionError: division by zero'),
])
def test_what_is_no_number_is_named(body, message, tmp_path):
  with pytest.raises(RewardError) as caught:
    scores(write(tmp_path, body), answer('first'), answer('second'))
  assert message in str(caught.value)


def test_a_column_that_a_row_lacks_is_named():
  with pytest.raises(RewardError, match="has no 'answer', only"):
    scores(Exact(), answer('x', other=1))


@pytest.mark.parametrize('path, message', [
  ('nowhere.py:f', 'no such file'), ('{folder}/rewards.py:other', "has no function of that name, only .'score'."),
])
def test_a_function_that_is_not_there(path, message, tmp_path):
  write(tmp_path, 'return []')
  with pytest.raises(ConfigError, match=message):
    Rewards(Rollout((Function(path.format(folder=tmp_path)),)))


def test_a_file_that_cannot_be_imported(tmp_path):
  (tmp_path / 'bad.py').write_text('import nothing_of_that_name')
  with pytest.raises(ConfigError, match='cannot be imported: ModuleNotFoundError'):
    Rewards(Rollout((Function(f'{tmp_path}/bad.py:f'),)))


@pytest.mark.parametrize('make, message', [
  (lambda: Regex('('), "pattern = '.': no regular expression"),
  (lambda: Function('rewards.score'), 'name a file and a function of it'),
  (lambda: Length(10, 0), 'margin = 0'),
  (lambda: Exact(weight=float('inf')), 'weight = inf'),
  (lambda: PythonPasses(), 'allow_code = False: it runs code that the model writes'),
  (lambda: Rollout((Exact(),), temperature=0.0), 'temperature = 0.0'),
])
def test_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
