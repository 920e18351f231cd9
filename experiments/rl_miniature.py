"""Learn from rewards in a minute, offline: a Llama of 135,000 parameters that answers in three ways learns which one is
rewarded.

python -m launch.train --config=experiments/rl_miniature.py:grpo --workdir=runs/rl_grpo

The task is to sort six digits, '402913>'. The texts of the first stage answer with the same digits half of the time,
with their reverse three times in ten, and with the digits in order twice in ten. The second stage is rewarded for the
last alone: a policy gradient by its paper's name, grpo, dr_grpo, dapo, rloo, gspo, cispo, raft or reinforce; or ppo,
with a critic of its own; or online_dpo, which compares the best and the worst answer to each prompt. best_of has
rounds in its place: each learns, as a text, the best of eight answers that the stage before it gives to each of 1,200
prompts.
"""
from llm_jax.config.errors import require
from llm_jax.config.experiment import (
  DPO,
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
  LinearToZero,
  Muon,
  Params,
  PassRate,
  Rollout,
  Samples,
  SortedDigits,
  cispo,
  dapo,
  dr_grpo,
  experiment,
  grpo,
  gspo,
  mix,
  presets,
  raft,
  reinforce,
  rloo,
  stage,
)

METHODS = {
  'grpo': grpo(), 'dr_grpo': dr_grpo(), 'dapo': dapo(), 'rloo': rloo(), 'gspo': gspo(), 'cispo': cispo(),
  'raft': raft(), 'reinforce': reinforce(), 'ppo': PPO(kl=KLInReward(0.05), value_weight=0.5),
  'online_dpo': DPO(beta=0.1),
}

ROUNDS = 3
ANSWERS = dict(answers=8, max_new_tokens=8)


def best_of(number):
  """A round of rejection sampling."""
  before = f'round_{number - 1}' if number > 1 else 'texts'
  samples = Samples(before, SortedDigits(), (Exact(),), count=1_200, **ANSWERS)
  return stage(f'round_{number}', mix(BestOf(samples, at_least=1.0), packing='best_fit'), seq_len=60, batch_size=64,
               steps=60, learning_rate=LinearToZero(peak=1e-3, warmup=5),
               optimizer=AdamW(b2=0.95, weight_decay=0.0), init=Params(before), evals=(PassRate(prompts=300),))


def get_config(method):
  names = (*METHODS, 'best_of')
  require(method in names, 'method', method, f'use one of {", ".join(names)}')
  if method == 'best_of':
    learning = tuple(best_of(number + 1) for number in range(ROUNDS))
  else:
    batch_size = 32 if method == 'online_dpo' else 256  # pairs or answers, to 32 prompts
    learning = (
      stage('rewards', SortedDigits(), seq_len=16, batch_size=batch_size, steps=150, objective=METHODS[method],
            rollout=Rollout((Exact(),), answers=8, max_new_tokens=8, buckets=1),
            learning_rate=Constant(peak=3e-4, warmup=5), optimizer=AdamW(b2=0.95, weight_decay=0.0),
            init=Params('texts'), skip_spikes=None, evals=(PassRate(every=50, prompts=300),)),)
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=64, num_layers=2, num_heads=4, vocab_size=257, tied_head=True,
                        rope_theta=100.0),
    checkpoints=Checkpoints(every=50),
    stages=(
      stage('texts', mix(DigitTexts(), packing='best_fit'), seq_len=60, batch_size=64, steps=300,
            learning_rate=LinearToZero(peak=4e-3, warmup=20), optimizer=Muon(), evals=(HeldOut(every=100),)),
      *learning,
    ),
  )
