"""Tasks of lm-evaluation-harness on local files: their official prompts, examples, filters and metrics."""
import dataclasses
import gzip
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from llm_jax.config.errors import ConfigError, require
from llm_jax.harness import reasoning
from llm_jax.harness.code_tasks import human_eval
from llm_jax.harness.index import Definition, Index, find
from llm_jax.harness.standard_library import MADE, Made

Row = Mapping[str, Any]
SPLITS = ('training_split', 'validation_split', 'test_split', 'fewshot_split', 'dataset_path', 'dataset_name',
          'dataset_kwargs', 'custom_dataset')
HUMAN_EVAL = 'human_eval'


@dataclasses.dataclass(frozen=True)
class TaskSource:
  """What is asked.

  names: of tasks, or of groups and tags of the harness.
  data: for each task with local files, the file of its questions.
  examples: likewise, the file of its examples; where there is none, a question's examples are other questions.
  num_fewshot: examples before each question; None: as the task says.
  allow_code: whether tasks may run what the model writes.
  samples: answers to each problem of `human_eval`.
  own: tasks of one's own.
  """
  names: tuple[str, ...]
  data: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  examples: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  num_fewshot: int | None = None
  allow_code: bool = False
  samples: int = 1
  own: Index = Index({}, frozenset())

  def check(self) -> None:
    """Refuses what can be seen without reading a file of data."""
    require(len(self.names) > 0, '--tasks', '', 'name at least one task')
    for flag, files in (('--data', self.data), ('--examples', self.examples)):
      for name, path in files.items():
        require(name in self.names, flag, name, f'is none of the tasks: use one of {", ".join(self.names)}')
        require(path.is_file(), flag, f'{name}={path}', 'no such file: name one of JSON lines')
    for name in self.names:
      definition = None if is_made(name) else find(name, self.own)
      is_unsafe = name == HUMAN_EVAL or definition is not None and definition.unsafe
      require(self.allow_code or not is_unsafe, '--tasks', name,
              'it runs code that the model writes: say --allow_code')


class Loaded(NamedTuple):
  """Tasks by name, with their data, and the groups whose means the harness takes."""
  tasks: dict[str, Task]
  groups: dict[str, Group]


def load_tasks(source: TaskSource) -> Loaded:
  """Raises ConfigError for a task that is not there, or whose data cannot be had or does not fit."""
  source.check()
  tasks: dict[str, Task] = {}
  groups: dict[str, Group] = {}
  for name in source.names:
    found = _load(name, source)
    for task_name, task in found.tasks.items():
      require(task_name not in tasks, '--tasks', name, f'{task_name} is asked for twice: name it once')
      tasks[task_name] = task
    groups |= found.groups
  for task in tasks.values():
    _set_examples(task, source.num_fewshot)
  return Loaded(tasks, groups)


def _load(name: str, source: TaskSource) -> Loaded:
  made = _made(name, source)
  if made is not None:
    task = _build(name, dict(made.definition), made.questions, made.examples or None, 'what it is made of')
    return Loaded({name: task}, {})
  definition = find(name, source.own)
  if name in source.data:
    require(definition is not None, '--data', name, 'it is a group of tasks: name them one by one')
    assert definition is not None
    values = _read_definition(name, definition)
    questions = read_rows(source.data[name])
    examples = read_rows(source.examples[name]) if name in source.examples else None
    task = _build(values['task'], values, questions, examples, str(source.data[name]))
    return Loaded({values['task']: task}, {})
  is_own = name in source.own.collections
  try:
    manager = TaskManager(include_path=str(source.own.folder) if is_own else None,
                          include_defaults=definition is None and not is_own)
    found = manager.load([name if definition is None else str(definition.path)])
    return Loaded(dict(found['tasks']), dict(found.get('groups', {})))
  except (OSError, ConnectionError) as error:
    raise ConfigError('--tasks', name, f'its data cannot be had ({_first_line(error)}): give a file of it, '
                      f'--data={name}=FILE') from error


def _made(name: str, source: TaskSource) -> Made | None:
  """A task that needs no file; None for any other."""
  if name == HUMAN_EVAL:
    return human_eval(source.samples)
  if name.startswith(reasoning.PREFIX):
    return reasoning.reasoning_task(name)
  return MADE[name]() if name in MADE else None


def is_made(name: str) -> bool:
  """Whether a task is ours, and needs no file."""
  return name in MADE or name == HUMAN_EVAL or name.startswith(reasoning.PREFIX)


