"""What a checkpoint states of itself beside its arrays: the record, and its JSON form in the manifest."""
import dataclasses
from types import NoneType
from typing import Any

from llm_jax.config.type_hints import is_sequence
from llm_jax.data.batch_source import DataPosition
from llm_jax.runtime.lineage import RunLineage


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """Shape and dtype of a stored array, such as float32[64, 32]."""
  shape: tuple[int, ...]
  dtype: str

  def __str__(self) -> str:
    return f'{self.dtype}{list(self.shape)}'

  @classmethod
  def of(cls, array: Any) -> 'ArraySpec':
    """Of anything with a shape and a dtype."""
    return cls(tuple(array.shape), str(array.dtype))

  def to_json(self) -> list[Any]:
    return [list(self.shape), self.dtype]

  @classmethod
  def from_json(cls, entry: list[Any]) -> 'ArraySpec':
    shape, dtype = entry
    is_shape = is_sequence(shape) and all(isinstance(size, int) and size >= 0 for size in shape)
    if not is_shape or not isinstance(dtype, str):
      raise TypeError(f'no array has shape {shape!r:.80} and dtype {dtype!r:.80}')
    return cls(tuple(shape), dtype)


@dataclasses.dataclass(frozen=True)
class Lineage:
  """Where a checkpoint's parameters come from.

  run: the command, the code and the machine that made them.
  parent: what the stage started from: checkpoints as `stage/step`, or `hf:FOLDER`; None: from scratch.
  folder: digests of the Hugging Face folder's files that the stage started from; None: it started elsewhere.
  base: digest of what the adapters of the stage were trained beside; None: the stage has none.
  branches: where the run went back to an earlier step, and what was changed there; JSON values.
  teacher: digest of the model that the stage distils; None: it distils none.
  reward_models: digests of the models that score the stage's answers, by the names of the rewards.
  """
  run: RunLineage
  parent: str | None = None
  folder: dict[str, str] | None = None
  base: str | None = None
  branches: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  teacher: str | None = None
  reward_models: dict[str, str] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    fields = {**self.run.to_json(), 'parent': self.parent}
    if self.folder is not None:
      fields['folder'] = self.folder
    if self.base is not None:
      fields['base'] = self.base
    if self.branches:
      fields['branches'] = self.branches
    if self.teacher is not None:
      fields['teacher'] = self.teacher
    if self.reward_models:
      fields['reward_models'] = self.reward_models
    return fields

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'Lineage':
    own = ('parent', 'folder', 'base', 'branches', 'teacher', 'reward_models')
    of_run = {name: value for name, value in fields.items() if name not in own}
    return cls(RunLineage.from_json(of_run), fields['parent'], fields.get('folder'), fields.get('base'),
               fields.get('branches', []), fields.get('teacher'), fields.get('reward_models', {}))


# What each field of a checkpoint's metadata is in JSON: a manifest may have a right checksum and say anything.
JSON_TYPES: dict[str, tuple[type, ...]] = {
  'config': (dict,),
  'stage': (str,),
  'final': (bool,),
  'tokenizer': (str, NoneType),
  'lineage': (dict,),
  'data': (dict, NoneType),
  'eval_data': (dict, NoneType),
  'start_metrics': (dict,),
}


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
  """What whoever saves a checkpoint states of it.

  config: the run's configuration, as in `config.json`.
  stage: the stage's name.
  final: whether the stage has ended with this checkpoint.
  tokenizer: fingerprint of the run's tokenizer; None: a model that was imported without one.
  lineage: where the parameters come from.
  data: where the stage is in its training data; None: a model that was imported.
  eval_data: fingerprint of the data that scores the stage, by component; None where none does.
  start_metrics: what was evaluated before the stage's first step, by the evaluation's name; JSON values.
  """
  config: dict[str, Any]
  stage: str
  final: bool
  tokenizer: str | None
  lineage: Lineage
  data: DataPosition | None = None
  eval_data: dict[str, str] | None = None
  start_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    return {
      'config': self.config,
      'stage': self.stage,
      'final': self.final,
      'tokenizer': self.tokenizer,
      'lineage': self.lineage.to_json(),
      'data': None if self.data is None else self.data.to_json(),
      'eval_data': self.eval_data,
      'start_metrics': self.start_metrics,
    }

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'CheckpointMetadata':
    """Raises KeyError, TypeError, ValueError or AttributeError for what `to_json` did not write."""
    data = fields['data']
    for name, kinds in JSON_TYPES.items():
      if not isinstance(fields[name], kinds):
        raise TypeError(f'{name} is {fields[name]!r:.80}')
    return cls(
      config=fields['config'],
      stage=fields['stage'],
      final=fields['final'],
      tokenizer=fields['tokenizer'],
      lineage=Lineage.from_json(fields['lineage']),
      data=None if data is None else DataPosition.from_json(data),
      eval_data=fields['eval_data'],
      start_metrics=fields['start_metrics'],
    )
