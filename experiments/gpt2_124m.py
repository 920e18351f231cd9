"""GPT-2 (124M) on web text, with nanoGPT's settings for OpenWebText: 0.5M tokens a step, 600,000 steps.

python -m launch.train --config=experiments/gpt2_124m.py:'openwebtext/*.jsonl.gz' --workdir=runs/gpt2_124m

The argument is a file, a folder or a glob of JSON lines with the text under `text`. The vocabulary is trained on it;
for GPT-2's own add --config.tokenizer="{'kind': 'TiktokenFile', 'path': 'gpt2.tiktoken', 'pattern': 'gpt2'}".
12 sequences of 1,024 on each of 8 devices, five times a step; on one device use --config.stages[0].microbatches=40.
"""
from llm_jax.config.experiment import (
  BPE,
  AdamW,
  Checkpoints,
  Cosine,
  Generations,
  HeldOut,
  Jsonl,
  Mesh,
  experiment,
  presets,
  stage,
)


def get_config(path):
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=50_257, pattern='gpt2', sample_bytes=200_000_000),
    model=presets.gpt2_124m(),
    mesh=Mesh(data=-1),
    checkpoints=Checkpoints(every=1_000),
    log_every=10,
    stages=(
      stage('pretrain', Jsonl(path, val_fraction=0.0005), steps=600_000, seq_len=1_024, batch_size=480, microbatches=5,
            learning_rate=Cosine(peak=6e-4, warmup=2_000, final=0.1),
            optimizer=AdamW(b1=0.9, b2=0.95, weight_decay=0.1), clip_norm=1.0,
            evals=(HeldOut(every=1_000, batches=20), Generations(('The ',), every=10_000))),
    ),
  )
