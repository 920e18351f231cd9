"""Scores of answers by reward models, against transformers' ...ForSequenceClassification on the same ids."""
import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  Constant,
  Exact,
  Params,
  PassRate,
  Preferences,
  RewardModel,
  Rollout,
  SortedDigits,
  grpo,
  stage,
)
from llm_jax.config.rewards import RewardModelScore, reward_names
from llm_jax.config.run import Run
from llm_jax.config.teachers import SavedRun
from llm_jax.data.prompts import Prompt
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.rollout.reward_models import RewardModels
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime.errors import RewardError
from tests.hf import hf_models
from tests.objectives import test_reward_model
from tests.rollout import test_source

END, BEHIND = 1, (7, 8)  # the id that ends an answer, and those that the template writes behind it
LENGTHS = (32, 16)


def answers():
  """Of several lengths, one cut off, and one that fills the longest row."""
  rng = np.random.default_rng(0)
  draw = lambda count: tuple(rng.integers(2, hf_models.VOCAB, count).tolist())
  made = [Answer(Prompt('p', draw(prompt), {}), (*draw(length), END), 'text', True, ())
          for prompt, length in ((5, 3), (9, 12), (4, 1), (3, 27), (20, 12))]
  return [*made, Answer(Prompt('p', draw(6), {}), draw(8), 'cut', False, ())]


@functools.cache
def models(seed=0):
  _, model, params = test_reward_model.models()
  return FrozenModel(jax.tree.map(lambda leaf: leaf * (1 + 0.1 * seed), params), model)


def scorer(rows_at_once=4, lengths=LENGTHS):
  frozen = Frozen(reward={'first': models(), 'second': models(1)})
  return RewardModels(frozen, BEHIND, rows_at_once, lengths, lambda batch: batch)


def test_the_score_is_that_of_transformers():
  theirs, _, _ = test_reward_model.models()
  want = []
  for answer in answers():
    ids = [*answer.prompt.ids, *answer.ids, *(BEHIND if answer.ended else ())][:LENGTHS[0] + 1]
    with torch.no_grad():
      want.append(theirs(torch.tensor([ids])).logits.item())
  found = scorer()('first', answers())
  np.testing.assert_allclose(found, want, atol=2e-6)
  assert np.ptp(want) > 0.01
  assert np.abs(scorer()('second', answers()) - found).max() > 1e-3  # each by its own model


@pytest.mark.parametrize('rows_at_once, lengths', [(1, (32, 16)), (6, (32,)), (5, (32,))])
def test_rows_at_once_change_no_score(rows_at_once, lengths):
  found = scorer(rows_at_once, lengths)('first', answers())
  np.testing.assert_allclose(found, scorer()('first', answers()), atol=1e-6)


def test_scores_are_rewards_beside_functions():
  """One of weight 0 changes nothing, and is given back."""
  rewards = Rewards(Rollout((RewardModelScore(Params('rm'), weight=2.0), Exact(weight=0.0),
                             RewardModelScore(SavedRun('runs/safe'), 'safe', weight=-1.0))))
  assert rewards.names == ('rm', 'exact', 'safe')
  given = [dataclasses.replace(answer, prompt=dataclasses.replace(answer.prompt, columns={'answer': 'text'}))
           for answer in answers()]
  by_model = lambda name, answers: np.arange(len(answers)) * {'rm': 1.0, 'safe': 0.5}[name]
  found = rewards.score(given, by_model)
  np.testing.assert_array_equal(found[1], [1, 1, 1, 1, 1, 0])
  np.testing.assert_array_equal(rewards.weighted(found), 1.5 * np.arange(6))


def test_a_score_that_is_no_number_is_named():
  rewards = Rewards(Rollout((RewardModelScore(Params('rm')),)))
  with pytest.raises(RewardError, match='reward rm gave nan for row 2'):
    rewards.score(answers(), lambda name, answers: np.float32([0, 1, np.nan, 0, 0, 0]))


def test_a_rollout_is_scored_by_its_model():
  """The source asks the model that is frozen beside the policy, and records proxy and gold."""
  stage = test_source.make_stage(rollout=dataclasses.replace(
    test_source.ROLLOUT, rewards=(RewardModelScore(Params('rm')), Exact(weight=0.0))))
  source = test_source.make_source(stage)
  transformer, params = test_source.model()
  head = {'w': jax.random.normal(jax.random.key(3), (transformer.config.d_model, 1))}
  frozen = Frozen(reward={'rm': FrozenModel({**params, 'reward': head}, transformer)})
  source.next(test_source.State(params), frozen)
  numbers, buffer = source.numbers(), source._buffer
  assert numbers['reward'] == numbers['reward/rm'] and numbers['reward_std'] > 0
  assert numbers['reward/exact'] < 1
  place = lambda batch: batch
  scored = RewardModels(frozen, (), 8, source.lengths, place)
  sampled = [Answer(Prompt('', tuple(ids[:start]), {}), tuple(ids[start:end]), '', True, ())
             for ids, start, end in zip(buffer.ids.tolist(), buffer.prompt_lengths, buffer.lengths, strict=True)]
  np.testing.assert_allclose(numbers['reward'], scored('rm', sampled).mean(), rtol=1e-5)


# ---------------------------------------------------------------------------------------------- what is refused
def policy(*rewards, **fields):
  return stage('policy', SortedDigits(), steps=1, seq_len=32, batch_size=8, learning_rate=Constant(1e-3),
               objective=grpo(), rollout=Rollout(rewards, max_new_tokens=8), **fields)


def test_a_stage_that_is_no_reward_model_is_refused():
  with pytest.raises(ConfigError, match=r'stages\[0\].rollout.rewards\[1\].model = .rm.: name an earlier stage whose'):
    Run(test_source.model()[0].config, (policy(Exact(), RewardModelScore(Params('rm'))),))


@pytest.mark.parametrize('label', ['', 'two words', 'a/b'])
def test_labels_that_records_cannot_have(label):
  with pytest.raises(ConfigError, match='label'):
    RewardModelScore(Params('rm'), label)


def test_names_differ():
  same = (RewardModelScore(SavedRun('a')), RewardModelScore(SavedRun('b')), RewardModelScore(SavedRun('c', 'rm')))
  assert reward_names(same) == ('reward_model_score', 'reward_model_score:2', 'rm')


def test_a_pass_rate_by_no_reward_of_the_stage():
  with pytest.raises(ConfigError, match=r"evals\[0\].reward = 'gold': the rewards of the stage are exact"):
    policy(Exact(), evals=(PassRate(reward='gold'),))


def test_learned_positions_that_end_before_the_last_token():
  """A reward model's rows are one token longer than those of other stages."""
  model = presets.gpt2(d_model=16, num_layers=1, num_heads=2, vocab_size=257, max_length=32)
  reward = stage('reward', Preferences('pairs.jsonl'), steps=1, seq_len=32, batch_size=8, objective=RewardModel(),
                 learning_rate=Constant(1e-3))
  with pytest.raises(ConfigError, match=r'stages\[0\].seq_len = 32: a reward model reads the last target too'):
    Run(model, (reward,))
  Run(model, (dataclasses.replace(reward, seq_len=31),))
