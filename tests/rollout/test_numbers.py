"""What a person sees of a rollout: numbers counted by hand, and the warnings of a collapse."""
import types

import numpy as np
import pytest

from llm_jax.data.prompts import Prompt
from llm_jax.rollout.numbers import answer_numbers, collapse, mismatch_numbers, reward_numbers
from llm_jax.rollout.rewarded_source import RewardedSource
from llm_jax.rollout.sampling import Answer
from llm_jax.rollout.source import Shown
from llm_jax.train.rollout import ShowRollouts

PROMPT = Prompt('p', (1, 2), {})


def answers(*ids, ended=True):
  return [Answer(PROMPT, each, '', ended, tuple(-0.5 for _ in each)) for each in ids]


def test_numbers_of_two_groups():
  cut_off = answers((9, 9, 9, 9), ended=False)
  given = [*answers((5, 0), (5, 0), (6, 7, 0), (8, 0)), *cut_off, *answers((1, 0), (2, 0), (3, 0))]
  rewards = np.array([1, 1, 1, 1, 0, 0.5, 0.5, 1])
  numbers = answer_numbers(given, group=4) | reward_numbers(rewards, {'a': rewards}, group=4)
  assert numbers['reward'] == rewards.mean() and numbers['reward_std'] == rewards.std()
  assert numbers['groups_alike'] == 0.5  # the first
  assert numbers['reward_std_in_group'] == pytest.approx(rewards[4:].std() / 2)
  assert numbers['answer_length'] == 19 / 8 and numbers['answer_length_max'] == 4
  assert numbers['cut_off'] == 1 / 8
  assert numbers['sampling_padding'] == 1 - 19 / 32
  assert numbers['distinct'] == (3 / 4 + 4 / 4) / 2
  assert 'reward/a' not in numbers  # it is the only one


def test_mismatch_is_in_absolute_value():
  old = np.array([[0.0, -0.5, -0.7], [-0.4, 0.0, 0.0]])
  found = mismatch_numbers(answers((3, 4), (5,)), old, old != 0)
  assert found['sampler_mismatch'] == pytest.approx(0.1) and found['sampler_mismatch_max'] == pytest.approx(0.2)


WELL = {'reward': 0.3, 'reward_std': 0.4, 'distinct': 0.8, 'entropy': 1.0}


@pytest.mark.parametrize('changed, kind, words', [
  ({'reward_std': 0.0}, 'reward',
   'all answers have one reward, so that nothing is learnt from them; the mean reward is 0.3'),
  ({'distinct': 0.15}, 'distinct', 'the 8 answers to a prompt are nearly all the same'),
  ({'entropy': 0.01}, 'entropy', 'the entropy is 0.01 nats a token: nothing is left to chance'),
])
def test_each_way_of_collapsing_is_told(changed, kind, words):
  assert collapse(WELL, group=8) == {}
  found = collapse({**WELL, **changed}, group=8)
  assert list(found) == [kind] and found[kind].startswith(words)


def test_one_answer_a_prompt_is_no_collapse():
  assert collapse({**WELL, 'distinct': 1.0}, group=1) == {}


def test_a_warning_is_told_once_and_written_down():
  source = object.__new__(RewardedSource)
  source._numbers = {'reward': 0.0}
  source._shown = Shown(warnings={'entropy': 'the entropy is 0'})
  told, events = [], []
  writer = types.SimpleNamespace(
    write=lambda kind, stage, step, **fields: events.append((kind, step, fields['event'])))
  log = types.SimpleNamespace(stage=types.SimpleNamespace(name='rewards'), writer=writer,
                              progress=types.SimpleNamespace(message=told.append))
  show = ShowRollouts(source, log)
  show(7, None, None)
  show(8, None, None)
  assert told == ['rewards: step 7: warning: the entropy is 0']
  assert events == [('event', 7, 'collapse: the entropy is 0')]
