"""The command line of `launch.train` as checked values.

Wrong input ends here: one line, exit code 2, before jax is even imported.
"""
import dataclasses
import errno
import os
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags

from launch.errors import Refused, refusing
from launch.experiment_file import check_files, load_run
from launch.field_help import format_fields
from launch.overrides import split_overrides
from llm_jax.config.errors import ConfigError, located
from llm_jax.config.places import check_is_path
from llm_jax.config.run import Run
from llm_jax.config.type_hints import suggest
from llm_jax.runtime.address import split_address
from llm_jax.runtime.buckets import BucketPath, place
from llm_jax.sharding.check import check_divides, row_shards

FIELDS = """Every field of the experiment can be set: --config.seed=3 --config.stages[0].learning_rate.peak=3e-4
--config.stages[0].ema=0.99 --config.stages[0].optimizer.kind=Muon. With --config=FILE.py, --help prints them all.
"""
FIELD_HINT = 'a field of the experiment is set by --config.FIELD=VALUE, and --config=FILE --help lists them'
LONGEST_PATH = f'00000000.saving/state/{"x" * 100}'  # about that of the longest file of a checkpoint
PROFILE = re.compile(r'(\d{1,18}):(\d{1,18})')
HELP = ('help', 'h', 'helpfull', 'helpshort')
STRINGS = {
  'config': 'the experiment: FILE.py or FILE.py:argument',
  'workdir': 'the folder of the run',
  'stage': 'run this stage only',
  'profile': 'START:STOP, steps of the stage to trace: prints where their time went',
  'coordinator': "many processes: host:port of process 0, or 'auto': jax finds it by itself",
}
INTEGERS = {
  'cpu_devices': 'makes the CPU so many devices, such as one for each core, for the mesh to split the batch among',
  'from_step': 'go back to this step of the stage that is not finished, under another learning rate or optimizer',
  'num_processes': 'many processes: how many',
  'process_id': 'many processes: which one this is, from 0',
}


@dataclasses.dataclass(frozen=True)
class TrainFlags:
  """What a command line says.

  config: as given, with its argument.
  overrides: as given, such as `seed=3`.
  """
  run: Run
  config: str
  overrides: tuple[str, ...]
  workdir: pathlib.Path
  stage: str | None
  coordinator: str | None
  num_processes: int | None
  process_id: int | None
  from_step: int | None
  cpu_devices: int | None
  profile: tuple[int, int] | None


def parse_train(argv: Sequence[str], usage: str) -> TrainFlags:
  """Reads `launch.train`'s command line, checking all that needs no device.

  Args:
    argv: as in `sys.argv`; the first is the program.
    usage: what `--help` prints first.

  Raises:
    SystemExit: 0 after `--help`, 2 after one line on stderr for wrong input.
  """
  with refusing():
    overrides, others = split_overrides(argv)
    arguments = [argument for argument in others if not is_help(argument)]
    if len(arguments) < len(others):
      print_help(arguments, overrides, usage)
      sys.exit(0)
    return check_flags(read_flags(arguments), overrides)


def is_help(argument: str) -> bool:
  return argument.startswith('-') and argument.lstrip('-') in HELP


def print_help(arguments: Sequence[str], overrides: Sequence[tuple[str, str]], usage: str) -> None:
  """Prints `usage`, the flags and, of an experiment that is named, every field with its value."""
  print(f'{usage}\n{FIELDS}')
  for name, words in (STRINGS | INTEGERS).items():
    print(f'  --{name:<14} {words}')
  values = read_flags(arguments)  # only now: whatever is wrong stands below the help
  if values.config:
    run = load_run(values.config, overrides)
    print(f'\nFields of {values.config}:')
    print(format_fields(run))


