"""Data for golden curves: the same bytes on every machine and with every Python, with something to learn in them."""
import json
import pathlib
from collections.abc import Iterable

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve',
         'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen')
LABELS = ('right', 'wrong')
TEXTS = 'texts.jsonl'
CHATS = 'chats.jsonl'
PAIRS = 'pairs.jsonl'
RATED = 'rated.jsonl'
LABELLED = 'labelled.jsonl'
LABELLED_PAIRS = 'labelled_pairs.jsonl'
MADE_UP = 'made_up.jsonl'


class Draws:
  """Numbers that look random and are a function of the seed alone (Knuth's MMIX generator)."""

  def __init__(self, seed: int):
    self._state = seed

  def below(self, limit: int) -> int:
    self._state = (self._state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (self._state >> 33) % limit


def write_data(folder: pathlib.Path) -> None:
  """Writes the files that the golden runs read."""
  write_jsonl(folder / TEXTS, [text_row(Draws(seed)) for seed in range(160)])
  write_jsonl(folder / CHATS, [chat_row(Draws(seed)) for seed in range(1_000, 1_080)])
  write_jsonl(folder / PAIRS, [pair_row(Draws(seed)) for seed in range(2_000, 2_160)])
  write_jsonl(folder / LABELLED, [labelled_row(Draws(seed)) for seed in range(3_000, 3_160)])
  write_jsonl(folder / LABELLED_PAIRS, [labelled_pair_row(Draws(seed)) for seed in range(4_000, 4_160)])
  write_jsonl(folder / RATED, [rated_row(Draws(seed)) for seed in range(6_000, 6_160)])
  write_jsonl(folder / MADE_UP, [made_up_row(Draws(seed)) for seed in range(5_000, 5_100)])


def write_jsonl(path: pathlib.Path, rows: Iterable[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def text_row(draws: Draws) -> dict:
  """Between one and eight sums."""
  sums = [right_sum(draws) for _ in range(1 + draws.below(8))]
  return {'text': ' '.join(f'{question} is {answer}.' for question, answer in sums)}


def chat_row(draws: Draws) -> dict:
  """One or two questions with their answers."""
  messages: list[dict] = []
  for _ in range(1 + draws.below(2)):
    question, answer = right_sum(draws)
    messages.append({'role': 'user', 'content': f'{question}?'})
    messages.append({'role': 'assistant', 'content': answer})
  return {'messages': messages}


def pair_row(draws: Draws) -> dict:
  """The better answer is right, and in small letters."""
  question, answer = right_sum(draws)
  return {'prompt': f'{question}?', 'chosen': answer, 'rejected': other(answer, draws).upper()}


def rated_row(draws: Draws) -> dict:
  question, answer = right_sum(draws)
  is_right = draws.below(2) == 1
  return {'prompt': f'{question}?', 'completion': answer if is_right else other(answer, draws), 'label': is_right}


def labelled_row(draws: Draws) -> dict:
  question, answer = right_sum(draws)
  label = LABELS[draws.below(2)]
  if label == 'wrong':
    answer = other(answer, draws)
  return {'text': f'{question} is {answer}', 'label': label}


def labelled_pair_row(draws: Draws) -> dict:
  row = labelled_row(draws)
  text, pair = row['text'].split(' is ')
  return {'text': text, 'pair': pair, 'label': row['label']}


def made_up_row(draws: Draws) -> dict:
  """A hundred words of two syllables: enough different ones for a tokenizer to have many ids that stand for a word."""
  syllables = [consonant + vowel for consonant in 'bdfgklmnprst' for vowel in 'aeio']
  words = [syllables[draws.below(12)] + syllables[draws.below(len(syllables))] for _ in range(100)]
  return {'text': ' '.join(words) + '.'}


def right_sum(draws: Draws) -> tuple[str, str]:
  """('two plus three', 'five')."""
  left = draws.below(10)
  right = draws.below(10)
  return f'{WORDS[left]} plus {WORDS[right]}', WORDS[left + right]


def other(word: str, draws: Draws) -> str:
  """Another one of WORDS."""
  return WORDS[(WORDS.index(word) + 1 + draws.below(len(WORDS) - 1)) % len(WORDS)]
