"""Recipes in which reward models learn in rounds: what each stage learns from, and whole runs."""
import pathlib
import re

import pytest

from launch.experiment_file import load_run, plain_values
from llm_jax.config.experiment import Params, RewardModel
from llm_jax.tracking.metrics import read_metrics
from tests.train import runs

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
ROUNDS = f'{EXPERIMENTS}/reward_model_miniature.py'
SMALLER = {'steps': 2, 'warmup': 1, 'count': 100, 'prompts': 8, 'batches': 1, 'every': 1, 'at_least': -1.0}


def asked(stage):
  """The stages whose answers a stage learns from."""
  return [part.source.samples.stage for part in stage.data.sources]


def test_a_round_asks_the_newest_policy_and_learns_from_its_own_reward_model():
  stages = {stage.name: stage for stage in load_run(f'{ROUNDS}:3').stages}
  assert asked(stages['reward_1']) == ['texts'] and asked(stages['reward_3']) == ['texts', 'policy_1', 'policy_2']
  assert stages['reward_3'].init == Params('reward_2') and stages['policy_3'].init == Params('policy_2')
  for number in (1, 2, 3):
    proxy, _, gold = stages[f'policy_{number}'].rollout.rewards
    assert proxy.model == Params(f'reward_{number}') and gold.weight == 0  # the verifier teaches no policy


def test_the_recipe_of_llama_2():
  stages = load_run(f'{EXPERIMENTS}/llama2_chat_small.py').stages
  for number in (1, 2, 3):
    reward, rejection = stages[2 * number - 1:2 * number + 1]
    assert isinstance(reward.objective, RewardModel) and len(reward.data.sources) == number
    assert asked(rejection) == [rejection.init.stage] == asked(reward)[-1:]
    assert [each.weight for each in rejection.data.sources[0].source.samples.rewards] == [1, 2, 0]


def test_the_recipe_of_llama_3():
  stages = load_run(f'{EXPERIMENTS}/llama3_rounds_small.py').stages
  for number in (1, 2, 3):
    reward, sft, low, high, average = stages[5 * number - 4:5 * number + 1]
    assert isinstance(reward.objective, RewardModel) and len(reward.data.sources) == number
    assert reward.init == sft.init == Params('pretrain')
    assert asked(sft) == [stages[5 * number - 5].name]
    assert asked(low) == asked(high) == [low.init.stage] == [high.init.stage] == [sft.name]
    assert [each.stage for each in average.init.named] == [low.name, high.name]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['reward_model_miniature.py:2', 'instructgpt_small.py', 'llama2_chat_small.py',
                                  'llama3_rounds_small.py'])
def test_a_few_steps(name, tmp_path):
  """Every stage of the file, each as short as can be."""
  experiment = f'{EXPERIMENTS}/{name}'
  values = plain_values(load_run(experiment), 'config')
  smaller = {path: SMALLER.get(re.search(r'(\w+)$', path)[1]) for path, value in values if value}
  flags = [f'--{path}={value}' for path, value in smaller.items() if value]
  runs.run(tmp_path / 'none', tmp_path / 'run', *flags, experiment=experiment)
  records = read_metrics(tmp_path / 'run')
  ended = [record['stage'] for record in records if record['kind'] == 'final']
  assert ended == [stage.name for stage in load_run(experiment).stages]
  assert any('reward/exact' in record for record in records)


@pytest.mark.slow
def test_a_policy_pleases_its_reward_model_and_gets_worse(tmp_path):
  """Proxy beside gold, on held-out prompts."""
  runs.run(tmp_path / 'none', tmp_path / 'run', experiment=f'{ROUNDS}:1')
  final = next(record for record in read_metrics(tmp_path / 'run')
               if record['kind'] == 'final' and record['stage'] == 'policy_1')
  assert final['reward_sampled/proxy'] > final['reward_sampled/proxy_at_start'] + 2
  assert final['pass_sampled'] < final['pass_sampled_at_start'] / 2


@pytest.mark.slow
def test_rounds_of_rejection_sampling_mend_it(tmp_path):
  runs.run(tmp_path / 'none', tmp_path / 'run', experiment=f'{EXPERIMENTS}/llama2_chat_small.py')
  passed = {record['stage']: record['pass_greedy'] for record in read_metrics(tmp_path / 'run')
            if record['kind'] == 'final' and 'pass_greedy' in record}
  assert passed['rejection_3'] >= 0.85 and passed['ppo'] >= 0.85
