"""Reading a verified checkpoint back: whole or one sub-tree, onto any mesh, with nothing cast or left out silently.

What is stored is nested dicts of arrays whose names are the leaves' paths (`params/embedding/w`), whatever classes the
state is made of, so that a reader needs neither the model nor the optimizer.
"""
import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from llm_jax import paths
from llm_jax.checkpoints.manifest import Manifest, verify
from llm_jax.runtime import processes
from llm_jax.runtime.errors import CheckpointError

# .old: replaced by another save of the same step, and not yet deleted
FOLDER_NAME = re.compile(r'(\d{8,})(\.old)?')


@dataclasses.dataclass(frozen=True)
class SavedCheckpoint:
  """A verified checkpoint. metadata: what `save` was given.  leaves: name -> [shape, dtype] of every array.

  stamps: of its files, from before they were verified; minutes may go by until they are read.
  """
  step: int
  path: Path
  metadata: dict[str, Any]
  leaves: dict[str, list[Any]]
  stamps: dict[str, Any]

  def restore(self, abstract: Any) -> Any:
    """Reads the state back, bit for bit.

    abstract: the state's tree with jax.ShapeDtypeStruct leaves; their shardings may be for another mesh or another
      number of processes than the one that saved. Without a sharding an array goes to the default device.

    Raises:
      CheckpointError: naming the leaves that are missing, unknown, or of another shape or dtype; or a file that has
        been damaged since all were verified.
    """
    self.check(abstract)
    arrays = dict(paths.leaves(self._read(dict(paths.leaves(abstract)))))
    return paths.map_named(lambda name, _: arrays[name], abstract)

  def check(self, abstract: Any) -> None:
    """Refuses, as `restore` does, what it could not read; nothing is read."""
    self._check(dict(paths.leaves(abstract)), self.leaves)

  def read(self, keys: tuple[str, ...] = ('params',), abstract: Any = None) -> Any:
    """Reads the sub-tree under `keys` only: numpy arrays in a nested dict, or what `abstract` describes."""
    prefix = '/'.join(keys) + '/'
    saved = {name: leaf for name, leaf in self.leaves.items() if name.startswith(prefix)}
    if not saved:
      tops = ', '.join(sorted({name.split('/')[0] for name in self.leaves}))
      raise CheckpointError(f'{self.path}: holds no {prefix[:-1]}, only {tops}')
    if abstract is None:
      tree = self._read({name: None for name in saved})
      for key in keys:
        tree = tree[key]
      return tree
    wanted = {prefix + name: leaf for name, leaf in paths.leaves(abstract)}
    self._check(wanted, saved)
    arrays = dict(paths.leaves(self._read(wanted)))
    return paths.map_named(lambda name, _: arrays[prefix + name], abstract)

  def read_leaf(self, name: str, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads one array, by its path."""
    self._check({name: abstract}, {k: v for k, v in self.leaves.items() if k == name})
    [(_, array)] = paths.leaves(self._read({name: abstract}))
    return array

  @property
  def averaged(self) -> bool:
    """Whether the run kept a moving average of the parameters."""
    return any(name.startswith('ema/') for name in self.leaves)

  def read_best(self, abstract: Any = None) -> Any:
    """The parameters to go on with: their moving average where the run kept one, else the parameters themselves."""
    return self.read(('ema' if self.averaged else 'params',), abstract)

  def _read(self, wanted: dict[str, Any]) -> dict[str, Any]:
    processes.on_first(self._verify_again)
    return _read(self.path, wanted)

  def _verify_again(self) -> None:
    if stamps(self.path) != self.stamps:
      verify(self.path)

  def _check(self, wanted: dict[str, Any], saved: dict[str, list[Any]]) -> None:
    problems = [f'{name} is not in the checkpoint' for name in sorted(wanted.keys() - saved.keys())]
    problems += [f'{name} is only in the checkpoint' for name in sorted(saved.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & saved.keys()):
      shape, dtype = describe(wanted[name])
      if [shape, dtype] != saved[name]:
        problems.append(f'{name} is {saved[name][1]}{saved[name][0]} in the checkpoint, {dtype}{shape} here')
    if problems:
      more = f'; and {len(problems) - 8} more' if len(problems) > 8 else ''
      raise CheckpointError(f'{self.path}: does not fit this model and optimizer: {"; ".join(problems[:8])}{more}')


def open_checkpoint(path: Path) -> SavedCheckpoint:
  """Verifies one checkpoint folder, <...>/<step:08d>.

  Raises:
    CheckpointError: naming the bad file.
  """
  before = stamps(path)
  return from_manifest(path, verify(path), before)


def read_params(path: Path, abstract: Any = None, keys: tuple[str, ...] = ('params',)) -> Any:
  """Verifies the checkpoint folder `path` and reads one sub-tree, without knowing the rest (see `SavedCheckpoint.read`)."""
  return open_checkpoint(path).read(keys, abstract)


def from_manifest(path: Path, manifest: Manifest, stamps: dict[str, Any]) -> SavedCheckpoint:
  """The checkpoint at `path`, whose manifest has been read. stamps: of its files, from before they were verified.

  Raises:
    CheckpointError: when the folder's name states another step.
  """
  metadata = dict(manifest.metadata)
  step, leaves = metadata.pop('step'), metadata.pop('leaves')
  match = FOLDER_NAME.fullmatch(Path(path).name)
  if match is None or int(match[1]) != step:
    raise CheckpointError(f'{path}: holds the checkpoint of step {step}, which its name does not say')
  return SavedCheckpoint(step, Path(path), metadata, leaves, stamps)


def _read(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
  """The named arrays as a nested dict. A value of None asks for numpy, else for a jax array placed as it says."""
  def restore_args(leaf: Any) -> ocp.RestoreArgs:
    if leaf is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

  item = nest({name: 0 if leaf is None else leaf for name, leaf in wanted.items()})
  args = nest({name: restore_args(leaf) for name, leaf in wanted.items()})
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return reader.restore(path.absolute() / 'state',
                          args=ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True))


def stamps(path: Path) -> dict[str, list[int]]:
  """Size and time of change of every file below `path`; one that goes meanwhile is left out."""
  found = {}
  for file in Path(path).rglob('*'):
    with contextlib.suppress(FileNotFoundError):
      if file.is_file():
        found[str(file.relative_to(path))] = [file.stat().st_size, file.stat().st_mtime_ns]
  return found


def nest(named: dict[str, Any]) -> dict[str, Any]:
  """{'a/b': x} to {'a': {'b': x}}."""
  tree: dict[str, Any] = {}
  for name, leaf in named.items():
    *parents, last = name.split('/')
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def describe(leaf: Any) -> list[Any]:
  """[shape, dtype] as the manifest states them."""
  return [list(leaf.shape), str(leaf.dtype)]
