"""Llama 3's rounds of alignment in small, offline (Dubey et al. 2024, figure 7): in each, a reward model, rejection
sampling, SFT, DPO and an average of models.

python -m launch.train --config=experiments/llama3_rounds_small.py --workdir=runs/llama3_rounds

The task is to sort six digits, which the pretraining texts do in two answers of ten. In every round the newest model
answers 800 prompts eight times, and the answers that a reward model scores highest are learnt from the pretrained model
on (rejection sampling and SFT, sections 4.1.3 and 4.2.2). The new model answers 400 prompts, and who knows the right
answer says which of two answers is better. DPO learns these pairs at two learning rates, with the loss on the chosen
answers beside (section 4.1.4); the round's model is the average of both (section 4.1.5); and the pairs of all rounds
together teach the next round's reward model, from the pretrained model on (section 4.1.2).

Of greedy answers to held-out prompts 10 % are right after pretraining. SFT, the two DPO models and their average have
37, 53, 60 and 60 % in the first round, 65, 80, 81 and 82 % in the second, and 87, 86, 81 and 85 % in the third, where
few prompts are left with a right and a wrong answer to learn from (seed 0).
"""
from llm_jax.config.experiment import (
  DPO,
  AdamW,
  Average,
  BestOf,
  Bytes,
  Checkpoint,
  Checkpoints,
  Constant,
  DigitTexts,
  Exact,
  HeldOut,
  LinearToZero,
  Muon,
  Params,
  PassRate,
  RankedPairs,
  RewardModel,
  RewardModelScore,
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


def pairs_of(policy):
  """Two answers of a model to a prompt, of which one is right."""
  return RankedPairs(Samples(policy, PROMPTS, (Exact(),), count=400, **ANSWERS), val_fraction=0.05)


def best_by(reward_model, policy):
  """Rejection sampling."""
  score = RewardModelScore(Params(reward_model), 'score')
  return BestOf(Samples(policy, PROMPTS, (score, Exact(weight=0.0)), count=800, **ANSWERS))


def dpo(name, data, start, peak):
  return stage(name, data, **FINETUNING, seq_len=16, batch_size=64, steps=30,
               objective=DPO(beta=0.1, nll_weight=0.2), learning_rate=LinearToZero(peak=peak, warmup=5),
               init=Params(start), evals=(HELD_OUT_ANSWERS,))


def rounds():
  stages, pairs = [], [pairs_of('pretrain')]
  for number in range(1, ROUNDS + 1):
    policy = f'round_{number - 1}' if number > 1 else 'pretrain'
    reward_model, sft, low, high = (f'{name}_{number}' for name in ('reward', 'sft', 'dpo_low', 'dpo_high'))
    best = mix(best_by(reward_model, policy), packing='best_fit')
    rows = dict(seq_len=60, batch_size=64)
    stages += [
      stage(reward_model, mix(*pairs), **FINETUNING, seq_len=16, batch_size=64, steps=200, objective=RewardModel(),
            learning_rate=LinearToZero(peak=1e-3, warmup=5), init=Params('pretrain'), evals=(HeldOut(),)),
      stage(sft, best, **FINETUNING, **rows, steps=100, learning_rate=LinearToZero(peak=2e-3, warmup=5),
            init=Params('pretrain'), evals=(HELD_OUT_ANSWERS,)),
      dpo(low, pairs_of(sft), sft, peak=1e-4),
      dpo(high, pairs_of(sft), sft, peak=3e-4),
      # No step: the average, and what it answers.
      stage(f'round_{number}', best, **rows, steps=0, learning_rate=Constant(peak=0.0),
            init=Average((Checkpoint(low), Checkpoint(high))), evals=(HELD_OUT_ANSWERS,)),
    ]
    pairs.append(pairs_of(sft))
  return stages


def get_config():
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=64, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=100.0),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('pretrain', mix(DigitTexts(), packing='best_fit'), seq_len=60, batch_size=64, steps=300,
            learning_rate=LinearToZero(peak=4e-3, warmup=20), optimizer=Muon(), evals=(HeldOut(every=100),)),
      *rounds(),
    ),
  )
