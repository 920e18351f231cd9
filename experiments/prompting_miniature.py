"""What examples and passages in the prompt are worth, in minutes and offline: a small Llama learns to follow a rule
that the lines before show, and to answer out of passages.

python -m tools.planted --out=planted
python -m launch.retrieve --build --texts=planted/facts.jsonl --index=planted/index
python -m launch.train --config=experiments/prompting_miniature.py:planted --workdir=runs/prompting

docs/how-to/prompting.md has what it is asked then, and what came out.
"""
from llm_jax.config.experiment import (
  Bytes,
  Checkpoints,
  HeldOut,
  Jsonl,
  LinearToZero,
  Muon,
  Params,
  RetrievedAnswers,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(folder):
  rules = Jsonl(f'{folder}/rules.jsonl')
  answers = RetrievedAnswers(f'{folder}/questions.jsonl', index=f'{folder}/index', template='plain')
  settings = dict(learning_rate=LinearToZero(peak=5e-3, warmup=30), optimizer=Muon(), evals=(HeldOut(every=100),))
  return experiment(
    seed=0,
    tokenizer=Bytes(),
    model=presets.llama(d_model=96, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=1_000.0),
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('rules', mix(rules, packing='best_fit'), seq_len=84, batch_size=32, steps=600, **settings),
      stage('answers', mix(answers, packing='best_fit'), seq_len=96, batch_size=64, steps=400, init=Params('rules'),
            **settings),
    ),
  )
