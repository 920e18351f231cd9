"""`page.html` of an evaluation: the scores, how the questions were put, and what was answered."""
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.report.html import escape, lineage_table, page, table

MOST_SAMPLES = 20  # of a task
MOST_UNPARSED = 5  # of them, where a filter found no answer
UNPARSED = '[invalid]'  # what a filter gives then
LONGEST = 4_000  # characters of a prompt or an answer


@dataclasses.dataclass(frozen=True)
class EvaluationPage:
  """What the page shows.

  details: (name, value) of how the questions were put.
  scores: rows of the table.
  differences: (task, metric, before, now, in words), of an earlier evaluation.
  other_answers: those of another backend, in words.
  samples: by task, as the harness logs them.
  """
  title: str
  details: Sequence[tuple[str, str]]
  scores: Sequence[Sequence[str]]
  differences: Sequence[Sequence[str]]
  other_answers: Sequence[str]
  samples: Mapping[str, Sequence[Mapping[str, Any]]]


def render(evaluation: EvaluationPage) -> str:
  """The page as HTML."""
  pieces = [
    f'<h1>{escape(evaluation.title)}</h1>',
    table(('task', 'shots', 'filter', 'metric', 'value', 'standard error', 'unparsed'), evaluation.scores, 'words'),
    '<h2>How it was asked</h2>',
    lineage_table(dict(evaluation.details)),
  ]
  if evaluation.differences:
    pieces += ['<h2>Against the baseline</h2>',
               table(('task', 'metric', 'before', 'now', 'difference'), evaluation.differences, 'words')]
  if evaluation.other_answers:
    pieces += ['<h2>Other answers of the hf backend</h2>', *(f'<p>{escape(line)}</p>'
                                                             for line in evaluation.other_answers)]
  for task, samples in evaluation.samples.items():
    pieces += [f'<h2>{escape(task)}</h2>', *sample_cards(samples)]
  return page(f'{evaluation.title}: evaluation', pieces)


def sample_cards(samples: Sequence[Mapping[str, Any]]) -> list[str]:
  """The first questions, and then some whose answer no filter could read."""
  unparsed = [sample for sample in samples if is_unparsed(sample)]
  cards = [sample_card(sample) for sample in samples[:MOST_SAMPLES]]
  if unparsed:
    cards.append(f'<h3>Answers that could not be read: {len(unparsed):,} of {len(samples):,}</h3>')
    cards += [sample_card(sample) for sample in unparsed[:MOST_UNPARSED]]
  return cards


def is_unparsed(sample: Mapping[str, Any]) -> bool:
  return any(answer == UNPARSED for answer in sample.get('filtered_resps') or ())


def sample_card(sample: Mapping[str, Any]) -> str:
  """A question, what was answered, and what counts as right."""
  arguments = sample['arguments']
  prompt = arguments[0][0] if arguments else ''
  metrics = ', '.join(f'{name} {sample[name]}' for name in sample.get('metrics', ()) if name in sample)
  answers = json.dumps(sample['filtered_resps'], ensure_ascii=False)
  behind = [text for of_request in arguments for text in of_request[1:2]]  # nothing where a whole text is scored
  choices = [text for text in behind if isinstance(text, str)]
  parts = [
    f'<summary>question {escape(sample["doc_id"])}: {escape(metrics)}</summary>',
    f'<pre>{escape(str(prompt)[-LONGEST:])}</pre>',
    f'<p>choices {escape(json.dumps(choices, ensure_ascii=False)[:LONGEST])}</p>' if choices else '',
    f'<p>answer {escape(answers[:LONGEST])}, right is {escape(str(sample["target"])[:LONGEST])}</p>',
  ]
  return f'<details class="card">{"".join(parts)}</details>'
