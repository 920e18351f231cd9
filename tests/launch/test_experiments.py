"""The files in `experiments/` are sound and have the published numbers; those that change one thing change no more."""
import pathlib
import re

import pytest

from launch.experiment_file import load_run
from launch.flags import check_mesh
from llm_jax.config import schema
from llm_jax.config.experiment import Average
from llm_jax.config.objectives import DPO
from llm_jax.config.schedules import Cosine, LinearToZero

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
ARGUMENTS = {'family': ':llama', 'shakespeare_char': ':a', 'gpt2_124m': ':a', 'llama3_8b': ':a', 'llama3_405b': ':a',
             'small_chat': ':a', 'rl_miniature': ':grpo', 'distill_small': ':teacher',
             'prompting_miniature': ':a', 'reward_model_miniature': ':2'}


def load(name):
  return load_run(f'{EXPERIMENTS / name}.py{ARGUMENTS.get(name, "")}')


def differences(one, other, path=''):
  """The paths at which two trees differ."""
  if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
    return [found for key in one for found in differences(one[key], other[key], f'{path}.{key}')]
  if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
    return [found for i, item in enumerate(one) for found in differences(item, other[i], f'{path}[{i}]')]
  return [] if one == other else [path]


# finetune.py and finetune_dpo.py read a folder: test_finetune.py
@pytest.mark.parametrize('name', sorted(path.stem for path in EXPERIMENTS.glob('[!_]*.py')
                                        if not path.stem.startswith('finetune')))
def test_sound(name):
  check_mesh(load(name))


@pytest.mark.parametrize('name, tokens', [
  ('shakespeare_char', 12 * 64), ('gpt2_124m', 12 * 1_024 * 40), ('llama3_8b', 2**22), ('llama3_405b', 2**22)])
def test_tokens_of_the_first_step(name, tokens):
  assert load(name).stages[0].tokens_after(1) == tokens


@pytest.mark.parametrize('name, peak', [('llama3_8b', 3e-4), ('llama3_405b', 8e-5)])
def test_the_schedule_of_llama_3(name, peak):
  """Dubey et al. 2024, table 3 and sections 3.4, 4.1.3 and 4.1.4."""
  run = load(name)
  initial, *_, anneal, average, sft, dpo = run.stages
  assert initial.learning_rate == Cosine(peak, warmup=8_000, final=0.01) and initial.steps == 1_200_000
  assert [(phase.batch_size * phase.seq_len, phase.seq_len) for phase in initial.phases] == [
    (2**22, 4_096), (2**23, 8_192), (2**24, 8_192)]
  assert [phase.first_token for phase in initial.phases] == [
    0, pytest.approx(252e6, abs=2**22), pytest.approx(2.87e12, abs=2**23)]
  long = run.stages[1:-4]
  assert [stage.positions.theta for stage in long] == [500_000] * 6 and long[-1].seq_len == 131_072
  assert sum(stage.tokens_after(stage.steps) for stage in long) == pytest.approx(800e9, rel=1e-3)
  assert isinstance(anneal.learning_rate, LinearToZero) and anneal.seq_len == 131_072
  assert run.model_of(dpo).positions.scaling.factor == 8 and average.init == Average('anneal', last=4)
  assert sft.learning_rate.peak == dpo.learning_rate.peak == 1e-5 and sft.steps == 9_000
  assert dpo.objective == DPO(beta=0.1, nll_weight=0.2)


@pytest.mark.parametrize('name, changed', [('quickstart_no_averaging', r'stages\[\d\].init.stage'),
                                           ('quickstart_no_scaling', r'stages\[\d\].positions.scaling')])
def test_an_ablation_changes_one_thing_in_few_lines(name, changed):
  found = differences(schema.to_json(load('quickstart')), schema.to_json(load(name)))
  assert len(found) == 1 and re.fullmatch(rf'\.{changed}', found[0]), found
  assert len((EXPERIMENTS / f'{name}.py').read_text().splitlines()) < 15


def test_an_experiment_imports_its_neighbour(tmp_path):
  """Anywhere, and only while it is read."""
  (tmp_path / 'the_first_of_mine.py').write_text(
    'from experiments.quickstart import get_config as quickstart\n\n\ndef get_config():\n  return quickstart()\n')
  second = tmp_path / 'second.py'
  second.write_text('import the_first_of_mine\n\n\ndef get_config():\n  config = the_first_of_mine.get_config()\n'
                    '  config.stages[0].steps += 1\n  return config\n')
  found = differences(schema.to_json(load('quickstart')), schema.to_json(load_run(str(second))))
  assert found == ['.stages[0].steps']
  with pytest.raises(ModuleNotFoundError):
    import second as none  # noqa: F401
