"""Llama 3 8B (Dubey et al. 2024): the architecture and learning rate of table 3, the schedule of section 3.4.1.

python -m launch.train --config=experiments/llama3_8b.py:FOLDER --workdir=runs/llama3_8b

FOLDER holds tokenizer.json (Llama 3's) and the text as *.jsonl.gz. The paper starts with 4M tokens a step at context
4,096 for 252M tokens, runs at 8M and 8,192, and doubles to 16M after 2.87T; this is the middle one, 8,388,608 a step.
Parameters and optimizer state are sharded over all devices.
"""
from llm_jax.config.experiment import (
  AdamW,
  Checkpoints,
  Cosine,
  HuggingFaceFile,
  Jsonl,
  Mesh,
  experiment,
  presets,
  stage,
)


def get_config(folder):
  return experiment(
    seed=0,
    tokenizer=HuggingFaceFile(f'{folder}/tokenizer.json', end_of_text='<|end_of_text|>'),
    model=presets.llama3_8b(),
    mesh=Mesh(data=1, fsdp=-1),
    dtype='bfloat16',
    checkpoints=Checkpoints(every=500),
    stages=(
      stage('initial', Jsonl(f'{folder}/*.jsonl.gz', held_out=0.0001), steps=1_200_000, context=8_192, batch_size=1_024,
            learning_rate=Cosine(peak=3e-4, warmup=8_000, final=0.01),
            optimizer=AdamW(b1=0.9, b2=0.95, weight_decay=0.1), clip_norm=1.0, remat='block',
            eval_every=2_000, eval_batches=8),
    ),
  )
