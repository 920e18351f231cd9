"""What is learnt of several answers to a prompt: the best, or pairs of better and worse."""
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_jax.config.samples import BestOf, RankedPairs, SampledSource

Record = Mapping[str, Any]  # of one prompt: {'prompt', 'answers': [{'text', 'ended', 'reward'}, ...]}
Row = dict[str, Any]


def rows_of(source: SampledSource, records: Sequence[Record]) -> Iterator[Row]:
  """The rows of JSONL that `Conversations` or `Preferences` read, in the order of the prompts."""
  for record in records:
    match source:
      case BestOf():
        yield from best_of(source, record)
      case RankedPairs():
        yield from ranked_pairs(source, record)
      case _:
        raise ValueError(source)


def best_of(source: BestOf, record: Record) -> Iterator[Row]:
  """One conversation, or none."""
  whole = whole_answers(record)
  if not whole:
    return
  best = max(whole, key=lambda answer: answer['reward'])  # of equal ones the first
  if source.at_least is None or best['reward'] >= source.at_least:
    answer = {'role': 'assistant', 'content': best['text']}
    yield {'messages': [*messages_of(record), answer]}


def ranked_pairs(source: RankedPairs, record: Record) -> Iterator[Row]:
  """Pairs, the best answers first."""
  ranked = sorted(whole_answers(record), key=lambda answer: -answer['reward'])
  if source.pairs == 'best_and_worst':
    candidates = [(ranked[0], ranked[-1])] if ranked else []
  else:
    candidates = list(itertools.combinations(ranked, 2))
  told: set[tuple[str, str]] = set()
  for chosen, rejected in candidates:
    gap = chosen['reward'] - rejected['reward']
    texts = chosen['text'].strip(), rejected['text'].strip()
    if gap > 0 and gap >= source.least_gap and texts[0] != texts[1] and texts not in told:
      told.add(texts)
      yield {'prompt': messages_of(record), 'chosen': chosen['text'], 'rejected': rejected['text']}


def whole_answers(record: Record) -> list[Mapping[str, Any]]:
  """Answers that ended by themselves and say something."""
  return [answer for answer in record['answers'] if answer['ended'] and answer['text'].strip()]


def messages_of(record: Record) -> list[dict[str, Any]]:
  """The prompt as a list of messages, also where it is a text."""
  prompt = record['prompt']
  return [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else list(prompt)
