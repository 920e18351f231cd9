"""What examples and passages in the prompt are worth, in minutes and offline: a small Llama learns to follow a rule
that the lines before show, and another one to answer out of passages.

python -m tools.planted --out=planted
python -m launch.retrieve --build --texts=planted/facts.jsonl --index=planted/index
python -m launch.train --config=experiments/prompting_miniature.py:planted --workdir=runs/prompting

docs/how-to/prompting.md has what they are asked then, and what came out.
"""
from llm_jax.config.experiment import (
  Bytes,
  Checkpoints,
  HeldOut,
  Jsonl,
  LinearToZero,
  Muon,
  RetrievedAnswers,
  Scratch,
  experiment,
  mix,
  presets,
  stage,
)
from llm_jax.config.model.positions import RoPE


def get_config(folder):
  rules = Jsonl(f'{folder}/rules.jsonl')
  answers = RetrievedAnswers(f'{folder}/questions.jsonl', index=f'{folder}/index', template=None)
  settings = dict(optimizer=Muon(), evals=(HeldOut(every=100),))
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=96, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=1_000.0),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('rules', mix(rules, packing='best_fit'), seq_len=84, batch_size=32, steps=600,
            learning_rate=LinearToZero(peak=5e-3, warmup=30), **settings),
      # A model of its own: what stands at one distance is soon found by positions that turn fast.
      stage('answers', mix(answers, packing='best_fit'), seq_len=36, batch_size=64, steps=250, init=Scratch(),
            positions=RoPE(theta=100.0), learning_rate=LinearToZero(peak=8e-3, warmup=10), **settings),
    ),
  )
