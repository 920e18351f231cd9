"""From `FILE.py:argument` and `--config.FIELD=VALUE` to a checked `Run`."""
import contextlib
import dataclasses
import glob
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from types import ModuleType
from typing import Any

from launch.errors import Refused
from launch.overrides import set_field
from llm_jax.config import experiment, presets, schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.hub_names import hub_names
from llm_jax.config.model import architecture
from llm_jax.config.packages import check_packages, is_installed
from llm_jax.config.places import check_places, is_bucket, places
from llm_jax.config.run import Run
from llm_jax.config.stage_init import HuggingFace
from llm_jax.config.type_hints import is_sequence, suggest
from llm_jax.runtime.buckets import BucketPath
from llm_jax.runtime.downloads import find

UNKNOWN_ARGUMENT = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")


def load_run(config: str | None, overrides: Sequence[tuple[str, str]] = ()) -> Run:
  """The experiment `FILE.py[:argument]` with its overrides, checked.

  Args:
    config: the file, and after a colon the argument of its `get_config`.
    overrides: pairs such as ('stages[0].steps', '10').

  Raises:
    Refused: no such file, or its code fails.
    ConfigError: a field is unknown or wrong.
  """
  if not config:
    raise Refused('--config is missing: name an experiment, such as --config=experiments/quickstart.py')
  try:
    tree = read_tree(config)
    refused = None
  except Refused as error:
    if not overrides:
      raise
    refused = error
    with schema.unchecked():  # an override may mend what was refused
      tree = read_tree(config)
  for path, text in overrides:
    set_field(tree, path, text)
  try:
    return schema.from_json(tree)
  except ConfigError as error:
    path = error.field.rpartition('.')[0]
    if refused is not None and str(refused).endswith(str(error)[len(path):]):
      raise refused from None  # the same, and it names the line
    raise


def read_tree(config: str) -> Any:
  """What `get_config` returns, as dicts and lists."""
  tree = schema.plain(call_get_config(config))
  if not hasattr(tree, 'items'):
    raise Refused(f'{config}: get_config() returned {type(tree).__name__}: return experiment(...)')
  return tree


def call_get_config(config: str) -> Any:
  """Runs the file's `get_config`, turning whatever goes wrong into one line with file and line number."""
  path, colon, argument = config.partition(':')
  check_is_file(path)
  try:
    with neighbours(path):
      get_config = load_module(path).get_config
      arguments = [argument] if colon else []
      check_arguments(path, inspect.signature(get_config), arguments)
      return get_config(*arguments)
  except Refused:
    raise
  except SyntaxError as error:
    where = f'{error.filename}:{error.lineno}' if error.filename else path  # a NUL byte has no place
    raise Refused(f'{where}: SyntaxError: {error.msg}') from None
  except Exception as error:  # Whatever a user's file raises is the user's to correct: one line that says where.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    where = f'{path}:{lines[-1]}' if lines else path
    raise Refused(f'{where}: {explain(error)}') from None


def check_is_file(path: str) -> None:
  if os.path.isfile(path):
    return
  is_folder = os.path.isdir(path)
  folder = path if is_folder else os.path.dirname(path)
  known = [os.path.join(folder, name) for name in sorted(glob.glob('[!_]*.py', root_dir=folder or '.'))]
  if is_folder:
    example = f', such as {known[0]}' if known else ''
    raise Refused(f'--config={path}: a folder: name one Python file{example}')
  hint = f'; {suggest(path, known)}' if known else ''
  raise Refused(f'--config={path}: no such file{hint}')


