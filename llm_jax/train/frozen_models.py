"""The models that a stage reads and never trains, beside what it starts from: found and checked first, read later."""
import dataclasses
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
from llm_jax.config.rewards import Rewarded, RewardModelScore, WithModel
from llm_jax.config.run import Run
from llm_jax.config.samples import Samples
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import HuggingFace, Params
from llm_jax.config.teachers import SavedRun, Teacher
from llm_jax.data.tokenizers.base import Tokenizer, load_tokenizer, make_tokenizer
from llm_jax.modules.parameters import parameter_shapes
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen, FrozenModel, read_only
from llm_jax.objectives.scalar_head import REWARD
from llm_jax.runtime import hub, processes
from llm_jax.runtime.buckets import place
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


@dataclasses.dataclass(frozen=True)
class FoundModels:
  """All models that a stage reads beside what it starts from.

  teacher: the one that it distils.   reward: those that score its answers, by the names of the rewards.
  """
  teacher: FoundModel | None
  reward: dict[str, FoundModel]

  @property
  def digests(self) -> dict[str, str]:
    """Of the reward models, by name."""
    return {name: found.digest for name, found in self.reward.items()}

  def beside(self, frozen: Frozen) -> Frozen:
    """What is frozen otherwise, with these models, which are read now."""
    return self._with(frozen, lambda found: found.read())

  def abstract_beside(self, frozen: Frozen) -> Frozen:
    """The same as shapes."""
    return self._with(frozen, lambda found: found.abstract)

  def _with(self, frozen: Frozen, get: Callable[[FoundModel], FrozenModel]) -> Frozen:
    teacher = None if self.teacher is None else get(self.teacher)
    reward = {name: get(found) for name, found in self.reward.items()} or None
    return dataclasses.replace(frozen, teacher=teacher, reward=reward)

  def check_same_as(self, checkpoint: SavedCheckpoint) -> None:
    """Refuses to go on from a checkpoint whose stage read other models."""
    lineage = checkpoint.metadata.lineage
    pairs = [('distils another teacher', lineage.teacher, None if self.teacher is None else self.teacher.digest)]
    pairs += [(f'is rewarded by another model {name}', lineage.reward_models.get(name), digest)
              for name, digest in self.digests.items()]
    for difference, recorded, found in pairs:
      if recorded is not None and found is not None and recorded != found:
        raise CheckpointError(f'{checkpoint.path}: it {difference} ({recorded[:12]}, now {found[:12]}): bring that one '
                              'back, or start in another workdir')


def find_models(session: Session, stage: Stage) -> FoundModels:
  """All models that the stage reads beside what it starts from.

  Raises:
    CheckpointError: a checkpoint is damaged or gone, or its stage has not finished.
    ConfigError: a tokenizer or a vocabulary is another, or a folder holds no such model.
  """
  return FoundModels(find_teacher(session, stage), find_reward_models(session, stage, stage.answering))


def find_teacher(session: Session, stage: Stage) -> FoundModel | None:
  """The model that the stage distils, or None.   Raises: as `find_models`."""
  teacher = stage.objective.distilled
  if teacher is None:
    return None
  with located(f'stage {stage.name}.objective'):
    return find_model(session, teacher)


def find_model(session: Session, teacher: Teacher) -> FoundModel:
  """A model with the run's tokenizer and vocabulary.   Raises: as `find_models`."""
  found = _find(session, teacher, TEACHER)
  logits, wanted = found.abstract.model.config.vocab_size, session.run.model.vocab_size
  require(logits == wanted, 'teacher', f'{logits} logits', f'the student has {wanted}: give it as many rows')
  return found


def find_reward_models(session: Session, stage: Stage, rewarded: Rewarded | None) -> dict[str, FoundModel]:
  """The models that score the stage's answers, by the names of the rewards.   Raises: as `find_models`."""
  if rewarded is None:
    return {}
  found: dict[str, FoundModel] = {}
  for name, reward in rewarded.reward_models.items():
    place = rewarded.rewards.index(reward)
    with located(f'stage {stage.name}: rewards[{place}]'):
      found[name] = _find(session, reward.model, role_of(reward))
      table = found[name].abstract.model.config.max_length
      if isinstance(reward, RewardModelScore) and table is not None:
        require(stage.seq_len < table, 'model', f'{table} learned positions',
                f'it reads rows of seq_len={stage.seq_len} with the token behind them: use one with more')
  return found


def check_tokenizers(session: Session, stage: Stage) -> None:
  """Refuses models of other runs and of folders that are no such, or whose tokenizer is not the run's, before any stage
  begins. Their checkpoints are verified when they are read.

  Raises:
    ConfigError: names the field of the configuration.
  """
  if stage.objective.distilled is not None:
    with located(f'stage {stage.name}.objective'):
      _check_saved(session, stage.objective.distilled, TEACHER)
  sampled = [samples for samples in stage.samples if isinstance(samples, Samples)]
  for rewarded in sampled if stage.rollout is None else [stage.rollout]:
    for i, reward in enumerate(rewarded.rewards):
      if isinstance(reward, WithModel):
        with located(f'stage {stage.name}: rewards[{i}]'):
          _check_saved(session, reward.model, role_of(reward))


def _check_saved(session: Session, model: Teacher, role: 'Role') -> None:
  match model:
    case SavedRun(workdir):
      folder = place(workdir)
      read_config(folder, f'{role.field}.workdir')
      _check_tokenizer(workdir, load_tokenizer(folder / 'tokenizer').fingerprint, session.tokenizer, role)
    case HuggingFace(name, _, revision):
      folder = str(hub.model_folder(name, revision))
      _check_tokenizer(folder, make_tokenizer(hf.read_tokenizer(folder)).fingerprint, session.tokenizer, role)
    case Params():
      pass  # has the run's


