"""A run of a few seconds, for tests: FILE is its text."""
from llm_jax.config.experiment import (
  WSD,
  Baselines,
  Bytes,
  Checkpoints,
  HeldOut,
  Jsonl,
  Mesh,
  Muon,
  Params,
  experiment,
  presets,
  stage,
)


def get_config(path):
  data = Jsonl(path, val_fraction=0.1)
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=264, dropout=0.1),
    mesh=Mesh(data=-1),
    checkpoints=Checkpoints(every=5, keep=2),
    stages=(
      stage('first', data, steps=24, seq_len=32, batch_size=8, learning_rate=WSD(peak=3e-3, warmup=4), optimizer=Muon(),
            ema=0.9, evals=(HeldOut(every=12, batches=2), Baselines())),
      stage('second', data, steps=12, seq_len=32, batch_size=8, learning_rate=WSD(peak=1e-3), init=Params('first'),
            microbatches=2),
    ),
  )
