"""A model that learns to find a few needles and is then done, and a stage of twice the sequence length. FILE is its
text."""
from llm_jax.config.experiment import (
  BPE,
  Checkpoints,
  Constant,
  HeldOut,
  Jsonl,
  Muon,
  Needles,
  NeedleTexts,
  Params,
  experiment,
  mix,
  presets,
  stage,
)
from llm_jax.config.model.architecture import LinearScaling, RoPE


def get_config(path):
  text = Jsonl(path, val_fraction=0.1)
  common = dict(learning_rate=Constant(peak=1e-2, warmup=4), optimizer=Muon())
  return experiment(
    seed=1,
    tokenizer=BPE(vocab_size=1_024),
    model=presets.llama(d_model=64, num_layers=2, num_heads=2, vocab_size=1_024, tied_head=True),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('short', mix((text, .1), (NeedleTexts(text, spacing=10), .9)), **common, seq_len=32, batch_size=64,
            steps=400, 
            evals=(HeldOut(every=25), Needles((32,), depths=2, rows=32, target_recall=0.05, every=25))),
      stage('long', mix((text, .5), (NeedleTexts(text), .5)), **common, seq_len=64, batch_size=8, steps=4,
            init=Params('short'), positions=RoPE(10_000.0, LinearScaling(2.0)),
            evals=(HeldOut(), Needles((32, 64), depths=3, rows=4))),
    ),
  )
