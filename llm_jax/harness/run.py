"""An evaluation by lm-evaluation-harness: what it will ask is looked at as a whole before the model reads anything."""
import contextlib
import dataclasses
import json
import logging
import random
from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.utils import handle_non_serializable

from llm_jax.config.errors import ConfigError, require
from llm_jax.harness.model import arguments, prompt_ids, writing_of
from llm_jax.harness.statistics import Estimate, estimate, pooled
from llm_jax.harness.tasks import TaskSource, build_requests, load_tasks
from llm_jax.harness.text import HarnessText, shown

SEED = 1234  # that the harness draws examples with
SHOWN_IDS = 16
UNPARSED = '[invalid]'  # what the harness's filters give where they find no answer


@dataclasses.dataclass(frozen=True)
class Asking:
  """How tasks are put to a model.

  limit: questions of each task, from the first on; None: all.
  system: a system message of conversations.
  multiturn: whether examples are turns of the conversation, or all in one message.
  truncate: whether prompts may lose their beginning; else one that is too long is refused.
  cluster: a field of the questions; those with the same value do not vary apart.
  """
  limit: int | None = None
  system: str | None = None
  multiturn: bool = True
  truncate: bool = False
  cluster: str | None = None


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a model is going to be asked.

  first_ids, first_prompt: of the first request, the ids cut to a few.
  requests, cut: by task, how many there are, and how many lose their beginning.
  longest: tokens of the longest request, answer included.
  """
  bos_rule: str
  first_ids: tuple[int, ...]
  first_prompt: str
  requests: Mapping[str, int]
  cut: Mapping[str, int]
  longest: int


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Tasks that can be run, their groups, and what they ask."""
  tasks: Mapping[str, Task]
  groups: Mapping[str, Group]
  survey: Survey


def prepare(source: TaskSource, asking: Asking, text: HarnessText) -> Prepared:
  """Reads the tasks and looks at all that they ask.

  Raises:
    ConfigError: a task that cannot be had; data that does not fit; or the first request that cannot be scored.
  """
  with quiet():
    random.seed(0)  # the harness's own seeds, which a task may draw by when it is read
    np.random.seed(SEED)
    loaded = load_tasks(source)
    template = None if text.template is None else text.render
    requests = build_requests(loaded.tasks, asking.limit, SEED, template, asking.system, asking.multiturn)
  return Prepared(loaded.tasks, loaded.groups, survey(text, requests, asking.truncate))


def survey(text: HarnessText, requests: Mapping[str, Sequence[Instance]], truncate: bool) -> Survey:
  """Raises ConfigError for the first request that cannot be scored; names the task and the question."""
  first: tuple[int, ...] = ()
  first_prompt = ''
  cut: dict[str, int] = {}
  longest = 0
  for name, instances in requests.items():
    cut[name] = 0
    for instance in instances:
      where = f'{name}, question {instance.doc_id}'
      try:
        ids, length, room = look_at(text, instance)
      except ConfigError as error:
        raise ConfigError(where, error.value, error.hint) from error
      outside = [token for token in ids if token >= text.vocab_size]
      require(not outside, where, outside[:1], f'a token for which the model has no row of its {text.vocab_size}')
      require(length <= room or truncate, where, f'{length} tokens',
              f'the model reads {room}, and the beginning of the prompt would be cut off: ask for fewer examples, or '
              'say --truncate')
      cut[name] += length > room
      longest = max(longest, length)
      if not first:
        first, first_prompt = tuple(ids[:SHOWN_IDS]), shown(str(instance.args[0]))
  counts = {name: len(instances) for name, instances in requests.items()}
  return Survey(text.bos_rule, first, first_prompt, counts, cut, longest)


def look_at(text: HarnessText, instance: Instance) -> tuple[Sequence[int], int, int]:
  """The ids of a request, how many tokens are read for it, and how many can be. Raises ConfigError as `encode_pair`."""
  match instance.request_type:
    case 'loglikelihood':
      context, continuation = text.encode_pair(*instance.args)
      require(len(continuation) <= text.max_length, 'continuation', f'{len(continuation)} tokens',
              f'the model reads {text.max_length}')
      return [*context, *continuation], len(context) + len(continuation) - 1, text.max_length
    case 'loglikelihood_rolling':
      ids = text.encode(instance.args[0])
      return ids, min(len(ids), text.max_length), text.max_length
    case 'generate_until':
      prompt, options = arguments(instance)
      writing = writing_of(options)
      prompt_ids(text, prompt, writing)  # which refuses answers that leave no room
      ids = text.encode(prompt)
      return ids, len(ids) + writing.max_new_tokens, text.max_length
    case kind:
      raise ConfigError('output_type', kind, 'a model of text alone cannot answer it')


