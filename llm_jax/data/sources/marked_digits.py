"""Texts of a made-up task in which answers may break principles, and how they are criticised, revised and judged."""
import functools
import random
from collections.abc import Iterator

from llm_jax.config.marked_digits import CRITIQUE, JUDGE, MARKS, REVISION, MarkedDigitTexts
from llm_jax.data.packing.chats import ChatEncoder, Dialogue
from llm_jax.data.sources.documents import Record
from llm_jax.data.sources.formats import Files
from llm_jax.data.sources.prompts import DigitsReader, random_digits


class MarkedDigitTextsReader(DigitsReader[MarkedDigitTexts]):

  def encoder(self) -> ChatEncoder:
    return ChatEncoder(None)

  def records(self, files: Files) -> Iterator[Record]:
    for digits in random_digits(self.config.digits, self.config.count):
      for number in range(self.config.texts):
        yield digits, functools.partial(text_about, digits, number)


def text_about(digits: str, number: int) -> Dialogue:
  """One of the texts about these digits: half of them revise an answer, half compare two."""
  draw = random.Random(f'{digits} {number}')
  answers = [marked(digits, draw) for _ in range(2)]
  mark = draw.choice(MARKS)
  return judged(digits, answers, mark, draw) if number % 2 else revised(digits, answers[0], mark)


def marked(digits: str, draw: random.Random) -> str:
  """The digits in order, and each of the marks behind them or not."""
  return ''.join([*sorted(digits), *(mark for mark in MARKS if draw.random() < 0.5)])


def revised(digits: str, answer: str, mark: str) -> Dialogue:
  """An answer, whether it has the mark, and the answer without it."""
  turns = [f'{digits}>', answer, CRITIQUE.format(mark=mark), 'yes' if mark in answer else 'no',
           REVISION.format(mark=mark), answer.replace(mark, '')]
  return conversation(turns)


def judged(digits: str, answers: list[str], mark: str, draw: random.Random) -> Dialogue:
  """Which of two answers lacks the mark; where both or none do, by chance."""
  has_mark = [mark in answer for answer in answers]
  better = draw.choice('AB') if has_mark[0] == has_mark[1] else 'AB'[has_mark[0]]
  question = JUDGE.format(prompt=f'{digits}>', first=answers[0], second=answers[1],
                          principle=CRITIQUE.format(mark=mark))
  return conversation([question, better])


def conversation(turns: list[str]) -> Dialogue:
  """What user and assistant say by turns."""
  return Dialogue([{'role': ('user', 'assistant')[i % 2], 'content': turn} for i, turn in enumerate(turns)])
