"""All that an experiment file imports: `from llm_jax.config.experiment import WSD, experiment, presets, stage, ...`."""
from typing import Any

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import (
  BPE,
  DPO,
  IPO,
  ORPO,
  WSD,
  AdamW,
  ArrayRecord,
  Bytes,
  Checkpoints,
  Classification,
  Constant,
  Conversations,
  Cosine,
  Data,
  Hinge,
  HuggingFaceFile,
  Jsonl,
  LabelledJsonl,
  LanguageModel,
  LinearToZero,
  Member,
  Mesh,
  Muon,
  Needles,
  NeedleTest,
  Parquet,
  Preferences,
  Ramp,
  Run,
  SimPO,
  Source,
  Stage,
  StandardLibrary,
  StandardLibraryChats,
  StandardLibraryFunctions,
  StandardLibraryPreferences,
  Text,
  TiktokenFile,
  TokenFile,
  Weighted,
)
from llm_jax.config.schema import read, to_config_dict

__all__ = [
  'BPE', 'DPO', 'IPO', 'ORPO', 'WSD', 'AdamW', 'ArrayRecord', 'Bytes', 'Checkpoints', 'Classification', 'Constant',
  'Conversations', 'Cosine', 'Data', 'Hinge', 'HuggingFaceFile', 'Jsonl', 'LabelledJsonl', 'LanguageModel',
  'LinearToZero', 'Member', 'Mesh', 'Muon', 'NeedleTest', 'Needles', 'Parquet', 'Preferences', 'Ramp', 'SimPO',
  'StandardLibrary', 'StandardLibraryChats', 'StandardLibraryFunctions', 'StandardLibraryPreferences', 'Text',
  'TiktokenFile', 'TokenFile', 'Weighted', 'experiment', 'mix', 'presets', 'stage',
]


def experiment(**fields: Any):
  """The fields of `Run`, checked at once, as the `ml_collections.ConfigDict` that `get_config` returns."""
  return to_config_dict(read(Run, fields, 'config'))


def stage(name: str, data: Data | Source | None = None, **fields: Any) -> Stage:
  """One row of an experiment: the fields of `Stage`, where `data` and `held_out` are each a source or a `mix`."""
  if data is not None:
    fields['data'] = data if isinstance(data, Data) else mix(data)
  if isinstance(fields.get('held_out'), Source | Weighted):
    fields['held_out'] = mix(fields['held_out'])
  return read(Stage, {'name': name, **fields}, f'stage({name!r})')


def mix(*sources: Source | Weighted | tuple[Source, float], packing: str = 'split') -> Data:
  """A mixture: `mix((Text('books'), .7), (Jsonl('web.jsonl'), .3))`; a source without a weight has weight 1."""
  rows = []
  for i, source in enumerate(sources):
    given = source if isinstance(source, tuple) else (source, 1.0)
    # A Weighted beside a weight would have two.
    if len(given) != 2 or not isinstance(given[0], Source if given is source else Source | Weighted):
      raise ConfigError(f'mix[{i}]', source, 'give a source, such as Text(path), or (source, weight)')
    source, weight = given
    row = source if isinstance(source, Weighted) else {'source': source, 'weight': weight}
    rows.append(read(Weighted, row, f'mix[{i}]'))
  return read(Data, {'sources': rows, 'packing': packing}, 'mix')
