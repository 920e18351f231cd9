"""What a source saves beside the training state, in the same checkpoint: arrays below `source/`."""
import dataclasses
from typing import Any

from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.train.state import TrainState

NAME = 'source'


def with_arrays(state: TrainState, arrays: dict[str, Any]) -> Any:
  """The pytree that is saved."""
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  return {**fields, NAME: arrays} if arrays else state


def saved_arrays(checkpoint: SavedCheckpoint) -> dict[str, Any]:
  """The arrays of a source in a checkpoint; {} where it saved none."""
  has_arrays = any(path.startswith(f'{NAME}/') for path in checkpoint.leaves)
  return checkpoint.read((NAME,)) if has_arrays else {}


def state_alone(checkpoint: SavedCheckpoint) -> SavedCheckpoint:
  """The checkpoint without them."""
  leaves = {path: leaf for path, leaf in checkpoint.leaves.items() if not path.startswith(f'{NAME}/')}
  return dataclasses.replace(checkpoint, leaves=leaves)
