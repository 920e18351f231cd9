"""The command line of `launch.train` as checked values.

Wrong input ends here: one line, exit code 2, before jax is even imported.
"""
import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from absl import flags

from launch.experiment_file import Refused, check_files, load_run, settings, split_overrides
from llm_jax.config.errors import ConfigError, located
from llm_jax.config.run import Run
from llm_jax.config.schema import suggest, to_json
from llm_jax.runtime.address import split_address
from llm_jax.sharding.check import check_divides, row_shards

BAD_INPUT = 2  # the exit code of wrong flags and wrong configurations

FIELDS = """Every field of the experiment can be set: --config.seed=3 --config.stages[0].learning_rate.peak=3e-4
--config.stages[0].ema=0.99 --config.stages[0].optimizer.kind=Muon. With --config=FILE.py, --help prints them all.
"""
HELP = ('help', 'h', 'helpfull', 'helpshort')


@dataclasses.dataclass(frozen=True)
class TrainFlags:
  """What a command line says. config: as given, with its argument. overrides: as given, `seed=3`."""
  run: Run
  config: str
  overrides: tuple[str, ...]
  workdir: pathlib.Path
  stage: str | None
  coordinator: str | None
  num_processes: int | None
  process_id: int | None


def parse_train(argv: Sequence[str], usage: str) -> TrainFlags:
  """Reads `launch.train`'s command line, checking all that needs no device.

  Args:
    argv: as in `sys.argv`; the first is the program.
    usage: what `--help` prints first.

  Raises:
    SystemExit: 0 after `--help`, 2 after one line on stderr for wrong input.
  """
  values = flags.FlagValues()
  for name, words in (('config', 'the experiment: FILE.py or FILE.py:argument'),
                      ('workdir', 'the folder of the run'),
                      ('stage', 'run this stage only'),
                      ('coordinator', "many processes: host:port of process 0, or 'auto': jax asks the machine")):
    flags.DEFINE_string(name, None, words, flag_values=values)
  for name, words in (('num_processes', 'many processes: how many'),
                      ('process_id', 'many processes: which one this is, from 0')):
    flags.DEFINE_integer(name, None, words, flag_values=values)
  with refusing():
    overrides, rest = split_overrides(argv)
    rest, asked = [arg for arg in rest if not is_help(arg)], any(map(is_help, rest))
    if asked:
      print_help(values, rest, overrides, f'{usage}\n{FIELDS}')
      sys.exit(0)
    read_flags(values, rest)
    run = load_run(values.config, overrides)
    check_files(run, values.config)
    check_mesh(run)
    check_workdir(values.workdir)
    check_cluster(values.coordinator, values.num_processes, values.process_id)
    names = [stage.name for stage in run.stages]
    if values.stage is not None and values.stage not in names:
      raise Refused(f'--stage={values.stage}: no such stage; {suggest(values.stage, names)}')
  return TrainFlags(run, values.config, tuple(f'{path}={text}' for path, text in overrides),
                    pathlib.Path(values.workdir), values.stage, values.coordinator, values.num_processes,
                    values.process_id)


def is_help(arg: str) -> bool:
  return arg.startswith('-') and arg.lstrip('-') in HELP


def print_help(values: flags.FlagValues, argv: Sequence[str], overrides: Sequence[tuple[str, str]], usage: str) -> None:
  """Prints `usage`, the flags and, of an experiment that is named, every field with its value."""
  print('\n'.join([usage, *(f'  --{name:<14} {values[name].help}' for name in values)]))  # whatever is wrong below
  read_flags(values, argv)
  if values.config:
    fields = settings(to_json(load_run(values.config, overrides)), 'config')
    lines = (f'  --{path}={tuple(value) if isinstance(value, list) else value}' for path, value in fields)
    print('\n'.join([f'\nFields of {values.config}:', *lines]))


def read_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Fills `values` from `argv`."""
  try:
    positional = values(list(argv))[1:]
  except flags.Error as error:
    raise Refused(str(error)) from None
  if positional:
    raise Refused(f'{positional[0]!r} is not a flag: flags look like --workdir=runs/quickstart')


@contextlib.contextmanager
def refusing() -> Iterator[None]:
  """Ends the program with one line and exit code 2 where wrong input is found inside."""
  try:
    yield
  except (Refused, ConfigError) as error:
    refuse(str(error))


def refuse(message: str) -> NoReturn:
  """Prints `message` as one line on stderr and exits with code 2."""
  print('error: ' + ' '.join(message.split('\n')), file=sys.stderr)
  sys.exit(BAD_INPUT)


def check_mesh(run: Run) -> None:
  """Refuses a mesh that cannot divide the model or a batch, as far as that shows before the devices are counted."""
  for stage in run.stages:
    with located('config'):
      for phase in stage.phases_over(row_shards(run.model, run.mesh)):
        check_divides(run.model, run.mesh, phase.batch_size, phase.seq_len, microbatches=phase.microbatches,
                      stage=stage.name)


def check_workdir(workdir: str | None) -> None:
  """Refuses a workdir that cannot be written, without making it."""
  if not workdir:
    raise Refused('--workdir is missing: say where the run lives, such as --workdir=runs/quickstart')
  path = pathlib.Path(workdir).absolute()
  try:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
  except OSError as error:
    raise Refused(f'--workdir={workdir}: {error.strerror}: choose another folder') from None
  if not there.is_dir():
    raise Refused(f'--workdir={workdir}: {there} is a file: name a folder')
  if not os.access(there, os.W_OK | os.X_OK):
    raise Refused(f'--workdir={workdir}: {there} is not writable: choose another folder, or change its permissions')


def check_cluster(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Refuses half-given or impossible cluster flags."""
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given) or coordinator == 'auto' and len(missing) == 2:
    return
  if missing:
    raise Refused(f'--{missing[0]} is missing: --coordinator, --num_processes and --process_id go together')
  split_address('--coordinator', coordinator)
  if num_processes < 1:
    raise Refused(f'--num_processes={num_processes}: use 1 or more')
  if not 0 <= process_id < num_processes:
    raise Refused(f'--process_id={process_id}: use 0 to {num_processes - 1}, for --num_processes={num_processes}')
