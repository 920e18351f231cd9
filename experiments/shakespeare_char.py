"""Character-level Shakespeare at the size nanoGPT publishes for a CPU: held-out loss 1.88 there after 2,000 steps.

python -m launch.train --config=experiments/shakespeare_char.py:FILE.txt --workdir=runs/shakespeare_char

FILE.txt is any text: its last tenth is held out. A byte is a token, which is a character of this text.
Expected on tiny Shakespeare: 1.768 held-out, the mean of seeds 0, 1, 2 (1.762, 1.780, 1.764), 2026-11-21.
"""
from llm_jax.config.experiment import (
  AdamW,
  Baselines,
  Bytes,
  Cosine,
  Generations,
  HeldOut,
  Text,
  experiment,
  presets,
  stage,
)


def get_config(path):
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.gpt2(d_model=128, num_layers=4, num_heads=4, vocab_size=257, max_length=64),
    stages=(
      stage('pretrain', Text(path, val_fraction=0.1), steps=2_000, seq_len=64, batch_size=12,
            learning_rate=Cosine(peak=4e-3, warmup=100, final=0.0), optimizer=AdamW(b2=0.99),
            evals=(HeldOut(every=250, batches=20), Generations(('\n', 'ROMEO:'), every=500, max_new_tokens=256),
                   Baselines())),
    ),
  )
