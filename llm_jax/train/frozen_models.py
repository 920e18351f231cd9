"""The models that a stage reads and never trains, beside what it starts from: found and checked first, read later."""
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import hf, paths
from llm_jax.adapters.base import SavedModels
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.checkpoints.manifest import NAME as MANIFEST
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import ConfigError, located, require
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import HuggingFace, Params
from llm_jax.config.teachers import SavedRun, Teacher
from llm_jax.data.tokenizers.base import Tokenizer, make_tokenizer
from llm_jax.modules.parameters import parameter_shapes
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import FrozenModel, read_only
from llm_jax.runtime import hub, processes
from llm_jax.runtime.errors import CheckpointError
from llm_jax.sharding.rules import param_shardings
from llm_jax.tracking.run_config import read_config
from llm_jax.train.session import Session


@dataclasses.dataclass(frozen=True)
class FoundModel:
  """A model that was found and checked.

  abstract: its shapes, with shardings.   read: reads it.   digest: sha256 of what tells its weights from others.
  """
  abstract: FrozenModel
  read: Callable[[], FrozenModel]
  digest: str


def find_teacher(session: Session, stage: Stage) -> FoundModel | None:
  """The model that the stage distils, or None.

  Raises:
    CheckpointError: its checkpoint is damaged or gone, or its stage has not finished.
    ConfigError: its tokenizer or its vocabulary is another, or its folder holds no model.
  """
  teacher = stage.objective.distilled
  if teacher is None:
    return None
  with located(f'stage {stage.name}.objective'):
    return _find(session, teacher)


def _find(session: Session, teacher: Teacher) -> FoundModel:
  match teacher:
    case Params(name):
      store = session.store(name)
      return _of_run(session, session.run, session.saved_models(), name, store.latest_valid(), must_be_final=True)
    case SavedRun(workdir, name, step):
      folder = pathlib.Path(workdir)
      run = read_config(folder, 'teacher.workdir')
      name = name or _last_saved(run, folder)
      require(name in [each.name for each in run.stages], 'teacher.stage', name,
              f'the run has {[each.name for each in run.stages]}')
      store = CheckpointStore(folder / 'checkpoints' / name)
      require(step is None or step in store.steps(), 'teacher.step', step, f'{store.folder} has {store.steps()}')
      checkpoint = store.latest_valid() if step is None else store.at(step)
      return _of_run(session, run, SavedModels(run, folder, session.mesh), name, checkpoint)
    case HuggingFace(name, resize, revision):
      require(not resize, 'teacher.resize_vocabulary', resize,
              'a teacher has the vocabulary of its files: leave it out')
      return _of_folder(session, str(hub.model_folder(name, revision)))


def _last_saved(run: Run, workdir: pathlib.Path) -> str:
  """The last stage of another run that has a checkpoint."""
  saved = [stage.name for stage in run.stages if CheckpointStore(workdir / 'checkpoints' / stage.name).steps()]
  if not saved:
    raise ConfigError('teacher.workdir', str(workdir), 'the run has saved no checkpoint yet')
  return saved[-1]


def _of_run(session: Session, run: Run, models: SavedModels, name: str, checkpoint: SavedCheckpoint | None,
            must_be_final: bool = False) -> FoundModel:
  if checkpoint is None or must_be_final and not checkpoint.metadata.final:
    raise CheckpointError(f'stage {name}, which is read here, has not finished or has lost its checkpoints: run it '
                          'first, or bring them back')
  stage = next(each for each in run.stages if each.name == name)
  _check_tokenizer(str(checkpoint.path), checkpoint.metadata.tokenizer, session.tokenizer)
  digest = processes.on_first(lambda: hashlib.sha256((checkpoint.path / MANIFEST).read_bytes()).hexdigest())
  read = functools.partial(models.whole, stage, checkpoint)
  return _found(session, run.model_of(stage), read, digest)


def _of_folder(session: Session, folder: str) -> FoundModel:
  tokenizer = make_tokenizer(hf.read_tokenizer(folder))
  _check_tokenizer(folder, tokenizer.fingerprint, session.tokenizer)
  digests = processes.on_first(lambda: hf.folder_digests(folder))
  digest = hashlib.sha256('\n'.join(f'{name} {value}' for name, value in digests.items()).encode()).hexdigest()
  read = lambda: hf.load_pretrained(folder, session.mesh)[1]
  return _found(session, hf.read_config(folder), read, digest)


def _check_tokenizer(where: str, fingerprint: str | None, tokenizer: Tokenizer) -> None:
  require(fingerprint == tokenizer.fingerprint, 'teacher', where,
          f'its tokenizer is {str(fingerprint)[:16]}, that of this run {tokenizer.fingerprint[:16]}, and probabilities '
          'of other tokens cannot be compared: use a teacher with the tokenizer of the student')


def _found(session: Session, config: Architecture, read: Callable[[], Any], digest: str) -> FoundModel:
  vocab_size = session.run.model.vocab_size
  require(config.vocab_size == vocab_size, 'teacher', f'{config.vocab_size} logits',
          f'the student has {vocab_size}: give it as many rows')
  model = Transformer(config, dataclasses.replace(session.execution, remat='none'))
  dtype = session.execution.compute_dtype
  shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(config).items()}
  shardings = param_shardings(shapes, session.mesh)
  placed = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
            for path, leaf in shapes.items()}
  abstract = read_only(paths.nest(placed), dtype)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  store = jax.jit(lambda params: read_only(params, dtype), out_shardings=shardings, donate_argnums=0)
  return FoundModel(FrozenModel(abstract, model), lambda: FrozenModel(store(read()), model), digest)