def load_module(path: str) -> ModuleType:
  """The experiment file as a module that has a `get_config`."""
  spec = importlib.util.spec_from_file_location('experiment_file', path)
  if spec is None or spec.loader is None:
    raise Refused(f'--config={path}: name a Python file, such as experiments/quickstart.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not callable(getattr(module, 'get_config', None)):
    raise Refused(f'{path}: it has no get_config(): define one that returns experiment(...)')
  return module


@contextlib.contextmanager
def neighbours(path: str) -> Generator[None]:
  """While it lasts, `import name` also finds the files beside `path`: an experiment may change one thing of another."""
  folder = os.path.dirname(os.path.abspath(path))
  sys.path.append(folder)
  try:
    yield
  finally:
    sys.path.remove(folder)


def check_arguments(path: str, signature: inspect.Signature, arguments: list[str]) -> None:
  try:
    signature.bind(*arguments)
  except TypeError:
    if arguments:
      raise Refused(f'--config={path}:{arguments[0]}: its get_config() takes no argument: '
                    f'use --config={path}') from None
    names = ', '.join(signature.parameters)
    raise Refused(f'--config={path}: it needs its argument ({names}): '
                  f'use --config={path}:{names.upper()}') from None


# ---------------------------------------------------------------------------------------------- what a file raised
def explain(error: Exception) -> str:
  """What an experiment file raised, in one line.

  Python names no field where a part is made with a value of the wrong type, and no known name where it is made with an
  unknown one; here both are looked up.
  """
  if isinstance(error, ConfigError):
    return str(error)
  return wrong_type(error) or unknown_argument(error) or f'{type(error).__name__}: {error}'


def wrong_type(error: Exception) -> str:
  """The field of a wrong type where a part of a configuration failed while it was made; else ''."""
  for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
    part = frame.f_locals.get('self')
    is_being_made = frame.f_code.co_name == '__post_init__' and dataclasses.is_dataclass(part)
    if not is_being_made:
      continue
    cls: type[Any] = type(part)
    try:
      schema.read(cls, schema.to_json(part), cls.__name__)
    except ConfigError as found:
      return str(found)
    except Exception:  # its types are right, and the mistake is another
      return ''
  return ''


def unknown_argument(error: Exception) -> str:
  """The arguments that there are, where a class or a preset was called with another one; else ''."""
  match = UNKNOWN_ARGUMENT.match(str(error))
  if match is None:
    return ''
  name, argument = match.groups()
  for module in (experiment, presets, architecture):
    called = getattr(module, name, None)
    if called is not None:
      hint = suggest(argument, inspect.signature(called).parameters)
      return f'{name}({argument}=...): no such argument; {hint}'
  return ''


# ---------------------------------------------------------------------------------------------- files that it names
def check_files(run: Run, config: str) -> None:
  """Refuses a run that names files which do not exist or cannot be read, or needs packages that are not installed."""
  check_packages(run)
  check_places(run)
  file = config.partition(':')[0]
  on_hub = [name.name for name in hub_names(run)]
  if on_hub and not is_installed('huggingface_hub'):
    raise ConfigError('config', on_hub[0], "is no folder here, and what asks the Hugging Face hub for it is not "
                      "installed: pip install 'llm_jax[hub]', or name a folder")
  check_buckets(run)
  for path, value in plain_values(run, 'config'):
    if isinstance(value, str) and is_bucket(value):
      continue
    is_missing = path.endswith('.path') and not os.path.exists(value) and not glob.glob(value, recursive=True)
    if is_missing and not (path == 'config.tokenizer.path' and value in on_hub):
      raise ConfigError(path, value, f'no such file: name one by --config={file}:FILE or --{path}=FILE')
  for i, stage in enumerate(run.stages):
    if not isinstance(stage.init, HuggingFace) or stage.init.hub_name is not None:
      continue
    if not os.path.isdir(stage.init.folder):
      raise ConfigError(f'config.stages[{i}].init.folder', stage.init.folder,
                        'no such folder: name one with config.json and weights, or a model on the hub, OWNER/NAME')


def check_buckets(run: Run) -> None:
  """Refuses a place in a bucket that cannot be read, or where nothing is."""
  checked: set[str] = set()
  for field, text, _ in places(run, 'config'):
    if not is_bucket(text) or text in checked:
      continue
    checked.add(text)
    path = BucketPath(text)
    path.check_access(field, writes=False)
    if field.endswith('.path') and not find(path, ('',)):
      raise ConfigError(field, text, 'there is no such object, nothing below it, and it is no pattern that fits one')


def plain_values(value: Any, path: str) -> Iterator[tuple[str, Any]]:
  """Yields (path, value) for every plain value of a dataclass."""
  if dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      yield from plain_values(getattr(value, field.name), f'{path}.{field.name}')
  elif is_sequence(value):
    for i, item in enumerate(value):
      yield from plain_values(item, f'{path}[{i}]')
  else:
    yield path, value
