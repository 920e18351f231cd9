"""A recipe of adapters of a few seconds, for tests: pretrain, SFT and DPO with QLoRA, and all of it merged.

FOLDER holds the files of `runs.write_recipe`.
"""
from llm_jax.config.experiment import (
  BPE,
  DPO,
  Checkpoints,
  Constant,
  Conversations,
  HeldOut,
  Jsonl,
  LoRA,
  Params,
  Preferences,
  experiment,
  presets,
  stage,
)


def get_config(folder):
  text = Jsonl(f'{folder}/text.jsonl', val_fraction=0.1)
  rows = dict(seq_len=48, batch_size=8, evals=(HeldOut(every=4),))
  adapters = LoRA(rank=4, alpha=8.0, dropout=0.1, base='nf4')
  return experiment(
    seed=1,
    tokenizer=BPE(vocab_size=300, special_tokens=('<|im_start|>', '<|im_end|>')),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=304),
    checkpoints=Checkpoints(every=4, keep=3),
    stages=(
      stage('pretrain', text, **rows, steps=8, learning_rate=Constant(3e-3)),
      stage('sft', Conversations(f'{folder}/chats.jsonl', val_fraction=0.1), **rows, steps=8,
            learning_rate=Constant(3e-3), init=Params('pretrain'), adapters=adapters),
      stage('dpo', Preferences(f'{folder}/pairs.jsonl', val_fraction=0.1), **rows, steps=8, objective=DPO(),
            learning_rate=Constant(3e-3), init=Params('sft'), adapters=adapters),
      stage('merged', text, **rows, steps=0, learning_rate=Constant(0.0), init=Params('dpo')),
    ),
  )