def read_flags(arguments: Sequence[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  for name, words in STRINGS.items():
    flags.DEFINE_string(name, None, words, flag_values=values)
  for name, words in INTEGERS.items():
    flags.DEFINE_integer(name, None, words, flag_values=values)
  try:
    positional = values(list(arguments))[1:]
  except flags.Error as error:
    is_like_no_flag = isinstance(error, flags.UnrecognizedFlagError) and 'Did you mean' not in str(error)
    raise Refused(f'{error}; {FIELD_HINT}' if is_like_no_flag else str(error)) from None
  if positional:
    raise Refused(f'{positional[0]!r} is not a flag: flags look like --workdir=runs/quickstart')
  return values


# ---------------------------------------------------------------------------------------------- checks
def check_flags(values: flags.FlagValues, overrides: Sequence[tuple[str, str]]) -> TrainFlags:
  run = load_run(values.config, overrides)
  check_files(run, values.config)
  check_mesh(run)
  check_workdir(values.workdir, [stage.name for stage in run.stages])
  check_processes(values.coordinator, values.num_processes, values.process_id)
  check_stage(run, values.stage)
  check_from_step(values.from_step)
  check_cpu_devices(values.cpu_devices)
  return TrainFlags(
    run=run,
    config=values.config,
    overrides=tuple(f'{path}={text}' for path, text in overrides),
    workdir=place(values.workdir),
    stage=values.stage,
    coordinator=values.coordinator,
    num_processes=values.num_processes,
    process_id=values.process_id,
    from_step=values.from_step,
    cpu_devices=values.cpu_devices,
    profile=None if values.profile is None else parse_profile(run, values.stage, values.profile),
  )


def check_stage(run: Run, name: str | None) -> None:
  names = [stage.name for stage in run.stages]
  if name is not None and name not in names:
    raise Refused(f'--stage={name}: no such stage; {suggest(name, names)}')


def parse_profile(run: Run, stage: str | None, text: str) -> tuple[int, int]:
  """`100:110` as numbers: the steps behind the first 100, until 110 are done."""
  match = PROFILE.fullmatch(text)
  if match is None:
    raise Refused(f'--profile={text}: write it as START:STOP, such as --profile=10:15')
  start, stop = int(match[1]), int(match[2])
  if start >= stop:
    raise Refused(f'--profile={text}: there is no step between them: let STOP be above START')
  most = max(each.steps for each in run.stages if stage in (None, each.name))
  if stop > most:
    raise Refused(f'--profile={text}: {f"stage {stage} has" if stage else "the longest stage has"} {most} steps: let '
                  'STOP be at most that')
  return start, stop


def check_from_step(step: int | None) -> None:
  if step is not None and step < 0:
    raise Refused(f'--from_step={step}: use the step of a checkpoint, or 0 for where the stage began')


def check_cpu_devices(count: int | None) -> None:
  if count is None:
    return
  if count < 1:
    raise Refused(f'--cpu_devices={count}: use 1 or more, such as one for each core')
  if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    raise Refused(f'--cpu_devices={count}: XLA_FLAGS says xla_force_host_platform_device_count besides: keep one of '
                  'the two')


def check_mesh(run: Run) -> None:
  """Refuses a mesh that cannot divide the model or a batch, as far as that shows before the devices are counted."""
  with located('config'):
    for stage in run.stages:
      for phase in stage.phases_over(row_shards(run.model, run.mesh)):
        check_divides(run.model, run.mesh, phase.batch_size, phase.seq_len, microbatches=phase.microbatches,
                      stage=stage.name)


def check_workdir(workdir: str | None, stages: Sequence[str] = ()) -> None:
  """Refuses a workdir that cannot be written, or whose file system cannot hold a checkpoint's names; makes nothing."""
  if not workdir:
    raise Refused('--workdir is missing: say where the run lives, such as --workdir=runs/quickstart')
  found = place(workdir)
  if isinstance(found, BucketPath):
    found.check_access('--workdir', writes=True)
    return
  check_is_path('--workdir', workdir)
  path = pathlib.Path(workdir).absolute()
  try:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
  except OSError as error:
    raise Refused(f'--workdir={workdir}: {error.strerror}: choose another folder') from None
  if not existing.is_dir():
    raise Refused(f'--workdir={workdir}: {existing} is a file: name a folder')
  if not os.access(existing, os.W_OK | os.X_OK):
    raise Refused(f'--workdir={workdir}: {existing} is not writable: choose another folder, or change its permissions')
  for i, name in enumerate(stages):
    if is_too_long(existing / name):
      raise ConfigError(f'config.stages[{i}].name', name, f'is too long for the file system of {existing}: shorten it')
    if is_too_long(path / 'checkpoints' / name / LONGEST_PATH):
      raise Refused(f'--workdir={workdir}: its path is too long for the files of a checkpoint: choose a shorter one')


def is_too_long(path: pathlib.Path) -> bool:
  """Whether the file system, where the folder of `path` exists, takes no such name."""
  try:
    os.lstat(path)
  except OSError as error:
    return error.errno == errno.ENAMETOOLONG
  return False


def check_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Refuses flags of many processes that are half given or impossible."""
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [name for name, value in given.items() if value is None]
  is_one_process = len(missing) == len(given)
  is_found_by_jax = coordinator == 'auto' and missing == ['num_processes', 'process_id']
  if is_one_process or is_found_by_jax:
    return
  if coordinator is None or num_processes is None or process_id is None:
    raise Refused(f'--{missing[0]} is missing: --coordinator, --num_processes and --process_id go together')
  split_address('--coordinator', coordinator)
  if num_processes < 1:
    raise Refused(f'--num_processes={num_processes}: use 1 or more')
  if not 0 <= process_id < num_processes:
    raise Refused(f'--process_id={process_id}: use 0 to {num_processes - 1}, for --num_processes={num_processes}')
