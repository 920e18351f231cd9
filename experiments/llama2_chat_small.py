"""Llama 2-Chat's recipe in small, offline (Touvron et al. 2023, section 3): SFT, then rounds of a new reward model and
rejection sampling, then PPO.

python -m launch.train --config=experiments/llama2_chat_small.py --workdir=runs/llama2_chat

The task is to sort six digits, which the first stage's texts do in two answers of ten. In every round the newest model
answers 400 prompts; a reward model is trained further on right answers beside these, those of all rounds together; and
of eight answers to each of 800 prompts the one with the highest score is learnt (rejection sampling, section 3.2.3).
PPO goes on from the last round, with the last reward model. reward/exact, which no policy learns from, says whether
answers are right. Of greedy ones to held-out prompts 10.9 % are after SFT, 66.5, 89.4 and 98.6 % after the rounds, and
98.9 % after PPO (seed 0).
"""
from llm_jax.config.experiment import (
  PPO,
  AdamW,
  BestOf,
  Bytes,
  Checkpoints,
  Constant,
  DigitTexts,
  Exact,
  HeldOut,
  KLInReward,
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
  mix,
  presets,
  stage,
)

ROUNDS = 3
PROMPTS = SortedDigits()
ANSWERS = dict(answers=8, max_new_tokens=8)
FINETUNING = dict(optimizer=AdamW(b2=0.95, weight_decay=0.0))
HELD_OUT_ANSWERS = PassRate(prompts=300, reward='exact')


def rewards(number):
  """The score of a round's reward model; whether an answer is right is recorded beside it."""
  return (RewardModelScore(Params(f'reward_{number}'), 'score'), Length(longest=8, margin=1, weight=2.0),
          Exact(weight=0.0))


def comparisons(answered_by):
  """Right answers beside those of a model."""
  return RankedPairs(Samples(answered_by, PROMPTS, (Exact(),), count=400, **ANSWERS), demonstration='answer',
                     val_fraction=0.05)


def rounds():
  """Of each round its reward model and its rejection sampling."""
  stages, compared = [], []
  for number in range(1, ROUNDS + 1):
    policy = f'rejection_{number - 1}' if number > 1 else 'sft'
    compared.append(comparisons(policy))
    stages.append(stage(
      f'reward_{number}', mix(*compared), **FINETUNING, seq_len=16, batch_size=64, steps=150,
      objective=RewardModel(center=0.01), learning_rate=LinearToZero(peak=1e-3, warmup=5),
      init=Params(f'reward_{number - 1}' if number > 1 else 'sft'), evals=(HeldOut(),)))
    best = BestOf(Samples(policy, PROMPTS, rewards(number), count=800, **ANSWERS))
    stages.append(stage(
      f'rejection_{number}', mix(best, packing='best_fit'), **FINETUNING, seq_len=60, batch_size=64, steps=60,
      learning_rate=LinearToZero(peak=1e-3, warmup=5), init=Params(policy), evals=(HELD_OUT_ANSWERS,)))
  return stages


def get_config():
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=64, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=100.0),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('sft', mix(DigitTexts(), packing='best_fit'), seq_len=60, batch_size=64, steps=300,
            learning_rate=LinearToZero(peak=4e-3, warmup=20), optimizer=Muon(), evals=(HeldOut(every=100),)),
      *rounds(),
      stage('ppo', PROMPTS, **FINETUNING, seq_len=16, batch_size=256, steps=40,
            objective=PPO(kl=KLInReward(0.1), value_weight=0.5), learning_rate=Constant(peak=1e-4, warmup=5),
            rollout=Rollout(rewards(ROUNDS), answers=8, max_new_tokens=8, buckets=1),
            init=Params(f'rejection_{ROUNDS}'), skip_spikes=None, evals=(HELD_OUT_ANSWERS,)),
    ),
  )
