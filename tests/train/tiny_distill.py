"""A student of a few seconds, for tests: FOLDER holds text.jsonl, and in `teacher` the folder of a run on it."""
from llm_jax.config.experiment import (
  Bytes,
  Checkpoints,
  Constant,
  Distillation,
  HeldOut,
  Jsonl,
  Params,
  SavedRun,
  experiment,
  presets,
  stage,
)


def get_config(folder):
  data = Jsonl(f'{folder}/text.jsonl', val_fraction=0.1)
  rows = dict(seq_len=32, batch_size=8, learning_rate=Constant(1e-3), evals=(HeldOut(every=4),))
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, d_ff=32, vocab_size=264),
    checkpoints=Checkpoints(every=4, keep=3),
    stages=(
      stage('student', data, **rows, steps=8, objective=Distillation(SavedRun(f'{folder}/teacher', 'first'))),
      stage('again', data, **rows, steps=4, objective=Distillation(Params('student'), divergence=0.5),
            init=Params('student')),
    ),
  )
