"""The parameters of a run's saved models, where a stage saves its adapters alone.

The base of a stage's adapters is what the stage started from: a Hugging Face folder, or the checkpoint of an earlier
stage. Where the earlier stage has adapters that go on, its base is the base of both.
"""
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import hf, paths
from llm_jax.checkpoints.average import average_params
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.checkpoints.manifest import NAME as MANIFEST
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Average, HuggingFace, Params
from llm_jax.modules.low_rank import join, merge
from llm_jax.modules.parameters import parameter_shapes
from llm_jax.modules.weight_storage import stored
from llm_jax.runtime import hub, processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.sharding.rules import param_shardings


@dataclasses.dataclass(frozen=True)
class SavedModels:
  """Reads the models of a run's checkpoints.

  mesh: what the parameters are placed on; None: the first device.
  open_store: (stage name) -> its checkpoints; None: those in the workdir.

  Raises (all methods):
    CheckpointError: a checkpoint is damaged or gone, or the base is not the one that the adapters were trained with.
    ConfigError: the Hugging Face folder holds another model.
  """
  run: Run
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh | None = None
  open_store: Callable[[str], CheckpointStore] | None = None

  def whole(self, stage: Stage, checkpoint: SavedCheckpoint) -> Any:
    """All parameters, float32 where the stage trained them all or an adapter was merged."""
    if stage.adapters is None:
      return self._read(stage, checkpoint)
    merged = functools.partial(merge, config=stage.adapters)
    base, adapters = self._parts(stage, checkpoint)
    return self._placed(merged, base, adapters)

  def joined(self, stage: Stage, checkpoint: SavedCheckpoint) -> Any:
    """All parameters, with the adapters beside the weights of a base that is stored as the stage says."""
    if stage.adapters is None:
      return self._read(stage, checkpoint)
    base, adapters = self._parts(stage, checkpoint)
    return join(base, adapters, stage.adapters)

  def _parts(self, stage: Stage, checkpoint: SavedCheckpoint) -> tuple[Any, Any]:
    recorded = checkpoint.metadata.lineage.base
    found = self.base_digest(stage)
    if recorded not in (None, found):
      raise CheckpointError(f'{checkpoint.path}: its adapters were trained on another base ({recorded[:12]}, now '
                            f'{found[:12]}): bring that one back')
    return self.base(stage), jax.tree.map(jnp.asarray, checkpoint.read_best())

  # -------------------------------------------------------------------------------------------- the base
  def root(self, stage: Stage) -> Stage:
    """The first stage that trained the adapters of `stage`: the base is what that one starts from."""
    parent = next((each for each in self.run.stages if each.name in stage.parents), None)
    if parent is not None and parent.adapters is not None and parent.adapters.go_on_in(stage.adapters):
      return self.root(parent)
    return stage

  def base(self, stage: Stage) -> Any:
    """The parameters beside which `stage` trains adapters, stored as its adapters say."""
    root = self.root(stage)
    assert root.adapters is not None
    kind = root.adapters.base
    match root.init:
      case HuggingFace(folder, resize, revision):
        model = self.run.model_of(root)
        return hf.load_pretrained(folder, self._mesh, config=model, resize_vocabulary=resize, revision=revision,
                                  store=functools.partial(stored, kind=kind))[1]
      case Params(name):
        parent = self._stage(name)
        checkpoint = self._last(name)
        if parent.adapters is None:
          return self._read(parent, checkpoint, kind)
        return self._store_all(self.whole(parent, checkpoint), kind)
      case Average():
        shapes = self._abstract(root)
        checkpoints = [_decoder_alone(checkpoint, shapes) for checkpoint, _ in self._averaged(root.init)]
        weights = [weight for _, weight in self._averaged(root.init)]
        return self._store_all(average_params(checkpoints, paths.nest(shapes), weights), kind)
      case _:
        raise ValueError(f'{root.name} has nothing that adapters could be trained beside')

  def abstract_base(self, stage: Stage) -> Any:
    """The shapes of `base`, with their shardings."""
    root = self.root(stage)
    assert root.adapters is not None
    kind = root.adapters.base
    store_all = lambda leaves: paths.nest({path: stored(path, leaf, kind) for path, leaf in leaves.items()})
    shapes = jax.eval_shape(store_all, self._abstract(root))
    shardings = param_shardings(shapes, self._mesh)
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                        shapes, shardings)

  def base_digest(self, stage: Stage) -> str:
    """sha256 of what tells the base of `stage` from others: of a folder's files, or of the manifests of checkpoints."""
    root = self.root(stage)
    match root.init:
      case HuggingFace(name, revision=revision):
        digests = processes.on_first(lambda: hf.folder_digests(str(hub.model_folder(name, revision))))
        parts = [f'{name} {digest}' for name, digest in digests.items()]
      case Params(name):
        parts = [manifest_digest(self._last(name))]
        parent = self._stage(name)
        if parent.adapters is not None:
          parts.append(self.base_digest(parent))
      case Average():
        parts = [f'{weight} {manifest_digest(checkpoint)}' for checkpoint, weight in self._averaged(root.init)]
      case _:
        raise ValueError(f'{root.name} has nothing that adapters could be trained beside')
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

  # -------------------------------------------------------------------------------------------- reading
  def _read(self, stage: Stage, checkpoint: SavedCheckpoint, kind: str = 'float32') -> Any:
    """The decoder's parameters in a checkpoint, one after the other, stored as `kind` says."""
    read = {}
    for path, abstract in checkpoint.as_saved(self._abstract(stage)).items():
      leaf = checkpoint.read_leaf(f'{checkpoint.best}/{path}', abstract).astype(jnp.float32)
      read[path] = self._store(path, leaf, kind)
    return paths.nest(read)

  def _store_all(self, params: Any, kind: str) -> Any:
    leaves = paths.flat(params)
    for path in list(leaves):
      leaves[path] = self._store(path, leaves[path], kind)  # what it was made of is freed before the next
    return paths.nest(leaves)

  def _store(self, path: str, leaf: Any, kind: str) -> Any:
    def store(leaf: Any) -> Any:
      return paths.nest({path: stored(path, leaf, kind)})
    return paths.flat(self._placed(store, leaf))[path]

  def _placed(self, make: Any, *args: Any) -> Any:
    """make(*args), compiled, on the mesh."""
    return jax.jit(make, out_shardings=param_shardings(jax.eval_shape(make, *args), self._mesh))(*args)

  def _abstract(self, stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32)
              for path, shape in parameter_shapes(self.run.model_of(stage)).items()}
    shardings = param_shardings(shapes, self._mesh)
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
            for path, leaf in shapes.items()}

  @functools.cached_property
  def _mesh(self) -> jax.sharding.Mesh:
    return self.mesh or jax.sharding.Mesh(jax.local_devices()[:1], ('data',))

  def _stage(self, name: str) -> Stage:
    return next(stage for stage in self.run.stages if stage.name == name)

  def _store_of(self, name: str) -> CheckpointStore:
    if self.open_store is not None:
      return self.open_store(name)
    return CheckpointStore(self.workdir / 'checkpoints' / name)

  def _last(self, name: str, step: int | None = None) -> SavedCheckpoint:
    store = self._store_of(name)
    checkpoint = store.latest_valid() if step is None else store.at(step)
    if checkpoint is None:
      raise CheckpointError(f'{store.folder}: its checkpoints are gone, and adapters were trained beside their '
                            'parameters: bring them back')
    return checkpoint

  def _averaged(self, init: Average) -> list[tuple[SavedCheckpoint, float]]:
    if isinstance(init.checkpoints, str):
      newest = self._store_of(init.checkpoints).newest(init.last or 0)
      return [(checkpoint, 1.0) for checkpoint in reversed(newest)]
    return [(self._last(named.stage, named.step), named.weight) for named in init.named]


def _decoder_alone(checkpoint: SavedCheckpoint, shapes: dict[str, Any]) -> SavedCheckpoint:
  """The checkpoint without the parameters that an objective alone had."""
  leaves = {name: leaf for name, leaf in checkpoint.leaves.items() if name.removeprefix('params/') in shapes}
  return dataclasses.replace(checkpoint, leaves=leaves)


def manifest_digest(checkpoint: SavedCheckpoint) -> str:
  """The manifest has the digest of every file."""
  return processes.on_first(lambda: hashlib.sha256((checkpoint.path / MANIFEST).read_bytes()).hexdigest())
