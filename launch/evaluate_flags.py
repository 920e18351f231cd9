"""The command line of `launch.evaluate` as checked values."""
import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from launch.place_flags import local_path, run_path
from llm_jax.config.errors import require
from llm_jax.config.packages import is_installed
from llm_jax.config.source import TEMPLATES
from llm_jax.config.strategies import Strategy, read_strategy

HF = 'hf'  # the value of --against


@dataclasses.dataclass(frozen=True)
class EvaluateFlags:
  """What a command line says. `parse` says what each is."""
  checkpoint: pathlib.Path
  stage: str | None
  step: int | None
  tasks: tuple[str, ...]
  data: dict[str, pathlib.Path]
  examples: dict[str, pathlib.Path]
  include_path: pathlib.Path | None
  num_fewshot: int | None
  limit: int | None
  chat: bool
  template: str | None
  system: str | None
  one_turn: bool
  no_bos: bool
  max_length: int | None
  truncate: bool
  cluster: str | None
  allow_code: bool
  samples: int
  strategy: Strategy | None
  against: str | None
  baseline: pathlib.Path | None
  output: pathlib.Path | None
  batch_size: int
  dtype: str | None
  seed: int
  coordinator: str | None
  num_processes: int | None
  process_id: int | None


def parse(argv: Sequence[str] | None, description: str) -> EvaluateFlags:
  parser = argparse.ArgumentParser(prog='python -m launch.evaluate', description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--checkpoint', required=True, type=run_path, metavar='WORKDIR',
      help='the folder of the run; or a Hugging Face folder, or the name of a model on the hub')
  add('--stage', help='default: the last one that has a checkpoint')
  add('--step', type=int, help='default: the newest valid checkpoint')
  add('--tasks', required=True, metavar='NAME,NAME',
      help='tasks of lm-evaluation-harness, .yaml files, stdlib_bodies, stdlib_names, human_eval, reasoning_gym.NAME')
  add('--data', action='append', default=[], metavar='TASK=FILE',
      help='the questions of a task: JSON lines, JSON or parquet with the columns of its official data set')
  add('--examples', action='append', default=[], metavar='TASK=FILE',
      help='likewise the examples before them; default: other questions of the same file')
  add('--include_path', type=local_path, metavar='DIR', help='a folder of .yaml tasks of your own')
  add('--num_fewshot', type=int, metavar='N', help='examples before each question; default: as the task says')
  add('--limit', type=int, metavar='N', help='questions of each task, from the first on; default: all')
  add('--chat', action='store_true', help="put the questions as conversations, by the model's chat template")
  add('--template', choices=TEMPLATES, help='of --chat: another template than the one of the last stage')
  add('--system', metavar='TEXT', help='of --chat: a system message')
  add('--one_turn', action='store_true', help='of --chat: all examples in one message of the user')
  add('--no_bos', action='store_true', help='texts begin without what a document begins with')
  add('--max_length', type=int, metavar='N', help="tokens that are read at a time; default: the model's own length")
  add('--truncate', action='store_true', help='cut prompts that are too long at their beginning, and count them')
  add('--cluster', metavar='FIELD', help='questions that share it do not vary apart: for their standard error')
  add('--allow_code', action='store_true', help='run what the model writes, in tasks that ask for code')
  add('--samples', type=int, default=1, metavar='N', help='answers to each problem of human_eval; default 1')
  add('--strategy', metavar='NAME:KEY=VALUE',
      help='how answers are found: zero_shot_cot, self_consistency:n=40, auto_cot:clusters=8, tree_of_thoughts, '
      'chaining:file=F, active_prompt:annotations=F, retrieval:index=DIR')
  add('--against', choices=(HF,), help="run the harness's own `hf` backend on the same model too, and compare")
  add('--baseline', type=local_path, metavar='DIR', help='the output of an earlier evaluation, to compare with')
  add('--output', type=local_path, metavar='DIR', help='default: evaluations/NAME, by the name of the checkpoint')
  add('--batch_size', type=int, default=16, metavar='N', help='texts that are read at a time; default 16')
  add('--dtype', choices=('float32', 'bfloat16'), help="of the computation; default: the run's own")
  add('--seed', type=int, default=0, help='of answers that are drawn; default 0')
  add('--coordinator', metavar='HOST:PORT', help="many processes: where process 0 listens, or 'auto'")
  add('--num_processes', type=int, metavar='N', help='of many processes')
  add('--process_id', type=int, metavar='I', help='of this one, from 0')
  values = vars(parser.parse_args(argv))
  values['tasks'] = tuple(name.strip() for name in values['tasks'].split(',') if name.strip())
  return EvaluateFlags(**values)


def check(flags: EvaluateFlags) -> EvaluateFlags:
  """Refuses flags that are wrong or do not go together.

  Returns them with `data` and `examples` as files by the name of the task.

  Raises:
    ConfigError: names the flag.
  """
  require(is_installed('lm_eval'), '--tasks', ','.join(flags.tasks),
          "lm_eval, which has the tasks, is not installed: pip install 'llm_jax[eval]'")
  require(len(flags.tasks) > 0, '--tasks', '', 'name at least one task')
  for name, least in (('limit', 1), ('batch_size', 1), ('samples', 1), ('max_length', 2), ('num_fewshot', 0)):
    value = getattr(flags, name)
    require(value is None or value >= least, f'--{name}', value, f'use {least} or more')
  for name in ('template', 'system', 'one_turn'):
    value = getattr(flags, name)
    require(flags.chat or not value, f'--{name}', value, 'is of conversations: say --chat too')
  require(flags.against is None or flags.template is None, '--template', flags.template,
          'does not go with --against: the exported model has the template that it was trained with')
  require(flags.include_path is None or flags.include_path.is_dir(), '--include_path', str(flags.include_path),
          'no such folder')
  is_output = flags.baseline is None or (flags.baseline / 'results.json').is_file()
  require(is_output, '--baseline', str(flags.baseline), 'holds no results.json: name the output of an evaluation')
  if flags.against == HF:
    for package in ('torch', 'transformers', 'accelerate'):
      require(is_installed(package), '--against', HF, f'{package} is not installed: pip install {package}')
  require(flags.against is None or flags.strategy is None, '--strategy', str(flags.strategy),
          'does not go with --against, which compares plain answers')
  data = files_of('--data', flags.data)
  strategy = None if flags.strategy is None else read_strategy(str(flags.strategy))
  return dataclasses.replace(flags, data=data, examples=files_of('--examples', flags.examples), strategy=strategy)


def files_of(flag: str, texts: Sequence[str] | dict[str, pathlib.Path]) -> dict[str, pathlib.Path]:
  """`arc_easy=FILE` by the name of the task."""
  found: dict[str, pathlib.Path] = {}
  for text in texts:
    name, equals, path = text.partition('=')
    require(bool(name and equals and path), flag, text, f'write it as {flag}=TASK=FILE')
    require(name not in found, flag, text, f'{name} has {found.get(name)} already: name one file')
    found[name] = pathlib.Path(path)
  return found
