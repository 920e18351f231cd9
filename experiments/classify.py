"""GPT-1's recipe in small: pretrain on the standard library of the interpreter that runs it, then learn to tell which
of its packages a function is from. No network, no files.

python -m launch.train --config=experiments/classify.py --workdir=runs/classify

Fine-tuning is a linear head on the last token beside the language model's loss, L3 = L2 + 0.5 L1 (Radford et al. 2018,
sections 3.2 and 3.3). Functions of held-out files are classified. For your own texts put
LabelledJsonl('texts.jsonl', labels=('no', 'yes')) in the place of FUNCTIONS; with pair='pair' it reads pairs of texts.
"""
from llm_jax.config.experiment import (
  BPE,
  AdamW,
  Baselines,
  Checkpoints,
  Classification,
  Cosine,
  HeldOut,
  LinearToZero,
  Params,
  StandardLibrary,
  StandardLibraryFunctions,
  experiment,
  presets,
  stage,
)

SPECIAL_TOKENS = ('<|start|>', '<|delimiter|>', '<|extract|>')
FUNCTIONS = StandardLibraryFunctions(special_tokens=SPECIAL_TOKENS, val_fraction=0.1)


def get_config():
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=4_096, special_tokens=SPECIAL_TOKENS),
    model=presets.gpt1(d_model=192, num_layers=4, num_heads=6, vocab_size=4_096, max_length=256, dropout=0.1),
    checkpoints=Checkpoints(every=100),
    stages=(
      # The same val_fraction: the files whose functions are held out are not read before.
      stage('pretrain', StandardLibrary(val_fraction=0.1), steps=300, seq_len=256, batch_size=8,
            learning_rate=Cosine(peak=1e-3, warmup=30, final=0.1), optimizer=AdamW(b2=0.95),
            evals=(HeldOut(every=100), Baselines())),
      stage('classify', FUNCTIONS, steps=200, seq_len=256, batch_size=8, objective=Classification(lm_weight=0.5),
            learning_rate=LinearToZero(peak=5e-4, warmup=10), init=Params('pretrain'),
            evals=(HeldOut(every=50),)),
    ),
  )
