"""A run of a few seconds whose stages learn from pairs of their own answers, from a teacher on their own answers, and
with functions to call, for tests. The argument is a folder with `tools.py`."""
from llm_jax.config.experiment import (
  DPO,
  Bytes,
  Checkpoints,
  Constant,
  DigitTexts,
  Distillation,
  Exact,
  Mesh,
  Params,
  PassRate,
  PolicyGradient,
  Regex,
  Rollout,
  SortedDigits,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(folder):
  rows = dict(steps=9, seq_len=32, learning_rate=Constant(peak=1e-2))
  prompts, rewards = SortedDigits(digits=3, count=200), (Exact(), Regex('[0-4]', weight=0.5))
  answers = dict(max_new_tokens=6, minibatches=2, replays=2, samples_every=1)
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=264),
    mesh=Mesh(data=-1),
    checkpoints=Checkpoints(every=3, keep=2),
    stages=(
      stage('texts', mix(DigitTexts(digits=3, count=400), packing='best_fit'), seq_len=32, batch_size=16, steps=12,
            learning_rate=Constant(peak=1e-2)),
      stage('pairs', prompts, **rows, batch_size=8, objective=DPO(), rollout=Rollout(rewards, answers=4, **answers),
            init=Params('texts'), microbatches=2, evals=(PassRate(prompts=8),)),
      stage('student', prompts, **rows, batch_size=8, objective=Distillation(Params('texts'), own_answers=0.5),
            rollout=Rollout(answers=1, **answers), init=Params('pairs'), evals=()),
      stage('tools', prompts, **rows, batch_size=8, objective=PolicyGradient(),
            rollout=Rollout(rewards, answers=4, tools=(f'{folder}/tools.py:order',), turns=2, **answers),
            init=Params('student'), evals=(PassRate(prompts=8),)),
    ),
  )
