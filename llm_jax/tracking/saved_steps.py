"""`saved_steps.json` of a run's folder: the step of each stage's newest checkpoint.

It lies beside the folder of the checkpoints, so that checkpoints that were lost are missed.
"""
import json
from pathlib import Path

from llm_jax.config.type_hints import is_mapping
from llm_jax.runtime.files import write_atomic

NAME = 'saved_steps.json'


def read_saved_steps(workdir: Path) -> dict[str, int]:
  """The newest step that was saved, by the stage's name. A file that is gone or damaged tells nothing."""
  try:
    saved = json.loads((workdir / NAME).read_bytes())
  except (OSError, ValueError):
    return {}
  if not is_mapping(saved):
    return {}
  return {stage: step for stage, step in saved.items() if isinstance(step, int)}


def note_saved_step(workdir: Path, stage: str, step: int) -> None:
  """Notes that the stage's newest checkpoint is that of `step`.

  Raises:
    OSError: the file cannot be written.
  """
  _write(workdir, {**read_saved_steps(workdir), stage: step})


def forget_saved_step(workdir: Path, stage: str) -> None:
  """Notes that the stage has no checkpoint; raises as `note_saved_step` does."""
  saved = read_saved_steps(workdir)
  if saved.pop(stage, None) is not None:
    _write(workdir, saved)


def _write(workdir: Path, saved: dict[str, int]) -> None:
  write_atomic(workdir / NAME, json.dumps(saved) + '\n')
