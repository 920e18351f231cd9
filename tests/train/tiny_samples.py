"""A run of a few seconds that learns from answers of its earlier stages, for tests. The argument is not read."""
from llm_jax.config.experiment import (
  DPO,
  BestOf,
  Bytes,
  Checkpoints,
  Constant,
  DigitTexts,
  Exact,
  Mesh,
  Params,
  PassRate,
  RankedPairs,
  Regex,
  Samples,
  SortedDigits,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(argument):
  prompts, rewards = SortedDigits(digits=3, count=200), (Exact(), Regex('^[0-4]', weight=0.5))
  answers = dict(answers=4, max_new_tokens=6, rows_at_once=32)
  best = BestOf(Samples('texts', prompts, rewards, count=40, **answers))
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=264),
    mesh=Mesh(data=-1),
    checkpoints=Checkpoints(every=5, keep=2),
    stages=(
      stage('texts', mix(DigitTexts(digits=3, count=400), packing='best_fit'), seq_len=32, batch_size=16, steps=100,
            learning_rate=Constant(peak=1e-2), evals=()),
      stage('best', mix(best, packing='best_fit'), seq_len=32, batch_size=8, steps=11,
            learning_rate=Constant(peak=1e-3), init=Params('texts'), evals=(PassRate(prompts=8),)),
      stage('pairs', RankedPairs(Samples('best', prompts, rewards, count=20, **answers), pairs='all'), seq_len=32,
            batch_size=8, steps=7, learning_rate=Constant(peak=1e-4), objective=DPO(), init=Params('best'), evals=()),
    ),
  )
