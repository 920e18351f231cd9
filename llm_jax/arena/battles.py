"""Battles: two models' answers to one prompt, and which of them is the better one."""
import dataclasses
import itertools
import json
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.config.errors import ConfigError, require
from llm_jax.runtime.files import write_atomic

CHOICES = {'left': 1.0, 'right': 0.0, 'tie': 0.5}  # what the model on the left gets


@dataclasses.dataclass(frozen=True)
class Battle:
  """number: by which votes name it.

  left, right: names of the models; who votes does not see them.
  """
  number: int
  prompt: str
  left: str
  right: str
  left_answer: str
  right_answer: str


Vote = tuple[int, str]  # the number of a battle, and one of CHOICES


def make_battles(prompts: Sequence[str], answers: Mapping[str, Sequence[str]], seed: int = 0) -> list[Battle]:
  """Every two models on every prompt, in a random order and on random sides.

  Args:
    answers: by model, one for each prompt.
  """
  draw = random.Random(seed)
  pairs = list(itertools.product(range(len(prompts)), itertools.combinations(answers, 2)))
  draw.shuffle(pairs)
  battles: list[Battle] = []
  for number, (prompt, names) in enumerate(pairs):
    left, right = draw.sample(names, 2)
    battles.append(Battle(number, prompts[prompt], left, right, answers[left][prompt], answers[right][prompt]))
  return battles


Score = Callable[[Sequence[tuple[str, str]]], Sequence[float] | np.ndarray]  # of prompts with an answer
Orders = Callable[[Sequence[Battle]], np.ndarray]  # that left is better, where it is first and second: [battles, 2]


def by_score(battles: Sequence[Battle], score: Score) -> list[Vote]:
  """Votes of a verifier or a reward model, which give a number to an answer; the larger one wins, and equal ones
  tie."""
  left = score([(battle.prompt, battle.left_answer) for battle in battles])
  right = score([(battle.prompt, battle.right_answer) for battle in battles])
  choices = ['tie' if a == b else 'left' if a > b else 'right' for a, b in zip(left, right, strict=True)]
  return [(battle.number, choice) for battle, choice in zip(battles, choices, strict=True)]


def by_orders(battles: Sequence[Battle], orders: Orders) -> list[Vote]:
  """Votes of a language model that is asked in both orders: an answer wins that is the better one in both, and else
  there is a tie, for then the place decides (Zheng et al. 2023, section 3.4)."""
  is_left = orders(battles) > 0.5
  choices = ['left' if both.all() else 'tie' if both.any() else 'right' for both in is_left]
  return [(battle.number, choice) for battle, choice in zip(battles, choices, strict=True)]


def tally(battles: Sequence[Battle], votes: Sequence[Vote]) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Names of the models, wins and ties as `rate` takes them.

  Raises:
    ConfigError: there is no vote.
  """
  require(len(votes) > 0, 'votes', 0, 'there is none: vote first')
  names = sorted({name for battle in battles for name in (battle.left, battle.right)})
  wins = np.zeros((len(names), len(names)))
  ties = np.zeros_like(wins)
  for first, second, result in results(battles, votes):
    i, j = names.index(first), names.index(second)
    match result:
      case 1.0:
        wins[i, j] += 1
      case 0.0:
        wins[j, i] += 1
      case _:
        ties[i, j] += 1
        ties[j, i] += 1
  return names, wins, ties


def results(battles: Sequence[Battle], votes: Sequence[Vote]) -> list[tuple[str, str, float]]:
  """(left model, right model, what the left one got) of each vote, in the order of the votes."""
  by_number = {battle.number: battle for battle in battles}
  return [(by_number[number].left, by_number[number].right, CHOICES[choice]) for number, choice in votes]


# ------------------------------------------------------------------------------------------- files
def write_battles(path: pathlib.Path, battles: Sequence[Battle]) -> None:
  write_atomic(path, ''.join(json.dumps(dataclasses.asdict(battle)) + '\n' for battle in battles))


def read_battles(path: pathlib.Path) -> list[Battle]:
  try:
    return [Battle(**row) for row in _rows(path)]
  except TypeError as error:
    raise ConfigError('battles', str(path), f'is no file of battles ({error}): make it with --prompts') from error


def write_votes(path: pathlib.Path, votes: Sequence[Vote]) -> None:
  write_atomic(path, ''.join(json.dumps({'battle': number, 'choice': choice}) + '\n' for number, choice in votes))


def read_votes(path: pathlib.Path, battles: Sequence[Battle]) -> list[Vote]:
  """The votes of a file, as the page writes it.

  Raises:
    ConfigError: a line is no vote, or of a battle that is not there.
  """
  numbers = {battle.number for battle in battles}
  votes: list[Vote] = []
  for place, row in enumerate(_rows(path), 1):
    number: Any = row.get('battle')
    choice = row.get('choice')
    require(number in numbers, f'{path}:{place}: battle', number, 'there is no such battle here: name its votes')
    require(choice in CHOICES, f'{path}:{place}: choice', choice, f'use one of {", ".join(CHOICES)}')
    votes.append((int(number), str(choice)))
  return votes


def read_prompts(path: pathlib.Path) -> list[str]:
  """One prompt a line: JSON lines with a `prompt`, or plain text."""
  if path.suffix == '.jsonl':
    prompts = [row.get('prompt') for row in _rows(path)]
    require(all(isinstance(prompt, str) for prompt in prompts), '--prompts', str(path), "every line needs a 'prompt'")
  else:
    prompts = [line for line in _text(path).splitlines() if line.strip()]
  require(len(prompts) > 0, '--prompts', str(path), 'there is no prompt in it')
  return [str(prompt) for prompt in prompts]


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  rows: list[dict[str, Any]] = []
  for number, line in enumerate(_text(path).splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ConfigError(f'{path}:{number}', line, 'is no JSON') from error
    require(isinstance(row, dict), f'{path}:{number}', line, 'is no JSON object')
    rows.append(row)
  return rows


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise ConfigError('file', str(path), f'cannot be read ({error}): name another') from error
