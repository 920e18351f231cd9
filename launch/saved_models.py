"""Which checkpoint of a run `launch.sample` and `launch.convert` read, and its parameters."""
import contextlib
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from launch.errors import refuse
from llm_jax import paths
from llm_jax.adapters.base import SavedModels
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.checkpoints.folders import hold
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.config.type_hints import suggest
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.hf.finite import count_not_finite
from llm_jax.modules.parameters import parameter_shapes
from llm_jax.modules.weight_storage import assembled, expanded, is_stored_quantized
from llm_jax.runtime.errors import CheckpointError

# What keeps a run that saves meanwhile from deleting the checkpoints that are found and not read yet.
_held: dict[pathlib.Path, contextlib.ExitStack] = {}


def find_checkpoint(flag: str, workdir: pathlib.Path, run: Run, stage: str | None = None, step: int | None = None
                    ) -> tuple[Stage, SavedCheckpoint]:
  """A stage and one of its checkpoints, verified.

  Args:
    flag: what named the workdir, for errors.
    stage: name of the stage; None: the last one that has a checkpoint.
    step: of the checkpoint; None: the newest valid one. A run that saves beside this program keeps it until
      `read_params` has read it.

  Raises:
    CheckpointError: the checkpoint is damaged.
    SystemExit: there is no such stage or checkpoint; one line says so.
  """
  chosen = _choose_stage(flag, workdir, run, stage)
  store = CheckpointStore(workdir / 'checkpoints' / chosen.name)
  if step is not None and step not in store.steps():
    refuse(f'--step={step}: {store.folder} has {", ".join(map(str, store.steps()))}')
  stack = contextlib.ExitStack()
  if step is None:
    checkpoint = stack.enter_context(store.hold_newest())
  else:
    checkpoint = store.at(step)
    stack.enter_context(hold(checkpoint.path))
  if checkpoint is None:  # another process has removed it
    raise CheckpointError(f'{store.folder}: its checkpoints are gone')
  _held[checkpoint.path] = stack
  return chosen, checkpoint


def check_tokenizer(checkpoint: SavedCheckpoint, tokenizer: Tokenizer) -> None:
  """Refuses a checkpoint that was trained with another tokenizer than the workdir has: CheckpointError."""
  trained_with = checkpoint.metadata.tokenizer
  if trained_with != tokenizer.fingerprint:
    raise CheckpointError(f'{checkpoint.path}: trained with tokenizer {str(trained_with)[:16]}, the workdir has '
                          f'{tokenizer.fingerprint[:16]}: bring the first one back')


def _choose_stage(flag: str, workdir: pathlib.Path, run: Run, name: str | None) -> Stage:
  names = [stage.name for stage in run.stages]
  if name is not None and name not in names:
    refuse(f'--stage={name}: no such stage; {suggest(name, names)}')
  saved = [stage for stage in run.stages if CheckpointStore(workdir / 'checkpoints' / stage.name).steps()]
  candidates = [stage for stage in saved if name in (None, stage.name)]
  if not candidates:
    of_stage = f' of stage {name}' if name else ''
    refuse(f'--{flag}={workdir}: no checkpoint{of_stage} yet: launch.train writes one every checkpoints.every steps '
           'and at the end of a stage')
  return candidates[-1]


def read_model(run: Run, workdir: pathlib.Path, stage: Stage, checkpoint: SavedCheckpoint, merged: bool = False) -> Any:
  """All parameters of the model: `read_params`, or, of a stage that trained adapters, its base with them.

  merged: whether adapters become part of the weights and quantised weights arrays; else adapters stand beside those of
    a base that is stored as the stage says.

  Raises:
    CheckpointError: as `read_params` does; or the base is gone, or another one.
    ConfigError: the Hugging Face folder that is the base holds another model.
  """
  if stage.adapters is None:
    return _whole(run, stage, read_params(checkpoint), merged)
  read_params(checkpoint)  # which checks the adapters, and says where they are from
  models = SavedModels(run, workdir)
  return models.whole(stage, checkpoint) if merged else models.joined(stage, checkpoint)


def _whole(run: Run, stage: Stage, params: Any, is_expanded: bool) -> Any:
  """The parameters that were saved; quantised ones as such, or expanded."""
  if not is_stored_quantized(params):
    return params
  quantized = assembled(params, parameter_shapes(run.model_of(stage)))
  return jax.device_get(expanded(quantized)) if is_expanded else quantized


def read_params(checkpoint: SavedCheckpoint) -> Any:
  """The parameters in the memory of the host, their moving average where one is kept; prints where
  they are from.

  Raises:
    CheckpointError: some of their numbers are NaN or infinite.
  """
  which = ', averaged parameters' if checkpoint.averaged else ''
  print(f'{checkpoint.path}{which}', file=sys.stderr)
  with _held.pop(checkpoint.path, contextlib.ExitStack()):
    params = checkpoint.read_best()
  check_finite(checkpoint, params)
  return params


def check_finite(checkpoint: SavedCheckpoint, params: Any) -> None:
  for path, leaf in paths.leaves(params):
    bad = count_not_finite(np.asarray(leaf))
    if bad:
      raise CheckpointError(f'{checkpoint.path}: {path} has {bad} of {leaf.size} numbers that are NaN or infinite: '
                            'take an earlier checkpoint with --step')
