"""Every family and objective still gives the losses that were written down for it."""
import dataclasses
import math
from functools import partial

import pytest

from experiments.family import FAMILIES
from llm_jax.config import presets
from tools import golden
from tools.golden_cases import OBJECTIVES, cases, objective_names
from tools.golden_data import write_data
from tools.training import Record, Rows

# The families that have most that no other has; tests/hf/test_parity.py holds every family in every run of the tests.
UNLIKE = ('gpt2', 'gemma2', 'mixtral', 'qwen3', 'deepseek')
RECORD = Record(losses=(3.0, 2.0, 1.0), batches='ab', num_parameters=7, initial_norm=2.0, final_norm=4.0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder with the files that all cases read; what is tokenised is kept nowhere else."""
  folder = tmp_path_factory.mktemp('golden')
  write_data(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('LLM_JAX_CACHE', str(folder / 'cache'))
    yield folder


def is_slow(name):
  return name.startswith('family_') and name.removeprefix('family_') not in UNLIKE


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * is_slow(name)) for name in cases()])
def test_losses_are_golden(name, data):
  expected = golden.read(name)
  first, second = golden.records(name, data, times=2)
  assert golden.difference(second, first, golden.SAME_MACHINE) == ''
  found = golden.difference(first, expected, golden.OTHER_MACHINE)
  assert found == '', f'{found}. If that is meant: python -m tools.golden --write {name}'


# ---------------------------------------------------------------------------------------------- nothing is left out
def test_every_family_has_a_case():
  functions = {name for name in presets.__all__ if not isinstance(getattr(presets, name), partial)}
  assert functions <= set(FAMILIES), 'give the new family a row in experiments/family.py'
  assert {f'family_{name}' for name in FAMILIES} <= set(cases()) and set(UNLIKE) <= set(FAMILIES)


def test_every_objective_has_a_case():
  hint = 'give the new objective a row in OBJECTIVES of tools/golden_cases.py'
  assert set(objective_names()) == set(OBJECTIVES), hint
  assert {f'objective_{name}' for name in objective_names()} <= set(cases())


def test_every_record_has_a_case():
  assert {path.stem for path in golden.FOLDER.glob('*.json')} == set(cases())


def test_a_case_without_a_record_names_the_command_that_writes_it(tmp_path):
  with pytest.raises(FileNotFoundError, match='python -m tools.golden --write objective_DPO'):
    golden.read('objective_DPO', tmp_path)


# ---------------------------------------------------------------------------------------------- the comparison
@pytest.mark.parametrize('changes, words', [
  ({}, ''),
  ({'losses': (3.0, 2.0, 1.00005)}, ''),
  ({'losses': (3.0, 2.001, 1.5)}, 'the loss of step 2 is 2.001, and was 2.0: 5.0e-04 apart'),
  ({'losses': (3.0, math.nan, 1.0)}, 'the loss of step 2 is nan'),
  ({'losses': (3.0, 2.0)}, 'there are 2 losses, and were 3'),
  ({'num_parameters': 8}, 'the model has 8 parameters, and had 7'),
  ({'batches': 'cd', 'losses': (9.0, 9.0, 9.0)}, 'the batches hold other rows'),
  ({'initial_norm': 2.1, 'losses': (9.0, 9.0, 9.0)}, 'the initial parameters have norm 2.1, and had 2.0'),
  ({'final_norm': 4.1}, 'the trained parameters have norm 4.1, and had 4.0'),
])
def test_a_difference_is_said_in_words(changes, words):
  found = golden.difference(dataclasses.replace(RECORD, **changes), RECORD, golden.OTHER_MACHINE)
  assert found.startswith(words) and bool(found) == bool(words)


def test_other_rows_differ():
  assert golden.difference(Rows('ab', 'cd'), Rows('ab', 'cd'), 0.0) == ''
  assert 'other rows' in golden.difference(Rows('ab', 'ce'), Rows('ab', 'cd'), 0.0)


def test_records_are_written_as_they_are(tmp_path):
  record = dataclasses.replace(RECORD, losses=(0.1 + 0.2, 1e-9))
  for name, each in (('family_llama', record), ('data_concat', Rows('ab', 'cd'))):
    golden.write(name, each, tmp_path)
    assert golden.read(name, tmp_path) == each
