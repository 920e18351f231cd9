"""Learn from answers that are rated one by one: pretraining, SFT and KTO (Ethayarajh et al. 2024), on the standard
library of the interpreter that runs it. No network, no files.

python -m launch.train --config=experiments/kto.py --workdir=runs/kto

The questions are a function's signature and what it does. One half are answered with its body, which is desirable,
the other half with a spoilt one. No question has two answers, so that there are no pairs for DPO. The rewards of
held-out answers are 0 at the start and part: those of spoilt ones fall further. For your own answers put
RatedAnswers('rated.jsonl') in the place of RATED, with lines of {"prompt", "completion", "label": true}.
"""
from llm_jax.config.experiment import (
  BPE,
  KTO,
  AdamW,
  Answers,
  Baselines,
  Checkpoints,
  HeldOut,
  LinearToZero,
  Muon,
  Params,
  StandardLibrary,
  StandardLibraryChats,
  StandardLibraryRatedAnswers,
  experiment,
  mix,
  presets,
  stage,
)

# The same val_fraction in all: questions about files that no stage before has seen.
LIBRARY = StandardLibrary(val_fraction=0.05)
CHATS = StandardLibraryChats(val_fraction=0.05)
RATED = StandardLibraryRatedAnswers(val_fraction=0.05)


def get_config():
  aligning = dict(batch_size=8, optimizer=AdamW(weight_decay=0.0))
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=4_096, special_tokens=('<|im_start|>', '<|im_end|>')),
    model=presets.llama(d_model=192, num_layers=4, num_heads=6, vocab_size=4_096, tied_head=True),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('pretrain', LIBRARY, seq_len=128, batch_size=16, steps=300, optimizer=Muon(),
            learning_rate=LinearToZero(peak=4e-3, warmup=20), evals=(HeldOut(every=100), Baselines())),
      stage('sft', mix(CHATS, packing='best_fit'), **aligning, seq_len=256, steps=120,
            learning_rate=LinearToZero(peak=1e-3, warmup=10), init=Params('pretrain'),
            evals=(HeldOut(every=50), Answers())),
      stage('kto', RATED, **aligning, seq_len=256, steps=120, objective=KTO(beta=0.1),
            learning_rate=LinearToZero(peak=5e-5, warmup=10), init=Params('sft'), evals=(HeldOut(every=40),)),
    ),
  )
