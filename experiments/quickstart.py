"""A small Llama learns Python from the standard library of the interpreter that runs it: no network, no files.

python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart
Expected: 1.359 held-out bits per byte beside 1.524 (trigram) and 1.522 (xz -9); 4 min 40 s on two cores, 2026-11-21.
"""
from llm_jax.config.experiment import BPE, WSD, Checkpoints, Muon, StandardLibrary, experiment, presets, stage


def get_config():
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=4_096),
    model=presets.llama(d_model=192, num_layers=4, num_heads=3, vocab_size=4_096, tied_head=True),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('pretrain', StandardLibrary(), steps=600, context=256, batch_size=8,
            learning_rate=WSD(peak=1e-2, warmup=20, decay=0.4), optimizer=Muon(),
            eval_every=100, sample_every=150,
            prompts=('import ', 'import os\n\n\ndef read', 'class Node:\n    def __init__(self')),
    ),
  )
