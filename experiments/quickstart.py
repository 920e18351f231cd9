"""The whole recipe in small: a Llama learns Python from the standard library of the interpreter that runs it, to look
up what stands far behind, then to answer. No network, no files.

python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart

Pretraining begins with short rows, in which it learns to look up facts (needles) soonest; a stage of four times the
context with stretched positions; annealing; the mean of the last checkpoints; then SFT on questions made of the
library's own functions (a signature and what it does ask for the body, fenced) and DPO on their bodies beside spoilt
ones. Annealing ends at 0.3 of the peak: there the mean of checkpoints is better than the last of them, which after so
few steps it is not at zero.

Six to eight minutes on two cores. The report shows what each stage did: held-out bits per byte beside a trigram model
and xz -9, the needles found before and after the long stage at each depth, the mean beside the last checkpoint, the
share of held-out questions answered in form before and after SFT, the share of held-out pairs that DPO has put in
order.
"""
from llm_jax.config.experiment import (
  BPE,
  DPO,
  WSD,
  AdamW,
  Answers,
  Average,
  Baselines,
  Checkpoints,
  Constant,
  Generations,
  HeldOut,
  LinearToZero,
  Muon,
  Needles,
  NeedleTexts,
  Params,
  Ramp,
  Resume,
  StandardLibrary,
  StandardLibraryChats,
  StandardLibraryPreferences,
  experiment,
  mix,
  presets,
  stage,
)
from llm_jax.config.model.architecture import Llama3Scaling, RoPE

PROMPTS = ('import ', 'import os\n\n\ndef read', 'class Node:\n    def __init__(self')
FUNCTION = 'def is_empty(self):\n    """Return True if the queue is empty."""'
ROPE_THETA = 250.0  # is to 64 tokens what 10,000 is to 2,560
STRETCHED = RoPE(ROPE_THETA, Llama3Scaling(factor=4.0, original_length=64), max_length=256)


def get_config():
  rows = dict(seq_len=256, batch_size=8)
  evals = (HeldOut(every=100), Needles((64, 256)), Generations(PROMPTS, every=200), Baselines())
  pretraining = dict(optimizer=Muon(), evals=evals)
  aligning = dict(batch_size=8, optimizer=AdamW(weight_decay=0.0))
  # The same val_fraction in all: questions about files that pretraining has not seen.
  library, chats = StandardLibrary(val_fraction=0.05), StandardLibraryChats(val_fraction=0.05)
  pairs = StandardLibraryPreferences(val_fraction=0.05)
  needles, far = NeedleTexts(library, spacing=10), NeedleTexts(library, spacing=40)
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=4_096, special_tokens=('<|im_start|>', '<|im_end|>')),
    model=presets.llama(d_model=192, num_layers=4, num_heads=3, vocab_size=4_096, tied_head=True,
                        rope_theta=ROPE_THETA),
    checkpoints=Checkpoints(every=40, keep=3),
    stages=(
      stage('pretrain', mix((library, .1), (needles, ((0, .9), (.6, .9), (.61, .06)))), **pretraining, seq_len=32,
            batch_size=64, ramp=(Ramp(410_000, seq_len=64, batch_size=32),), steps=330,
            learning_rate=Constant(peak=4e-3, warmup=20)),
      stage('long', mix((library, .5), (far, .5)), **pretraining, **rows, steps=130,
            learning_rate=LinearToZero(peak=4e-3), init=Resume('pretrain'), positions=STRETCHED),
      stage('anneal', mix((library, .85), (far, .15)), **pretraining, **rows, steps=200,
            learning_rate=WSD(peak=4e-3, decay=1.0, final=0.3), init=Resume('long')),
      stage('average', library, **rows, steps=0, learning_rate=Constant(peak=0.0), init=Average('anneal', last=3)),
      stage('sft', mix(chats, packing='best_fit'), **aligning, seq_len=256, steps=120,
            learning_rate=LinearToZero(peak=1e-3, warmup=10), init=Params('average'),
            evals=(HeldOut(every=50), Generations((FUNCTION,)), Answers())),
      stage('dpo', pairs, **aligning, seq_len=128, steps=80,
            objective=DPO(beta=0.1, nll_weight=0.2), learning_rate=LinearToZero(peak=2e-4, warmup=10),
            init=Params('sft'), evals=(HeldOut(every=50),)),
    ),
  )