def _read_definition(name: str, definition: Definition) -> dict[str, Any]:
  try:
    values = load_yaml(definition.path)
  except (OSError, ImportError) as error:  # a task may load a metric from the hub when it is imported
    raise ConfigError('--tasks', name, f'cannot be read ({_first_line(error)})') from error
  require('class' not in values, '--data', name, 'it is a program that reads its own data: leave --data out')
  return values


def _build(name: str, values: dict[str, Any], questions: Sequence[Row], examples: Sequence[Row] | None, where: str
           ) -> Task:
  """A task over rows.   where: they are from, for errors."""
  for key in (*SPLITS, 'tag', 'group', 'task_list'):
    values.pop(key, None)
  splits = {'test': questions} if examples is None else {'test': questions, 'train': examples}
  values |= {'task': name, 'test_split': 'test', 'custom_dataset': _dataset(splits)}
  fewshot = dict(values.get('fewshot_config') or {})
  if not fewshot.get('samples'):
    # The harness leaves a question out of its own examples where both are of one split.
    values['fewshot_split'] = 'test' if examples is None else 'train'
    fewshot.pop('split', None)
    values['fewshot_config'] = fewshot or None
  try:
    return ConfigurableTask(config=values)
  except Exception as error:  # jinja's errors of missing columns among them
    raise misfit(name, where, questions, error) from error


def _dataset(splits: Mapping[str, Sequence[Row]]) -> Callable[..., Any]:
  def make(**_: Any) -> Any:
    return {name: datasets.Dataset.from_list([dict(row) for row in rows]) for name, rows in splits.items()}
  return make


def misfit(name: str, where: str, rows: Sequence[Row], error: Exception) -> ConfigError:
  """What is wrong with the data of a task."""
  columns = ', '.join(rows[0]) if rows else 'none'
  return ConfigError('--data', f'{name}={where}', f'does not fit the task ({_first_line(error)}); its columns are '
                     f'{columns}')


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0][:160]}' if lines else type(error).__name__


def _set_examples(task: Task, num_fewshot: int | None) -> None:
  """As `simple_evaluate` does; a task that says 0 keeps 0."""
  says = task.get_config('num_fewshot')
  if num_fewshot is not None and says != 0:
    task.set_config(key='num_fewshot', value=num_fewshot)
  elif says is None:
    task.set_config(key='num_fewshot', value=0)


# ---------------------------------------------------------------------------------------------- rows
def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a file: JSON lines, a JSON list, either of them compressed by gzip, or parquet.

  Raises:
    ConfigError: names the file and the line.
  """
  if path.suffix == '.parquet':
    table: Any = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
    return list(table)
  content = path.read_bytes()
  try:
    text = (gzip.decompress(content) if path.suffix == '.gz' else content).decode('utf-8-sig')
  except (OSError, ValueError) as error:
    raise ConfigError('--data', str(path), f'cannot be read ({_first_line(error)})') from error
  if text.lstrip().startswith('['):
    rows = _json(text, f'{path}')
  else:
    lines = enumerate(text.splitlines(), 1)
    rows = [_json(line, f'{path}:{number}') for number, line in lines if line.strip()]
  require(len(rows) > 0, '--data', str(path), 'it holds no row')
  for number, row in enumerate(rows, 1):
    require(isinstance(row, dict), '--data', f'{path}, row {number}', 'is no JSON object')
  return rows


def _json(text: str, where: str) -> Any:
  try:
    return json.loads(text)
  except ValueError as error:
    raise ConfigError('--data', where, f'is no JSON ({error}): correct the line') from error


# ---------------------------------------------------------------------------------------------- requests
def build_requests(tasks: Mapping[str, Task], limit: int | None, seed: int, template: Callable[..., str] | None,
                   system: str | None, multiturn: bool) -> dict[str, list[Instance]]:
  """What the tasks ask of a model, as `lm_eval.evaluate` will ask it.

  Raises:
    ConfigError: a row does not fit its task.
  """
  found: dict[str, list[Instance]] = {}
  for name, task in tasks.items():
    task.set_fewshot_seed(seed=seed)
    try:
      task.build_all_requests(limit=limit, system_instruction=system, apply_chat_template=template is not None,
                              fewshot_as_multiturn=multiturn, chat_template=template)
    except ConfigError:
      raise
    except Exception as error:
      docs: Any = task.eval_docs
      raise misfit(name, 'its rows', [docs[0]], error) from error
    found[name] = list(task.instances)
  return found
