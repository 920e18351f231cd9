"""Constitutional AI in a few seconds, for tests. The argument is not read."""
from llm_jax.config.experiment import (
  Bytes,
  Checkpoints,
  Constant,
  Contains,
  JudgedPairs,
  JudgePreference,
  MarkedDigitTexts,
  Mesh,
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


def get_config(argument):
  prompts = SortedDigits(digits=2, count=50, val_fraction=0.2)
  verified = VerifiedAnswers(prompts, (Regex('[!#]', label='breaks'), Contains(label='helps')), count=8,
                             max_new_tokens=5)
  judge = PairJudge(Params('helpful'), '{prompt}A{first}B{second}{principle}', principles=('!?', '#?'))
  principles = (Principle(critique='!?', revision='!-'), Principle(revision='#-'))
  revisions = Revisions('helpful', prompts, principles, revisions=2, count=30, max_new_tokens=5, rows_at_once=8)
  pairs = Samples('supervised', prompts, (JudgePreference(judge),), answers=2, count=30, max_new_tokens=5,
                  rows_at_once=16)
  rows = dict(seq_len=40, batch_size=8, learning_rate=Constant(peak=5e-3))
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=32, num_layers=1, num_heads=2, d_ff=64, vocab_size=264, tied_head=True),
    mesh=Mesh(data=-1),
    checkpoints=Checkpoints(every=5, keep=2),
    stages=(
      stage('helpful', mix(MarkedDigitTexts(digits=2, count=50), packing='best_fit'), steps=80, **rows, evals=()),
      stage('supervised', mix(RevisedAnswers(revisions), packing='best_fit'), steps=6, **rows, init=Params('helpful'),
            evals=(verified,)),
      stage('preferences', JudgedPairs(pairs), steps=6, **rows, objective=RewardModel(), init=Params('supervised'),
            evals=()),
      stage('rl', prompts, steps=3, **rows, objective=grpo(), init=Params('supervised'), evals=(verified,),
            rollout=Rollout((RewardModelScore(Params('preferences')), JudgePreference(judge)), answers=4,
                            max_new_tokens=5, buckets=1)),
    ),
  )