@dataclasses.dataclass(frozen=True)
class Role:
  """What a model is read for.

  field: of the configuration, that names it.
  own: names of its parameters beside the decoder's.
  tokens: why its tokenizer has to be the run's, and what to change.
  """
  field: str
  own: tuple[str, ...]
  tokens: str


TEACHER = Role('teacher', (), 'probabilities of other tokens cannot be compared: use a teacher with the tokenizer of '
               'the student')
JUDGE = Role('judge.model', (), 'its answers are other tokens: use a judge with the tokenizer of the run')
REWARD_MODEL = Role('model', (REWARD,), 'the ids of an answer are other tokens to it: use a reward model with the '
                    'tokenizer of the policy')


def role_of(reward: WithModel) -> Role:
  """What a reward's model is read for."""
  return REWARD_MODEL if isinstance(reward, RewardModelScore) else JUDGE


def _find(session: Session, model: Teacher, role: Role) -> FoundModel:
  match model:
    case Params(name):
      store = session.store(name)
      models = session.saved_models()
      return _of_run(session, session.run, models, name, store.latest_valid(), role, must_be_final=True)
    case SavedRun(workdir, name, step):
      folder = place(workdir)
      run = read_config(folder, f'{role.field}.workdir')
      name = name or _last_saved(run, folder, role)
      require(name in [each.name for each in run.stages], f'{role.field}.stage', name,
              f'the run has {[each.name for each in run.stages]}')
      store = CheckpointStore(folder / 'checkpoints' / name)
      require(step is None or step in store.steps(), f'{role.field}.step', step, f'{store.folder} has {store.steps()}')
      checkpoint = store.latest_valid() if step is None else store.at(step)
      return _of_run(session, run, SavedModels(run, folder, session.mesh), name, checkpoint, role)
    case HuggingFace(name, resize, revision):
      require(not resize, f'{role.field}.resize_vocabulary', resize,
              'the model has the vocabulary of its files: leave it out')
      return _of_folder(session, str(hub.model_folder(name, revision)), role)


def _last_saved(run: Run, workdir: pathlib.Path, role: Role) -> str:
  """The last stage of another run that has a checkpoint."""
  saved = [stage.name for stage in run.stages if CheckpointStore(workdir / 'checkpoints' / stage.name).steps()]
  if not saved:
    raise ConfigError(f'{role.field}.workdir', str(workdir), 'the run has saved no checkpoint yet')
  return saved[-1]


def _of_run(session: Session, run: Run, models: SavedModels, name: str, checkpoint: SavedCheckpoint | None,
            role: Role, must_be_final: bool = False) -> FoundModel:
  if checkpoint is None or must_be_final and not checkpoint.metadata.final:
    raise CheckpointError(f'stage {name}, which is read here, has not finished or has lost its checkpoints: run it '
                          'first, or bring them back')
  stage = next(each for each in run.stages if each.name == name)
  _check_tokenizer(str(checkpoint.path), checkpoint.metadata.tokenizer, session.tokenizer, role)
  for own in role.own:
    has_own = any(path.startswith(f'{checkpoint.best}/{own}/') for path in checkpoint.leaves)
    require(has_own, role.field, name, f'the stage has no parameters `{own}`: name one whose objective is RewardModel')
  digest = processes.on_first(lambda: hashlib.sha256((checkpoint.path / MANIFEST).read_bytes()).hexdigest())
  config = run.model_of(stage)
  heads = _placed(session, _head_shapes(config, role))

  def read() -> Any:
    own = {path: checkpoint.read_leaf(f'{checkpoint.best}/{path}', leaf) for path, leaf in heads.items()}
    return {**models.whole(stage, checkpoint), **paths.nest(own)}

  return _found(session, config, role, read, digest)


def _of_folder(session: Session, folder: str, role: Role) -> FoundModel:
  tokenizer = make_tokenizer(hf.read_tokenizer(folder))
  _check_tokenizer(folder, tokenizer.fingerprint, session.tokenizer, role)
  digests = processes.on_first(lambda: hf.folder_digests(folder))
  digest = hashlib.sha256('\n'.join(f'{name} {value}' for name, value in digests.items()).encode()).hexdigest()
  read = lambda: hf.load_pretrained(folder, session.mesh)[1]
  return _found(session, hf.read_config(folder), role, read, digest)


def _check_tokenizer(where: str, fingerprint: str | None, tokenizer: Tokenizer, role: Role) -> None:
  require(fingerprint == tokenizer.fingerprint, role.field, where,
          f'its tokenizer is {str(fingerprint)[:16]}, that of this run {tokenizer.fingerprint[:16]}, and {role.tokens}')


def _head_shapes(config: Architecture, role: Role) -> dict[str, tuple[int, ...]]:
  """Of the parameters beside the decoder's, by path."""
  return {f'{own}/w': (config.d_model, 1) for own in role.own}


def _placed(session: Session, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
  """float32 parameters of these shapes, with their shardings."""
  arrays = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
  shardings = param_shardings(arrays, session.mesh)
  return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
          for path, leaf in arrays.items()}


def _found(session: Session, config: Architecture, role: Role, read: Callable[[], Any], digest: str) -> FoundModel:
  model = Transformer(config, dataclasses.replace(session.execution, remat='none'))
  dtype = session.execution.compute_dtype
  placed = _placed(session, {**parameter_shapes(config), **_head_shapes(config, role)})
  abstract = read_only(paths.nest(placed), dtype)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  store = jax.jit(lambda params: read_only(params, dtype), out_shardings=shardings, donate_argnums=0)
  return FoundModel(FrozenModel(abstract, model), lambda: FrozenModel(store(read()), model), digest)
