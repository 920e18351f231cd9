"""What judges the battles of `launch.arena`: a Python function, a reward model, or a language model."""
import argparse
import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from launch.imported import run_folder
from launch.place_flags import local_path
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.judges import PairJudge
from llm_jax.config.teachers import SavedRun

JUDGES = {'--judge': 'judge', '--reward_model': 'reward_model', '--judge_model': 'judge_model'}
ROWS_AT_ONCE = 16


def add_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--judge', metavar='FILE:FUNCTION', help='a Python function (prompt, answer) -> number that decides every battle')
  add('--reward_model', type=local_path, metavar='WORKDIR', help='a run whose reward model decides every battle')
  add('--judge_model', type=local_path, metavar='WORKDIR',
      help='a run with a language model that is asked, in both orders, which answer is better')
  add('--judge_template', type=local_path, metavar='FILE',
      help='a text file with what it is asked, with {prompt}, {first} and {second} in it')
  add('--judge_options', default='A,B', metavar='A,B',
      help='what it says for the first and for the second, one token each; default A,B')
  add('--judge_chat', metavar='TEMPLATE', help='the chat template in which it is asked; default: a text to go on with')
  add('--judge_stage', metavar='STAGE', help='the stage of its run, or of the reward model\'s; default: the last one')


def check_judge(args: argparse.Namespace) -> None:
  """Refuses flags that do not go together."""
  given = [flag for flag, name in JUDGES.items() if getattr(args, name) is not None]
  require(not given or args.prompts is not None, given[0] if given else '', getattr(args, JUDGES[given[0]], None)
          if given else None, 'only with --prompts')
  require(len(given) <= 1, given[-1] if given else '', given, 'one judge decides: use one of these')
  if args.judge_model is None:
    require(args.judge_template is None, '--judge_template', str(args.judge_template), 'only with --judge_model')
  else:
    pair_judge(args)


def pair_judge(args: argparse.Namespace) -> PairJudge:
  """The judge of the flags. Raises ConfigError where it has no template, or one that lacks a field."""
  path = args.judge_template
  require(path is not None, '--judge_template', path, 'write what the judge is asked into a file, and name that')
  try:
    template = path.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise ConfigError('--judge_template', str(path), f'cannot be read ({error}): name another') from error
  try:
    return PairJudge(SavedRun(str(args.judge_model)), template, tuple(args.judge_options.split(',')),
                     chat=args.judge_chat)
  except ConfigError as error:
    raise ConfigError(f'--judge_{error.field}', error.value, error.hint) from error


def judge_battles(args: argparse.Namespace) -> Callable[[Sequence[Any]], list[Any]] | None:
  """battles -> votes; None where a person votes. Checkpoints are looked at now, and read when it is called."""
  if args.judge is not None:
    return by_function(args.judge)
  if args.reward_model is not None:
    return by_reward_model(run_folder('--reward_model', args.reward_model), args.judge_stage)
  if args.judge_model is not None:
    return by_language_model(run_folder('--judge_model', args.judge_model), args.judge_stage, pair_judge(args))
  return None


def by_function(place: str) -> Callable[[Sequence[Any]], list[Any]]:
  """The function of `FILE:FUNCTION`."""
  from llm_jax.arena import battles
  path, _, name = place.rpartition(':')
  require(pathlib.Path(path).is_file(), '--judge', place, 'write FILE.py:FUNCTION, with a file that is there')
  spec = importlib.util.spec_from_file_location('judge', path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  require(hasattr(module, name), '--judge', place, f'{path} has no function {name}')
  verify: Any = getattr(module, name)
  return lambda known: battles.by_score(known, lambda pairs: [float(verify(*pair)) for pair in pairs])


def by_reward_model(workdir: pathlib.Path, stage: str | None) -> Callable[[Sequence[Any]], list[Any]]:
  """The reward model of a run."""
  from llm_jax.arena import battles, models
  opened = models.open_saved('--reward_model', workdir, stage, is_reward_model=True)
  return lambda known: battles.by_score(known, models.reward_scores(opened, ROWS_AT_ONCE))


def by_language_model(workdir: pathlib.Path, stage: str | None, judge: PairJudge
                      ) -> Callable[[Sequence[Any]], list[Any]]:
  """The language model of a run."""
  from llm_jax.arena import battles, models
  opened = models.open_saved('--judge_model', workdir, stage)
  models.check_options(opened, judge)
  return lambda known: battles.by_orders(known, models.judged_orders(opened, judge, ROWS_AT_ONCE))
