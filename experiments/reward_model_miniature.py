"""A policy learns to please a reward model and gets worse at the task, offline (Gao et al. 2023, Scaling laws for
reward model overoptimization).

python -m launch.train --config=experiments/reward_model_miniature.py:1 --workdir=runs/overoptimised

The task is that of rl_miniature.py: to sort six digits. The reward model learns from pairs of the right answer and
another that the first model gave. The policy is rewarded by its score, and for ending; whether answers are right is
only recorded, as reward/exact. The argument is the number of rounds: before each the reward model is trained further,
on pairs with the policy's own answers, and then the policy goes on for 40 steps.

Seed 0, on held-out prompts: in the first round the score of sampled answers rises from -2.1 to 2.9 and the share of
right ones falls from 10.6 % to 1.1 %. Later rounds do not bring it back: nothing is right any more that could be
rewarded. Rounds that learn the best of several answers stay near enough: llama2_chat_small.py.
"""
from llm_jax.config.experiment import (
  AdamW,
  Bytes,
  Checkpoints,
  Constant,
  DigitTexts,
  Exact,
  HeldOut,
  Length,
  LinearToZero,
  Muon,
  Params,
  PassRate,
  RankedPairs,
  RewardModel,
  RewardModelScore,
  Rollout,
  Samples,
  SortedDigits,
  experiment,
  grpo,
  mix,
  presets,
  stage,
)

ANSWERS = dict(answers=8, max_new_tokens=8)
LEARNING = dict(optimizer=AdamW(b2=0.95, weight_decay=0.0), seq_len=16)


def pairs(answered_by, count):
  """Right answers before those that a stage gave."""
  samples = Samples(answered_by, SortedDigits(), (Exact(),), count=count, **ANSWERS)
  return RankedPairs(samples, demonstration='answer', val_fraction=0.05)


def reward_model(number, data, start, steps):
  return stage(f'reward_{number}', data, **LEARNING, batch_size=64, steps=steps, objective=RewardModel(center=0.01),
               learning_rate=LinearToZero(peak=1e-3, warmup=5), init=Params(start), evals=(HeldOut(),))


def policy(number, start, steps):
  proxy = RewardModelScore(Params(f'reward_{number}'), 'proxy')
  rewards = (proxy, Length(longest=8, margin=1, weight=2.0), Exact(weight=0.0))
  return stage(f'policy_{number}', SortedDigits(), **LEARNING, batch_size=256, steps=steps, objective=grpo(),
               rollout=Rollout(rewards, answers=8, max_new_tokens=8, buckets=1),
               learning_rate=Constant(peak=3e-4, warmup=5),
               init=Params(start), skip_spikes=None, evals=(PassRate(every=20, prompts=300, reward='exact'),))


def rounds(count):
  """The stages of so many rounds: each asks the policy anew, and its pairs join those of the rounds before."""
  stages, seen = [], []
  for number in range(1, count + 1):
    before = f'policy_{number - 1}' if number > 1 else 'texts'
    scored = f'reward_{number - 1}' if number > 1 else 'texts'
    seen.append(pairs(before, count=400))
    stages += [reward_model(number, mix(*seen), scored, steps=150), policy(number, before, steps=40)]
  return stages


def get_config(count):
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=64, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=100.0),
    checkpoints=Checkpoints(every=50),
    stages=(
      stage('texts', mix(DigitTexts(), packing='best_fit'), seq_len=60, batch_size=64, steps=300,
            learning_rate=LinearToZero(peak=4e-3, warmup=20), optimizer=Muon(), evals=(HeldOut(every=100),)),
      *rounds(int(count)),
    ),
  )
