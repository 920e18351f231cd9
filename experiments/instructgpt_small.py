"""InstructGPT's three steps in small, offline (Ouyang et al. 2022, figure 2).

python -m launch.train --config=experiments/instructgpt_small.py --workdir=runs/instructgpt

The task is to sort six digits. Pretraining is on Python's standard library and on digits that are mostly answered in
other ways. Then:

1. demonstrations: right answers to 400 prompts are learnt (SFT);
2. comparisons: the SFT model answers 800 prompts eight times, and a reward model learns to score the right answer
   higher than these;
3. PPO: the SFT model learns from the score, with a penalty for leaving itself, in two ways: alone, and with pretraining
   text beside (PPO-ptx, equation 2).

reward/exact, which no stage learns from, says whether the answers are right. The last three stages take no step: they
measure the loss on the held-out library of the SFT model and of both policies.

Eight minutes on two busy cores. The policies learn what the reward model scores, not what is right: over 60 steps the
score of greedy answers rises from 1.77 to 2.24 (2.19 with PPO-ptx), and the share that is right falls from 90 % to 81 %
(84 %), as in Gao et al. 2022; `llama2_chat_small.py` shows how rounds mend that. Pretraining text keeps the policy from
forgetting: the loss on the library goes from 1.845 to 1.874 with PPO, and to 1.822 with PPO-ptx (2026-12-01).
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
  PretrainingLoss,
  RankedPairs,
  RewardModel,
  RewardModelScore,
  Rollout,
  Samples,
  SortedDigits,
  StandardLibrary,
  experiment,
  mix,
  presets,
  stage,
)

LIBRARY = StandardLibrary(val_fraction=0.02)
PROMPTS = SortedDigits()
ANSWERS = dict(answers=8, max_new_tokens=8)
HELD_OUT_ANSWERS = PassRate(prompts=300, reward='exact')


def answers_of(name, count):
  return Samples(name, PROMPTS, (Exact(),), count=count, **ANSWERS)


def ppo(name, **fields):
  """The third step."""
  rewards = (RewardModelScore(Params('reward_model'), 'score'), Length(longest=8, margin=1, weight=2.0),
             Exact(weight=0.0))
  return stage(name, PROMPTS, seq_len=64, batch_size=256, steps=60, objective=PPO(kl=KLInReward(0.1), value_weight=0.5),
               rollout=Rollout(rewards, answers=8, max_new_tokens=8, buckets=1),
               learning_rate=Constant(peak=2e-4, warmup=5),
               optimizer=AdamW(b2=0.95, weight_decay=0.0), init=Params('sft'), skip_spikes=None,
               evals=(HELD_OUT_ANSWERS,), **fields)


def text_loss(name):
  """No step: the loss of another stage's model on the library."""
  return stage(f'text_of_{name}', mix(LIBRARY), seq_len=64, batch_size=64, steps=0, learning_rate=Constant(peak=0.0),
               init=Params(name), evals=(HeldOut(batches=16),))


def get_config():
  rows = dict(seq_len=64, batch_size=64)
  finetuning = dict(optimizer=AdamW(b2=0.95, weight_decay=0.0))
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=64, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=100.0),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('pretrain', mix((LIBRARY, 0.5), (DigitTexts(), 0.5), packing='best_fit'), **rows, steps=400,
            optimizer=Muon(), learning_rate=LinearToZero(peak=4e-3, warmup=20), evals=(HeldOut(every=200),)),
      stage('sft', mix(BestOf(answers_of('pretrain', 400), at_least=1.0), packing='best_fit'), **rows, **finetuning,
            steps=30, learning_rate=LinearToZero(peak=3e-4, warmup=5), init=Params('pretrain'),
            evals=(PassRate(prompts=300),)),
      stage('reward_model', RankedPairs(answers_of('sft', 800), demonstration='answer', val_fraction=0.05),
            **finetuning, seq_len=16, batch_size=64, steps=200, objective=RewardModel(center=0.01),
            learning_rate=LinearToZero(peak=1e-3, warmup=5), init=Params('sft'), evals=(HeldOut(),)),
      ppo('ppo'),
      ppo('ppo_ptx', pretraining_loss=PretrainingLoss(mix(LIBRARY), batch_size=64, weight=0.5)),
      *(text_loss(name) for name in ('sft', 'ppo', 'ppo_ptx')),
    ),
  )
