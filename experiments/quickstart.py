"""A small Llama learns Python from the standard library of the interpreter that runs it: no network, no files.

python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart
"""
from llm_jax.config.experiment import BPE, WSD, Muon, StandardLibrary, experiment, presets, stage


def get_config():
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=4_096),
    model=presets.llama(d_model=256, num_layers=4, num_heads=4, vocab_size=4_096, tied_head=True),
    stages=(
      stage('pretrain', StandardLibrary(), steps=400, context=256, batch_size=16,
            learning_rate=WSD(peak=3e-3, warmup=20, decay=0.3), optimizer=Muon(),
            eval_every=100, sample_every=100, prompts=('def ', 'class ', 'import ')),
    ),
  )
