"""A small Llama learns Python from the standard library of the interpreter that runs it, then to answer: no network, no
files.

python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart

Pretraining, annealing, the mean of the last checkpoints, then SFT on questions made of the library's own functions (a
signature and what it does ask for the body, fenced) and DPO on their bodies beside spoilt ones. Annealing ends at 0.3
of the peak: there the mean of checkpoints is better than the last of them, which after so few steps it is not at zero.

The report shows what each stage did: held-out bits per byte beside a trigram model and xz -9, the share of held-out
questions answered in form before and after SFT, the share of held-out pairs that DPO has put in order.
"""
from llm_jax.config.experiment import (
  BPE,
  DPO,
  WSD,
  AdamW,
  Checkpoints,
  Constant,
  LinearToZero,
  Muon,
  StandardLibrary,
  StandardLibraryChats,
  StandardLibraryPreferences,
  experiment,
  mix,
  presets,
  stage,
)

FUNCTION = 'def is_empty(self):\n    """Return True if the queue is empty."""'


def get_config():
  rows = dict(context=256, batch_size=8)
  pretraining = dict(**rows, optimizer=Muon(), eval_every=100, sample_every=150,
                     prompts=('import ', 'import os\n\n\ndef read', 'class Node:\n    def __init__(self'))
  aligning = dict(batch_size=8, optimizer=AdamW(weight_decay=0.0), eval_every=50)
  # The same held_out in all: questions about files that pretraining has not seen.
  library, chats = StandardLibrary(held_out=0.05), StandardLibraryChats(held_out=0.05)
  pairs = StandardLibraryPreferences(held_out=0.05)
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=4_096, control=('<|im_start|>', '<|im_end|>')),
    model=presets.llama(d_model=192, num_layers=4, num_heads=3, vocab_size=4_096, tied_head=True),
    checkpoints=Checkpoints(every=40, keep=3),
    stages=(
      stage('pretrain', library, **pretraining, steps=440, learning_rate=Constant(peak=1e-2, warmup=20)),
      stage('anneal', library, **pretraining, steps=240, learning_rate=WSD(peak=1e-2, decay=1.0, final=0.3),
            init=('resume', 'pretrain')),
      stage('average', library, **rows, steps=0, learning_rate=Constant(peak=0.0), init=('average', 'anneal', 3)),
      stage('sft', mix(chats, packing='best_fit'), **aligning, context=256, steps=150,
            learning_rate=LinearToZero(peak=1e-3, warmup=10), init=('params', 'average'), prompts=(FUNCTION,)),
      stage('dpo', pairs, **aligning, context=128, steps=100,
            objective=DPO(beta=0.1, nll_weight=0.2), learning_rate=LinearToZero(peak=2e-4, warmup=10),
            init=('params', 'sft')),
    ),
  )
