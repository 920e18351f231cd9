"""Writes down the first steps of an experiment's stage, for `tools.compare_commits`, which runs this with the code of
each of two commits.

python -m tools.step_log --config=experiments/family.py:llama --steps=20 --out=log.json
"""
import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')

import numpy as np  # noqa: E402  jax reads the environment when it is imported

from launch.experiment_file import load_run  # noqa: E402
from launch.overrides import split_overrides  # noqa: E402
from llm_jax.config.errors import require  # noqa: E402
from llm_jax.config.run import Run  # noqa: E402
from llm_jax.config.stage import Stage  # noqa: E402
from llm_jax.paths import leaves  # noqa: E402
from tools.training import Training, digest_of  # noqa: E402

FORMAT = 1  # raise it when the file's fields change: logs of two formats are not compared


def step_log(run: Run, stage: Stage, steps: int) -> dict[str, Any]:
  """JSON. `parameters` and `gradients` (of the first step) have two numbers a parameter, see `summary`.

  steps: a list, for each step its loss, sha256 of its batch, seconds, and `parameters` after it.
  """
  training = Training(run, stage)
  found = [{'loss': step.loss, 'batch': digest_of(step.batch), 'seconds': step.seconds,
            'parameters': summaries(step.state.params)} for step in training.steps(steps)]
  return {'format': FORMAT, 'stage': stage.name, 'parameters': summaries(training.initial_params()),
          'gradients': summaries(training.first_gradients()), 'steps': found}


def summaries(tree: Any) -> dict[str, list[float]]:
  return {path: summary(np.asarray(leaf)) for path, leaf in leaves(tree)}


def summary(array: np.ndarray) -> list[float]:
  """The norm, and the product with a wave: together they tell apart arrays that differ in sign or order alone."""
  flat = array.astype(np.float64).ravel()
  return [float(np.linalg.norm(flat)), float(flat @ np.cos(np.arange(flat.size)))]


def main(arguments: Sequence[str]) -> int:
  overrides, rest = split_overrides(arguments)
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', required=True)
  parser.add_argument('--stage')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  options = parser.parse_args(rest)
  run = load_run(options.config, overrides)
  names = [stage.name for stage in run.stages]
  name = options.stage or names[0]
  require(name in names, '--stage', name, f'use one of {names}')
  stage = run.stages[names.index(name)]
  log = step_log(run, stage, min(options.steps, stage.steps))
  options.out.write_text(json.dumps(log), encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
