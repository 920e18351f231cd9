"""What is learnt of answers to a prompt: the best, pairs of better and worse, or what they were revised to."""
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.samples import SOFT_LABEL, BestOf, JudgedPairs, RankedPairs, RevisedAnswers, SampledSource

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
      case JudgedPairs():
        yield from judged_pairs(record)
      case RevisedAnswers():
        yield from revised_answers(source, record)
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
  if source.demonstration is not None:
    yield from demonstrated_pairs(source.demonstration, record)
    return
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


def demonstrated_pairs(entry: str, record: Record) -> Iterator[Row]:
  """What the prompt's row has under `entry`, and each answer that differs from it.

  Raises:
    ConfigError: the row has no such entry.
  """
  require(entry in record['columns'], 'demonstration', entry,
          f'the row of the prompt {record["prompt"]!r:.60} has only {sorted(record["columns"])}: name one of these')
  chosen = str(record['columns'][entry])
  for text in dict.fromkeys(answer['text'] for answer in whole_answers(record)):
    if text.strip() != chosen.strip():
      yield {'prompt': messages_of(record), 'chosen': chosen, 'rejected': text}


def judged_pairs(record: Record) -> Iterator[Row]:
  """The two answers, of which the one that is probably better is chosen, with that probability; or nothing."""
  answers = whole_answers(record)
  if len(answers) < 2 or answers[0]['text'].strip() == answers[1]['text'].strip():
    return
  rejected, chosen = sorted(answers, key=lambda answer: answer['reward'])
  yield {'prompt': messages_of(record), 'chosen': chosen['text'], 'rejected': rejected['text'],
         SOFT_LABEL: chosen['reward']}


def revised_answers(source: RevisedAnswers, record: Record) -> Iterator[Row]:
  """A conversation for each revision that was kept, or for the last of them."""
  kept = [revision['text'] for revision in record['revisions'] if revision['kept']]
  for text in kept if source.keep == 'all' else kept[-1:]:
    yield {'messages': [*messages_of(record), {'role': 'assistant', 'content': text}]}


def whole_answers(record: Record) -> list[Mapping[str, Any]]:
  """Answers that ended by themselves and say something."""
  return [answer for answer in record['answers'] if answer['ended'] and answer['text'].strip()]


def messages_of(record: Record) -> list[dict[str, Any]]:
  """The prompt as a list of messages, also where it is a text."""
  prompt = record['prompt']
  return [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else list(prompt)
