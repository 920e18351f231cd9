"""Where a stage starts: what each type answers, and how it is chosen on the command line."""
import pathlib
import typing

import pytest

from launch.errors import Refused
from launch.experiment_file import load_run
from launch.flags import parse_train
from llm_jax.config.errors import ConfigError
from llm_jax.config.stage_init import Average, Checkpoint, HuggingFace, Init, Params, Resume, Scratch, StageInit

QUICKSTART = f'--config={pathlib.Path(__file__).parents[2]}/experiments/quickstart.py'
NAMED = Average((Checkpoint('a', 4), Checkpoint('b'), Checkpoint('a', 8, weight=2.0), Checkpoint('a', weight=0.5)))


@pytest.mark.parametrize('init, labels, origin', [
  (Scratch(), {}, ''),
  (Resume('a'), {'a': 'resume'}, ''),
  (Params('a'), {'a': 'params'}, ''),
  (Average('a', last=3), {'a': 'average 3'}, ''),
  (NAMED, {'a': 'average 4, 2 x 8, 0.5 x last', 'b': 'average last'}, ''),
  (HuggingFace('folder'), {}, 'Hugging Face'),
])
def test_what_a_start_takes_from_which_stage(init, labels, origin):
  assert init.parents == tuple(labels) and init.origin == origin
  assert {parent: init.label(parent) for parent in init.parents} == labels


def test_which_checkpoints_must_stay():
  assert NAMED.pinned_steps('a') == (4, 8) and NAMED.pinned_steps('b') == NAMED.pinned_steps('c') == ()
  assert not NAMED.averages_newest('a') and not Average('a', last=3).averages_newest('b')
  assert Average('a', last=3).averages_newest('a') and Average('a', last=3).pinned_steps('a') == ()
  assert Resume('a').pinned_steps('a') == Params('a').pinned_steps('a') == () and not Params('a').averages_newest('a')


def test_every_kind_answers_the_same_questions():
  kinds = typing.get_args(Init)
  assert len(kinds) == 5 and all(issubclass(kind, StageInit) for kind in kinds)


def init(*overrides: str) -> Init:
  """The start of the quickstart's stage `average`, with settings of the command line."""
  run = parse_train(['launch.train', QUICKSTART, '--workdir=runs/x', *overrides], '').run
  return next(stage for stage in run.stages if stage.name == 'average').init


def test_kinds_on_the_command_line():
  assert init() == Average('anneal', last=3)
  assert init('--config.stages[3].init.last=2') == Average('anneal', last=2)
  assert init('--config.stages[3].init.kind=Scratch') == Scratch()
  resumed = ['--config.stages[3].init.kind=Resume', '--config.stages[3].init.stage=anneal']
  assert init(*resumed, '--config.stages[3].optimizer.kind=AdamW', '--config.stages[2].optimizer.kind=AdamW',
              '--config.stages[1].optimizer.kind=AdamW', '--config.stages[0].optimizer.kind=AdamW') == Resume('anneal')
  named = '--config.stages[3].init={"kind": "Average", "checkpoints": [{"stage": "anneal"}]}'
  assert init(named, '--config.stages[3].init.checkpoints[0].weight=2') == Average((Checkpoint('anneal', weight=2.0),))


@pytest.mark.parametrize('setting, message', [
  ('init.kind=Skratch', "init.kind = 'Skratch': no such kind; did you mean 'Scratch'?"),
  ('init.kind=Params', "init.stage = <missing>: Params needs it: give a string"),
  ('init=scratch',
   "init = 'scratch': give Scratch() or Resume(...) or Params(...) or Average(...) or HuggingFace(...)"),
  ('init.last=0', "init.last = 0: say how many checkpoints of 'anneal' are averaged: use 1 or more"),
  ('init.checkpoints=aneal', "init = Average(checkpoints='aneal', last=3): name an earlier stage, one of ['pretrain'"),
])
def test_wrong_starts_are_one_line(setting, message, capsys):
  with pytest.raises(SystemExit):
    init(f'--config.stages[3].{setting}')
  error = capsys.readouterr().err
  assert error.startswith(f'error: config.stages[3].{message}') and error.count('\n') == 1, error


def test_a_checkpoint_that_stands_alone_is_told_to_be_a_tuple(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text('from llm_jax.config.experiment import *\ndef get_config():\n  return Average(Checkpoint("a"))\n')
  with pytest.raises(Refused, match=r"Average.checkpoints = Checkpoint\(.*\): give a string or a tuple, "
                                     r"not Checkpoint, "
                                    r"such as \(Checkpoint\(...\),\)"):
    load_run(str(file))


def test_a_folder_that_is_not_there(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text((pathlib.Path(__file__).parents[2] / 'experiments' / 'quickstart.py').read_text())
  arguments = ['launch.train', f'--config={file}', '--workdir=runs/x', '--config.stages[0].init.kind=HuggingFace']
  with pytest.raises(SystemExit):
    parse_train([*arguments, f'--config.stages[0].init.folder={tmp_path}/none'], '')
  with pytest.raises(ConfigError, match='folder = <missing>'):
    load_run(str(file), [('stages[0].init.kind', 'HuggingFace')])
