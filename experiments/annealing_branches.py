"""What is a small data set worth? A branch of annealing for each candidate, from one trunk, scored on the same text.

python -m launch.train --config=experiments/annealing_branches.py --workdir=runs/annealing_branches

Dubey et al. 2024 (Llama 3), section 3.1.3: the learning rate of a half-trained model goes to zero on 0.7 of the old
data and 0.3 of the new, and what that does to held-out scores values the new data, without a run from scratch. Here the
trunk learns the standard library, `plain` anneals on it, and `questions` gives 0.3 to questions and answers made of its
functions. Each branch is a stage, so that the report has their held-out bits per byte side by side.
"""
from typing import Any

from experiments import quickstart
from llm_jax.config.experiment import (
  LinearToZero,
  Resume,
  StandardLibrary,
  StandardLibraryChats,
  experiment,
  mix,
  stage,
)


def get_config():
  config: Any = quickstart.get_config()
  config.model.positions.theta = 10_000.0  # the quickstart's is for rows of 64 tokens
  trunk = config.stages[0]
  library, chats = StandardLibrary(val_fraction=0.05), StandardLibraryChats(val_fraction=0.05)
  rows = dict(seq_len=256, batch_size=8, optimizer=trunk.optimizer, eval_data=mix(library))
  branch = dict(**rows, steps=60, learning_rate=LinearToZero(peak=trunk.learning_rate.peak), init=Resume('trunk'))
  return experiment(
    seed=config.seed,
    tokenizer=config.tokenizer,
    model=config.model,
    stages=(
      stage('trunk', library, **rows, steps=120, learning_rate=trunk.learning_rate),
      stage('plain', library, **branch),
      stage('questions', mix((library, .7), (chats, .3)), **branch),
    ),
  )