# ---------------------------------------------------------------------------------------------- the run
def run(model: LM, prepared: Prepared, asking: Asking, with_template: bool) -> dict[str, Any]:
  """The harness's own results, in its own schema, with `samples` of every task."""
  for task in prepared.tasks.values():
    task.set_fewshot_seed(seed=SEED)  # the requests are built anew, and shall be those that were looked at
  members = {name: group.child_names for name, group in prepared.groups.items()}
  tasks = {'tasks': dict(prepared.tasks), 'groups': dict(prepared.groups), 'group_map': members}
  evaluate: Any = lm_eval.evaluate  # whose signature a decorator hides
  with quiet():
    found = evaluate(
      lm=model, task_dict=tasks, limit=asking.limit, bootstrap_iters=0, log_samples=True,
      system_instruction=asking.system, apply_chat_template=with_template, fewshot_as_multiturn=asking.multiturn,
      confirm_run_unsafe_code=True)
  assert found is not None  # of one process, as the harness sees it
  return dict(found)


@contextlib.contextmanager
def quiet() -> Generator[None]:
  """Without the harness's messages below an error."""
  logger = logging.getLogger('lm_eval')
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(before)


# ---------------------------------------------------------------------------------------------- the scores
@dataclasses.dataclass(frozen=True)
class TaskScore:
  """One metric of a task, or of a group of tasks.

  value: as the harness has it.
  estimate: the mean over questions and its error, where the metric is a mean; else None.
  unparsed: the share of answers in which the filter found none; None where nothing is looked for.
  """
  task: str
  metric: str
  filter: str
  value: float
  estimate: Estimate | None
  unparsed: float | None
  num_fewshot: int


def scores(results: Mapping[str, Any], cluster: str | None = None) -> list[TaskScore]:
  """Every metric of every task and group.   cluster: see `Asking`."""
  found = []
  for name, values in results['results'].items():
    samples = results['samples'].get(name, [])
    members = leaves(results, name)
    for key, value in values.items():
      metric, _, filter_name = key.partition(',')
      if not filter_name or metric.endswith('_stderr') or not isinstance(value, int | float):
        continue
      if members:
        mean = _of_group([results['samples'][member] for member in members], metric, filter_name, cluster, value)
      else:
        items, clusters = metric_values(samples, metric, filter_name, cluster)
        mean = estimate(items, clusters) if items else None
      is_mean = mean is not None and _is_same(mean.mean, value)
      found.append(TaskScore(name, metric, filter_name, float(value), mean if is_mean else None,
                             unparsed_share(samples, filter_name), results['n-shot'].get(name, 0)))
  return found


def leaves(results: Mapping[str, Any], name: str) -> list[str]:
  """The tasks of a group and of the groups in it; none of a task."""
  found: list[str] = []
  for member in results.get('group_subtasks', {}).get(name, ()):
    found += leaves(results, member) or [member]
  return found


def _of_group(samples: Sequence[Sequence[Mapping[str, Any]]], metric: str, filter_name: str, cluster: str | None,
              value: float) -> Estimate | None:
  """The mean of a group, whose tasks are strata: weighted by their questions, or alike, as the harness did.

  samples: of each task.   value: that the harness found.
  """
  parts: list[Estimate] = []
  for of_task in samples:
    items, clusters = metric_values(of_task, metric, filter_name, cluster)
    if not items:
      return None
    parts.append(estimate(items, clusters))
  by_size = pooled(parts, [part.count for part in parts])
  return by_size if _is_same(by_size.mean, value) else pooled(parts, [1] * len(parts))


def _is_same(one: float, other: float) -> bool:
  return abs(one - other) <= 1e-6 * max(1.0, abs(other))


def metric_values(samples: Sequence[Mapping[str, Any]], metric: str, filter_name: str, cluster: str | None = None
                  ) -> tuple[list[float], list[Hashable] | None]:
  """A metric of each question, and its cluster; nothing where the metric is no number of a question."""
  chosen = [sample for sample in samples if sample.get('filter') == filter_name]
  chosen = sorted(chosen, key=lambda sample: sample['doc_id'])
  values = [sample.get(metric) for sample in chosen]
  if not all(isinstance(value, int | float | np.number) for value in values):
    return [], None
  numbers = [float(value) for value in values if value is not None]
  if cluster is None:
    return numbers, None
  for sample in chosen:
    require(cluster in sample['doc'], '--cluster', cluster, f'is no field of a question: use one of '
            f'{", ".join(sample["doc"])}')
  return numbers, [str(sample['doc'][cluster]) for sample in chosen]


def unparsed_share(samples: Sequence[Mapping[str, Any]], filter_name: str) -> float | None:
  """The share of answers in which a filter found none."""
  chosen = [sample for sample in samples if sample.get('filter') == filter_name]
  if filter_name == 'none' or not chosen:
    return None
  return float(np.mean([is_unparsed(sample) for sample in chosen]))


def is_unparsed(sample: Mapping[str, Any]) -> bool:
  answers = sample.get('filtered_resps') or []
  return any(answer == UNPARSED for answer in answers)


def to_json(value: Any, indent: int | None = None) -> str:
  """Results or samples, as the harness writes them."""
  return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)
