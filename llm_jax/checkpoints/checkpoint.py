"""Reading a verified checkpoint back: whole or one sub-tree, onto any mesh, with nothing cast or left out silently.

What is stored is nested dicts of arrays whose names are the leaves' paths (`params/embedding/w`), whatever classes the
state is made of, so that a reader needs neither the model nor the optimizer.
"""
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from llm_jax import paths
from llm_jax.checkpoints.copies import has_copies, read_once
from llm_jax.checkpoints.folders import step_of
from llm_jax.checkpoints.manifest import Manifest, ReadEntries, read_entries, verify
from llm_jax.checkpoints.metadata import ArraySpec, CheckpointMetadata
from llm_jax.checkpoints.shared_hashing import on_first_with_help
from llm_jax.checkpoints.zarr_arrays import is_readable, read_arrays
from llm_jax.runtime.errors import CheckpointError, one_line
from llm_jax.runtime.files import files_below, stamp

MOST_PROBLEMS_NAMED = 8
FLOATS = ('float32', 'bfloat16')  # in which parameters are stored


@dataclasses.dataclass(frozen=True)
class SavedCheckpoint:
  """A verified checkpoint.

  leaves: shape and dtype of every array, by its path in the state.
  stamp: of its files, from before they were verified. Minutes may go by until they are read: see `read`.
  """
  step: int
  path: Path
  metadata: CheckpointMetadata
  leaves: Mapping[str, ArraySpec]
  stamp: str

  def restore(self, abstract: Any) -> Any:
    """Reads the state back, bit for bit.

    abstract: the state's tree with jax.ShapeDtypeStruct leaves; their shardings may be for another mesh or another
      number of processes than the one that saved. Without a sharding an array goes to the default device.

    Raises:
      CheckpointError: naming the leaves that are missing, unknown, or of another shape or dtype; or a file that has
        been damaged since all were verified.
    """
    self.check(abstract)
    wanted = dict(paths.leaves(abstract))
    arrays = dict(paths.leaves(self._read(wanted)))
    return paths.map_named(lambda name, _: arrays[name], abstract)

  def check(self, abstract: Any) -> None:
    """Refuses, as `restore` does, what it could not read; nothing is read."""
    self._check(dict(paths.leaves(abstract)), self.leaves)

  def read(self, keys: tuple[str, ...] = ('params',), abstract: Any = None) -> Any:
    """Reads the sub-tree under `keys` only: numpy arrays in a nested dict, or what `abstract` describes.

    Raises:
      CheckpointError: as `restore` does.
    """
    prefix = '/'.join(keys) + '/'
    saved = {name: leaf for name, leaf in self.leaves.items() if name.startswith(prefix)}
    if not saved:
      tops = ', '.join(sorted({name.split('/')[0] for name in self.leaves}))
      raise CheckpointError(f'{self.path}: holds no {prefix[:-1]}, only {tops}')
    if abstract is None:
      tree = self._read(dict.fromkeys(saved))
      for key in keys:
        tree = tree[key]
      return tree
    wanted = {prefix + name: leaf for name, leaf in paths.leaves(abstract)}
    self._check(wanted, saved)
    arrays = dict(paths.leaves(self._read(wanted)))
    return paths.map_named(lambda name, _: arrays[prefix + name], abstract)

  def read_leaf(self, name: str, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads one array, by its path."""
    saved = {name: self.leaves[name]} if name in self.leaves else {}
    self._check({name: abstract}, saved)
    [(_, array)] = paths.leaves(self._read({name: abstract}))
    return array

  @property
  def averaged(self) -> bool:
    """Whether the run kept a moving average of the parameters."""
    return any(name.startswith('ema/') for name in self.leaves)

  @property
  def best(self) -> str:
    """Where the parameters to go on with are: their moving average where the run kept one."""
    return 'ema' if self.averaged else 'params'

  def read_best(self, abstract: Any = None) -> Any:
    """The parameters to go on with: their moving average where the run kept one, else the parameters themselves."""
    return self.read((self.best,), abstract)

  def as_saved(self, abstract: Any, key: str | None = None) -> Any:
    """`abstract`, in the floating-point types in which the arrays below `key` (None: the best ones) were saved. Another
    stage may store its parameters in more bits, or in fewer."""
    prefix = self.best if key is None else key

    def retype(name: str, leaf: Any) -> Any:
      saved = self.leaves.get(f'{prefix}/{name}')
      if saved is None or saved.dtype not in FLOATS or str(leaf.dtype) not in FLOATS:
        return leaf
      return jax.ShapeDtypeStruct(leaf.shape, saved.dtype, sharding=getattr(leaf, 'sharding', None))
    return paths.map_named(retype, abstract)

  def _read(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
    on_first_with_help(self.path, self._verify_if_touched)
    try:
      tree = _read_arrays(self.path, wanted)
    except (OSError, ValueError, TypeError, LookupError) as error:  # Orbax raises each of them for what it lacks
      if _stamp(self.path) != self.stamp:
        raise CheckpointError(f'{self.path}: was deleted or changed while it was read') from error
      raise CheckpointError(f'{self.path}: its arrays are not those that its manifest lists '
                            f'({type(error).__name__}: {one_line(error)})') from error
    for name, array in paths.leaves(tree):
      if not hasattr(array, 'dtype') or ArraySpec.of(array) != self.leaves[name]:  # Orbax passes over what it lacks
        raise CheckpointError(f'{self.path}: its arrays are not those that its manifest lists ({name})')
    return tree

  def _verify_if_touched(self, read: ReadEntries) -> None:
    if _stamp(self.path) != self.stamp:
      verify(self.path, read)

  def _check(self, wanted: Mapping[str, Any], saved: Mapping[str, ArraySpec]) -> None:
    problems = [f'{name} is not in the checkpoint' for name in sorted(wanted.keys() - saved.keys())]
    problems += [f'{name} is only in the checkpoint' for name in sorted(saved.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & saved.keys()):
      here = ArraySpec.of(wanted[name])
      if here != saved[name]:
        problems.append(f'{name} is {saved[name]} in the checkpoint, {here} here')
    if not problems:
      return
    text = '; '.join(problems[:MOST_PROBLEMS_NAMED])
    if len(problems) > MOST_PROBLEMS_NAMED:
      text += f'; and {len(problems) - MOST_PROBLEMS_NAMED} more'
    raise CheckpointError(f'{self.path}: does not fit this model and optimizer: {text}')


def open_checkpoint(path: Path, read: ReadEntries = read_entries) -> SavedCheckpoint:
  """Verifies one checkpoint folder, <...>/<step:08d>.   read: what hashes its files.

  Raises:
    CheckpointError: naming the bad file.
  """
  before = _stamp(path)
  try:
    manifest = verify(path, read)
  except OSError as error:
    raise CheckpointError(f'{path}: cannot be read ({error.strerror})') from error
  return from_manifest(path, manifest, before)


def read_params(path: Path, abstract: Any = None, keys: tuple[str, ...] = ('params',)) -> Any:
  """Verifies the checkpoint folder `path` and reads one sub-tree, see `SavedCheckpoint.read`."""
  return open_checkpoint(path).read(keys, abstract)


def _stamp(path: Path) -> str:
  """Of the checkpoint's files; one that is being deleted has none."""
  try:
    return stamp(files_below(path))
  except FileNotFoundError:
    return 'absent'


def from_manifest(path: Path, manifest: Manifest, stamp: str) -> SavedCheckpoint:
  """The checkpoint at `path`, whose manifest has been read.   stamp: of its files, from before they were verified.

  Raises:
    CheckpointError: the folder's name states another step, or another version wrote the manifest.
  """
  try:
    step = int(manifest.metadata['step'])
    leaves = {name: ArraySpec.from_json(entry) for name, entry in manifest.metadata['leaves'].items()}
    metadata = CheckpointMetadata.from_json(manifest.metadata)
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    raise CheckpointError(f'{path}: its metadata are of another version of llm_jax ({type(error).__name__}: {error}): '
                          'read it with the version that wrote it') from error
  if step_of(path) != step:
    raise CheckpointError(f'{path}: holds the checkpoint of step {step}, which its name does not say')
  return SavedCheckpoint(step, path, metadata, leaves, stamp)


def _read_arrays(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
  """The named arrays as a nested dict. A value of None asks for numpy, else for a jax array placed as it says. What
  several processes hold copies of is read by one of them."""
  copied = {name: leaf for name, leaf in wanted.items() if has_copies(leaf)}
  if copied:
    arrays = read_once(path / 'state', copied)
    others = {name: leaf for name, leaf in wanted.items() if name not in copied}
    arrays |= dict(paths.leaves(_read_arrays(path, others))) if others else {}
    return paths.nest(arrays)
  if is_readable(path / 'state'):
    placed = {name: None if leaf is None else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf))
              for name, leaf in wanted.items()}
    return paths.nest(read_arrays(path / 'state', placed))
  item = paths.nest({name: 0 if leaf is None else leaf for name, leaf in wanted.items()})
  restore_args = paths.nest({name: _restore_args(leaf) for name, leaf in wanted.items()})
  args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return reader.restore(path.absolute() / 'state', args=args)


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
  if leaf is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.ArrayRestoreArgs(sharding=sharding_of(leaf), global_shape=leaf.shape, dtype=leaf.dtype)


def sharding_of(leaf: Any) -> jax.sharding.Sharding:
  """Where an array that `leaf` describes is read to: as it says, else to the default device."""
  return getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
