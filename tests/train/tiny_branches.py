"""A trunk, a branch for each of two mixtures, and the mean of checkpoints of both. FOLDER holds text.jsonl."""
from llm_jax.config.experiment import (
  Average,
  Bytes,
  Checkpoint,
  Checkpoints,
  Constant,
  Jsonl,
  LinearToZero,
  Resume,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(folder):
  text = Jsonl(f'{folder}/text.jsonl', val_fraction=0.1)
  same = Jsonl(f'{folder}/text.jsonl', field='text', val_fraction=0.3)
  rows = dict(seq_len=32, batch_size=8, eval_data=mix(text))
  branch = dict(**rows, steps=12, learning_rate=LinearToZero(3e-3), init=Resume('trunk'), ema=0.5)
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=264),
    checkpoints=Checkpoints(every=4, keep=1),
    stages=(
      stage('trunk', text, **rows, steps=8, learning_rate=Constant(3e-3, warmup=4), ema=0.5),
      stage('plain', text, **branch),
      stage('mixed', mix(text, (same, ((0, 0.0), (1, 1.0)))), **branch),
      stage('mean', text, **rows, steps=0, learning_rate=Constant(0.0),
            init=Average((Checkpoint('plain'), Checkpoint('mixed', 4), Checkpoint('mixed', weight=2.0)))),
    ),
  )
