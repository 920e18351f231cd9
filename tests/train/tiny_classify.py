"""A few seconds of GPT-1's recipe, for tests: FOLDER holds text.jsonl and labelled.jsonl."""
from llm_jax.config.experiment import (
  Average,
  Bytes,
  Checkpoints,
  Classification,
  Constant,
  HeldOut,
  Jsonl,
  LabelledJsonl,
  Params,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(folder):
  text = Jsonl(f'{folder}/text.jsonl', val_fraction=0.2)
  texts = LabelledJsonl(f'{folder}/labelled.jsonl', ('even', 'odd'), val_fraction=0.2)
  common = dict(seq_len=32, batch_size=8, learning_rate=Constant(3e-3))
  classify = dict(common, objective=Classification())
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=264, dropout=0.1),
    checkpoints=Checkpoints(every=10, keep=2),
    stages=(
      stage('pretrain', text, **common, steps=2),
      stage('classify', mix(texts, texts), **classify, steps=40, init=Params('pretrain'), ema=0.8, microbatches=2,
            evals=(HeldOut(every=20),)),
      stage('average', texts, **classify, steps=0, init=Average('classify', last=2)),
      stage('other', LabelledJsonl(f'{folder}/labelled.jsonl', ('odd', 'even')), **classify, steps=0,
            init=Params('classify')),
      stage('text', text, **common, steps=0, init=Params('classify')),
    ),
  )
