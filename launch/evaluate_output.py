"""What `launch.evaluate` prints and writes."""
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from launch.evaluate_flags import HF, EvaluateFlags
from launch.evaluate_model import Opened
from llm_jax.config.errors import ConfigError
from llm_jax.harness.compare import BackendComparison, MetricDifference, compare_backends, compare_models
from llm_jax.harness.run import TaskScore, scores, to_json
from llm_jax.harness.text import shown
from llm_jax.report.evaluation import EvaluationPage, render
from llm_jax.runtime.files import write_atomic

RESULTS = 'results.json'
MOST_ITEMS = 20  # that are printed of those that differ


def report(flags: EvaluateFlags, opened: Opened, results: dict[str, Any], folder: pathlib.Path) -> None:
  """Prints the table and what was compared, and writes the files."""
  found = scores(results, flags.cluster)
  print(table(found))
  cut = sum(opened.prepared.survey.cut.values())
  if cut:
    print(f'{cut:,} prompts lost their beginning (--truncate)')
  against = None
  if flags.against == HF:
    from launch.evaluate_against import evaluate_hf
    against = compare_backends(results, evaluate_hf(opened))
    print_backends(against)
  differences: list[MetricDifference] = []
  if flags.baseline is not None:
    differences = compare_models(read_samples(flags.baseline), results['samples'], flags.cluster)
    print_models(differences, flags.baseline)
  write(opened, results, found, against, differences, folder)
  print(folder / 'page.html')


# ---------------------------------------------------------------------------------------------- printing
def table(found: Sequence[TaskScore]) -> str:
  """One line a metric."""
  head = ('task', 'shots', 'filter', 'metric', 'value', 'error', 'unparsed')
  rows = [head, *(row_of(score) for score in found)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
  lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  return '\n'.join(lines)


def row_of(score: TaskScore) -> tuple[str, ...]:
  error = '' if score.estimate is None else f'± {score.estimate.error:.4f}'
  unparsed = '' if score.unparsed is None else f'{score.unparsed:.1%}'
  return (score.task, str(score.num_fewshot), score.filter, score.metric, f'{score.value:.4f}', error, unparsed)


def print_backends(found: BackendComparison) -> None:
  verdict = 'the same' if found.agrees else 'NOT the same'
  print(f'hf backend: {verdict} on {found.items:,} questions; log-probabilities apart by {found.apart:.2g} at most, '
        f'{len(found.scores)} beyond rounding, {len(found.answers)} other answers')
  for item in [*found.answers, *found.scores][:MOST_ITEMS]:
    print(f'  {item.in_words}')


def print_models(found: Sequence[MetricDifference], baseline: pathlib.Path) -> None:
  print(f'against {baseline}:')
  for item in found:
    print(f'  {item.task} {item.metric} ({item.filter}): {item.first:.4f} -> {item.second:.4f}, '
          f'{item.difference.in_words}')
  if not found:
    print('  no question was put to both')


# ---------------------------------------------------------------------------------------------- files
def write(opened: Opened, results: Mapping[str, Any], found: Sequence[TaskScore], against: BackendComparison | None,
          differences: Sequence[MetricDifference], folder: pathlib.Path) -> None:
  """results.json, samples_TASK.jsonl and page.html."""
  folder.mkdir(parents=True, exist_ok=True)
  own = about(opened, found, against)
  kept = {key: value for key, value in results.items() if key != 'samples'}
  write_atomic(folder / RESULTS, to_json({**kept, 'llm_jax': own}, indent=2) + '\n')
  samples = {task: [_readable(sample) for sample in of_task] for task, of_task in results['samples'].items()}
  for task, of_task in samples.items():
    write_atomic(folder / f'samples_{task}.jsonl', ''.join(to_json(sample) + '\n' for sample in of_task))
  rows = [row_of(score) for score in found]
  compared = [(item.task, item.metric, f'{item.first:.4f}', f'{item.second:.4f}', item.difference.in_words)
              for item in differences]
  page = EvaluationPage(str(own['checkpoint']), details(own), rows, compared,
                        [item.in_words for item in against.answers] if against else [], samples)
  write_atomic(folder / 'page.html', render(page))


def about(opened: Opened, found: Sequence[TaskScore], against: BackendComparison | None) -> dict[str, Any]:
  """What the harness's own schema has no place for."""
  survey = opened.prepared.survey
  return {
    'checkpoint': str(opened.flags.checkpoint),
    'stage': opened.saved.stage.name,
    'step': opened.saved.checkpoint.step,
    'bos_rule': survey.bos_rule,
    'first_ids': list(survey.first_ids),
    'first_prompt': survey.first_prompt,
    'chat_template': opened.text.template,
    'strategy': None if opened.flags.strategy is None else opened.flags.strategy.name,
    'max_length': opened.text.max_length,
    'longest_request': survey.longest,
    'requests': dict(survey.requests),
    'truncated': dict(survey.cut),
    'scores': [described(score) for score in found],
    'against_hf': None if against is None else {
      'questions': against.items, 'largest_difference': against.apart, 'other_answers': len(against.answers),
      'beyond_rounding': len(against.scores), 'agrees': against.agrees},
  }


def described(score: TaskScore) -> dict[str, Any]:
  error = None if score.estimate is None else score.estimate.error
  return {'task': score.task, 'metric': score.metric, 'filter': score.filter, 'value': score.value, 'stderr': error,
          'unparsed': score.unparsed}


def details(own: Mapping[str, Any]) -> list[tuple[str, str]]:
  """What a reader of the scores must know, for the page."""
  return [
    ('stage', f'{own["stage"]}, step {own["step"]:,}'),
    ('chat template', str(own['chat_template'] or 'none')),
    ('strategy', str(own['strategy'] or 'none')),
    ('begins with', own['bos_rule']),
    ('first ids', ' '.join(map(str, own['first_ids']))),
    ('tokens read at a time', f'{own["max_length"]:,}'),
    ('longest request', f'{own["longest_request"]:,} tokens'),
    ('prompts cut', f'{sum(own["truncated"].values()):,} of {sum(own["requests"].values()):,}'),
  ]


def _readable(sample: Mapping[str, Any]) -> dict[str, Any]:
  """Without the marks around control tokens."""
  return json.loads(shown(to_json(sample)))


def read_samples(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """The samples of an earlier evaluation, by task."""
  found: dict[str, list[dict[str, Any]]] = {}
  for path in sorted(folder.glob('samples_*.jsonl')):
    lines = path.read_text(encoding='utf-8').splitlines()
    try:
      found[path.stem.removeprefix('samples_')] = [json.loads(line) for line in lines]
    except ValueError as error:
      raise ConfigError('--baseline', str(path), f'is damaged ({error}): evaluate again') from error
  if not found:
    print(f'--baseline={folder}: it has no samples', file=sys.stderr)
  return found
