"""The Game of 24 with a model that proposes every step and judges by computing."""
import functools
import itertools
import random
from fractions import Fraction

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.prompting.game_of_24 import ByValue, GameOf24, Left
from llm_jax.prompting.program import run_together
from llm_jax.prompting.tree_of_thoughts import ByVote, breadth_first, depth_first, votes

SIGNS = {'+': lambda a, b: a + b, '-': lambda a, b: a - b, '*': lambda a, b: a * b,
         '/': lambda a, b: a / b if b else None}


@functools.cache
def reaches(numbers):
  """Whether 24 can be made of the numbers, by trying everything."""
  if len(numbers) == 1:
    return numbers == (24,)
  return any(reaches(left) for _, left in steps(numbers))


def steps(numbers):
  """(line, what is left) of every legal step."""
  for i, j in itertools.permutations(range(len(numbers)), 2):
    rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
    for sign, compute in SIGNS.items():
      result = compute(numbers[i], numbers[j])
      if result is not None:
        yield f'{numbers[i]} {sign} {numbers[j]} = {result} (left: whatever)', tuple(sorted([*rest, result]))


def numbers_of(ask):
  lines = ask.prompt.strip().splitlines()
  line = lines[-2 if 'Possible' in ask.prompt else -1]
  return tuple(sorted(map(Fraction, line.removeprefix('Input: ').split())))


def oracle(asks):
  answers = []
  for ask in asks:
    numbers = numbers_of(ask)
    if 'Possible' in ask.prompt:
      said = '\n'.join(['nonsense', '1 + 1 = 24', *(line for line, _ in steps(numbers))])
    else:
      said = 'they can\nsure' if reaches(numbers) else 'they cannot: impossible'
    answers.append((said,) * ask.samples)
  return answers


def puzzles(count):
  draw = random.Random(0)
  return [tuple(draw.choices(range(1, 14), k=4)) for _ in range(count)]


def is_solution(state, numbers):
  """Its steps, computed anew, make 24 of the four numbers."""
  left = list(map(Fraction, numbers))
  for step in state.steps:
    one, sign, other, _, result = step.split()
    left.remove(Fraction(one))
    left.remove(Fraction(other))
    assert SIGNS[sign](Fraction(one), Fraction(other)) == Fraction(result)
    left.append(Fraction(result))
  return left == [24]


@pytest.mark.parametrize('search', [
  lambda problem: breadth_first(problem, ByValue(), breadth=5, depth=3),
  lambda problem: breadth_first(problem, ByValue(1), breadth=1, depth=3),
  lambda problem: depth_first(problem, ByValue(), threshold=1.0, depth=3, budget=500)])
def test_all_that_can_be_solved_is_solved(search):
  numbers = puzzles(30)
  found = run_together([search(GameOf24(four)) for four in numbers], oracle)
  solvable = [reaches(tuple(sorted(map(Fraction, four)))) for four in numbers]
  assert [one.is_solved for one in found] == solvable and 5 < sum(solvable) < 30
  assert all(is_solution(one.best[0], four) for one, four in zip(found, numbers, strict=True) if one.is_solved)


def test_a_breadth_of_one_is_a_greedy_chain():
  """Of thoughts whose values say nothing the first is kept."""
  def model(asks):
    steps_of = lambda ask: '\n'.join(line for line, _ in steps(numbers_of(ask)))
    return [(steps_of(ask) if 'Possible' in ask.prompt else 'likely',) * ask.samples for ask in asks]

  [found] = run_together([breadth_first(GameOf24((1, 2, 3, 4)), ByValue(), 1, 3)], model)
  assert found.best[0].steps == ('1 + 2 = 3', '3 + 3 = 6', '4 + 6 = 10') and not found.is_solved


def test_steps_are_computed_and_not_believed():
  state = GameOf24((4, 4, 6, 8)).root()
  assert state.after('4 + 8 = 99') == Left((Fraction(4), Fraction(6), Fraction(12)), ('4 + 8 = 12',))
  for line in ('5 + 4 = 9', '8 + 8 = 16', '4 / 0 = 1', 'no step', '4 ^ 4 = 256', '1/0 + 4 = 3'):
    assert state.after(line) is None


def test_votes_are_counted():
  assert votes(['The best is 2', 'choice: 2.', 'I like 1', '7', 'none'], 3) == [1, 2, 0]
  judge = ByVote('Which is nearest to 24?', lambda state: state.shown, samples=3)
  states = [GameOf24((1, 1, 1, 1)).root(), GameOf24((4, 6, 1, 1)).root()]
  [ask] = judge.ask(states)
  assert 'Choice 1: 1 1 1 1\nChoice 2: 1 1 4 6' in ask.prompt and ask.samples == 3
  assert judge.values(states, [['2', '2', '1']]) == [1, 2]


def test_a_search_ends():
  budget = depth_first(GameOf24((13, 13, 13, 13)), ByValue(), threshold=-1.0, depth=3, budget=40)
  [found] = run_together([budget], oracle)
  assert not found.is_solved and found.visited <= 40
  nothing = breadth_first(GameOf24((1, 2, 3, 4)), ByValue(), 5, 3)
  [found] = run_together([nothing], lambda asks: [('nothing',) * ask.samples for ask in asks])
  assert not found.is_solved and found.visited == 0
  with pytest.raises(ConfigError, match='breadth = 0'):
    run_together([breadth_first(GameOf24((1, 2, 3, 4)), ByValue(), 0, 3)], oracle)
