"""What writes the arrays of a checkpoint while training goes on: Orbax into a folder, TensorStore into a bucket."""
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import multihost

from llm_jax import paths
from llm_jax.checkpoints.orbax_noise import quieten
from llm_jax.checkpoints.zarr_arrays import Piece, begin_writing, pieces_here
from llm_jax.runtime.buckets import BucketPath

STATE = 'state'
# By default Orbax gives a save up after 20 minutes of the wall clock: a large state on a slow disk would never be
# saved, and a clock that is corrected meanwhile would end the run. A process that hangs is the watchdog's to notice.
SAVE_SECONDS = 7 * 24 * 3_600


class ArrayWriter(Protocol):
  """Every process of a run makes the same calls."""

  def start(self, folder: Path, arrays: Mapping[str, jax.Array]) -> None:
    """Returns when the arrays have left the devices, so that they may be donated."""
    ...

  def wait(self, key: str) -> None:
    """Waits until every process has written its part, or raises.   key: of this save."""
    ...

  def close(self) -> None: ...


def make_writer(folder: Path) -> ArrayWriter:
  return BucketWriter() if isinstance(folder, BucketPath) else OrbaxWriter()


class OrbaxWriter:
  """Into `<folder>/state`, on a file system that all processes share."""

  def __init__(self):
    self._orbax: ocp.AsyncCheckpointer | None = None

  def start(self, folder: Path, arrays: Mapping[str, jax.Array]) -> None:
    self._checkpointer().save(folder.absolute() / STATE, args=ocp.args.PyTreeSave(paths.nest(dict(arrays))))

  def wait(self, key: str) -> None:
    self._checkpointer().wait_until_finished()

  def close(self) -> None:
    if self._orbax is not None:
      self._orbax.close()
      self._orbax = None

  def _checkpointer(self) -> ocp.AsyncCheckpointer:
    if self._orbax is None:
      quieten()
      options = ocp.AsyncOptions(timeout_secs=SAVE_SECONDS)
      self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
    return self._orbax


class BucketWriter:
  """Into the objects below `<folder>/state`: each process writes the pieces that its devices hold, and nothing is
  merged or renamed."""

  def __init__(self):
    self._folder: Path | None = None
    self._pieces: list[Piece] = []

  def start(self, folder: Path, arrays: Mapping[str, jax.Array]) -> None:
    self._folder = folder / STATE
    self._pieces = pieces_here(arrays)

  def wait(self, key: str) -> None:
    assert self._folder is not None
    pieces = self._pieces
    self._pieces = []  # their memory is free as soon as they are written
    begin_writing(self._folder, pieces)()
    if jax.process_count() > 1:
      multihost.get_barrier_sync_fn()(key=f'llm_jax_{key}_arrays', timeout_ms=1_000 * SAVE_SECONDS)

  def close(self) -> None:
    """Nothing is kept open."""
