"""Stages of a few seconds whose state has few bits, for tests. FOLDER holds the files of `runs.write_recipe`."""
from llm_jax.config.experiment import (
  BPE,
  DPO,
  Adafactor,
  AdamW,
  Average,
  Checkpoints,
  Constant,
  Jsonl,
  LoRA,
  Muon,
  Optax,
  Params,
  Preferences,
  Resume,
  experiment,
  presets,
  stage,
)


def get_config(folder):
  text = Jsonl(f'{folder}/text.jsonl', val_fraction=0.1)
  pairs = Preferences(f'{folder}/pairs.jsonl', val_fraction=0.1)
  rows = dict(seq_len=32, batch_size=8, learning_rate=Constant(1e-3), evals=())
  lean = dict(**rows, parameters='bfloat16', optimizer=AdamW(moments='int8'), ema=0.9)
  return experiment(
    seed=1,
    tokenizer=BPE(vocab_size=300, special_tokens=('<|im_start|>', '<|im_end|>')),
    model=presets.llama(d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=128, vocab_size=304),
    checkpoints=Checkpoints(every=4, keep=2),
    stages=(
      stage('full', text, **rows, steps=6, optimizer=Muon(moments='bfloat16')),
      stage('lean', text, **lean, steps=8, microbatches=2, init=Params('full'), optimizer_memory='host'),
      stage('further', text, **lean, steps=8, remat='offload', init=Resume('lean')),
      stage('mean', text, **rows, steps=0, parameters='bfloat16', init=Average('further', last=2)),
      stage('dpo', pairs, **rows, steps=4, objective=DPO(), parameters='bfloat16', optimizer=Adafactor(),
            init=Params('mean')),
      stage('adapted', text, **rows, steps=4, adapters=LoRA(rank=2, base='bfloat16'), init=Params('further')),
      stage('wide', text, **rows, steps=4, optimizer=Optax('optax:lamb'), init=Params('dpo')),
    ),
  )
