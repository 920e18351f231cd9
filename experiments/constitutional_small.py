"""Constitutional AI in minutes, offline: a Llama of 250,000 parameters stops to break two principles, and no one labels
an answer.

python -m launch.train --config=experiments/constitutional_small.py --workdir=runs/constitutional

The recipe is that of Bai et al. 2022. The first stage stands for a helpful model: it puts four digits in order,
'4021>0124', and breaks one principle with a '!' behind them and another with a '#', each half of the time. It can be
asked for a critique ('!?'), for a revision ('!-'), and which of two answers is better.

  supervised   learns its own answers, criticised and revised by principles drawn at random (section 3)
  preferences  a reward model learns which of two answers of that stage the helpful model finds better by a principle
               drawn at random, asked in both orders, from soft labels (section 4.1)
  rl           learns from the scores of the reward model (section 4.1)

`VerifiedAnswers` says of every stage how many held-out answers break a principle, and how many help. No stage learns
from these verifiers.
"""
from llm_jax.config.experiment import (
  AdamW,
  Bytes,
  Checkpoints,
  Constant,
  Contains,
  HeldOut,
  JudgedPairs,
  JudgePreference,
  LinearToZero,
  MarkedDigitTexts,
  Muon,
  PairJudge,
  Params,
  Principle,
  Regex,
  RevisedAnswers,
  Revisions,
  RewardModel,
  RewardModelScore,
  Rollout,
  Samples,
  SortedDigits,
  VerifiedAnswers,
  experiment,
  grpo,
  mix,
  presets,
  stage,
)

CONSTITUTION = (Principle(critique='!?', revision='!-'), Principle(critique='#?', revision='#-'))
PROMPTS = SortedDigits(digits=4, count=5_000)


def get_config():
  verified = VerifiedAnswers(PROMPTS, (Regex('[!#]', label='breaks'), Contains('answer', label='helps')), count=250,
                             max_new_tokens=8)
  judge = PairJudge(Params('helpful'), '{prompt}A{first}B{second}{principle}', principles=('!?', '#?'))
  pairs = Samples('supervised', PROMPTS, (JudgePreference(judge),), answers=2, max_new_tokens=8, rows_at_once=512)
  revised = Revisions('helpful', PROMPTS, CONSTITUTION, revisions=2, count=2_000, max_new_tokens=8, rows_at_once=500)
  adam = dict(optimizer=AdamW(b2=0.95, weight_decay=0.0))
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=96, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=100.0),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('helpful', mix(MarkedDigitTexts(), packing='best_fit'), seq_len=60, batch_size=64, steps=600,
            learning_rate=LinearToZero(peak=4e-3, warmup=20), optimizer=Muon(), evals=(HeldOut(every=100), verified)),
      stage('supervised', mix(RevisedAnswers(revised), packing='best_fit'), seq_len=60, batch_size=64, steps=60, **adam,
            learning_rate=LinearToZero(peak=1e-3, warmup=5), init=Params('helpful'), evals=(verified,)),
      stage('preferences', JudgedPairs(pairs, val_fraction=0.1), seq_len=16, batch_size=64, steps=200, **adam,
            learning_rate=LinearToZero(peak=1e-3, warmup=10), objective=RewardModel(center=0.01),
            init=Params('supervised'), evals=(HeldOut(every=50),)),
      stage('rl', PROMPTS, seq_len=16, batch_size=256, steps=60, **adam, objective=grpo(kl=0.5),
            rollout=Rollout((RewardModelScore(Params('preferences')),), answers=8, max_new_tokens=8, buckets=1),
            learning_rate=Constant(peak=3e-4, warmup=5), init=Params('supervised'), skip_spikes=None,
            evals=(verified,)),
    ),
  )
