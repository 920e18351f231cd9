"""All that an experiment file imports: `from llm_jax.config.experiment import WSD, experiment, presets, stage, ...`.

Every name of `__all__` in the modules below can be imported from here.
"""
from typing import Any

from llm_jax.config import presets as presets
from llm_jax.config.adapters import *
from llm_jax.config.data import *
from llm_jax.config.errors import ConfigError
from llm_jax.config.evaluations import *
from llm_jax.config.judges import *
from llm_jax.config.objectives import *
from llm_jax.config.optimizers import *
from llm_jax.config.policy_gradients import *
from llm_jax.config.prompt_sources import *
from llm_jax.config.quantization import *
from llm_jax.config.ramp import *
from llm_jax.config.revisions import *
from llm_jax.config.rewards import *
from llm_jax.config.rollout import *
from llm_jax.config.run import *
from llm_jax.config.samples import *
from llm_jax.config.schedules import *
from llm_jax.config.schema import read, to_config_dict
from llm_jax.config.sources import *
from llm_jax.config.spikes import *
from llm_jax.config.stage import *
from llm_jax.config.stage_init import *
from llm_jax.config.teachers import *
from llm_jax.config.tokenizers import *
from llm_jax.config.trackers import *
from llm_jax.config.type_hints import is_sequence


def experiment(**fields: Any):
  """The fields of `Run`, checked at once, as the `ml_collections.ConfigDict` that `get_config` returns."""
  return to_config_dict(read(Run, fields, 'config'))


def stage(name: str, data: Data | Source | None = None, **fields: Any) -> Stage:
  """One row of an experiment: the fields of `Stage`, where `data` and `eval_data` are each a source or a `mix`."""
  if data is not None:
    fields['data'] = data if isinstance(data, Data) else mix(data)
  if isinstance(fields.get('eval_data'), Source | Weighted):
    fields['eval_data'] = mix(fields['eval_data'])
  return read(Stage, {'name': name, **fields}, f'stage({name!r})')


def mix(*sources: Source | Weighted | tuple[Source, Weight], packing: str = 'concat') -> Data:
  """A mixture: `mix((Text('books'), .7), (Jsonl('web.jsonl'), .3))`; a source without a weight has weight 1."""
  rows = [_weighted(source, f'mix[{i}]') for i, source in enumerate(sources)]
  return read(Data, {'sources': rows, 'packing': packing}, 'mix')


def _weighted(source: Any, path: str) -> Weighted:
  """One argument of `mix`, whatever it is."""
  if isinstance(source, Weighted):
    return read(Weighted, source, path)
  if isinstance(source, Source):
    return read(Weighted, {'source': source}, path)
  is_pair = is_sequence(source) and len(source) == 2 and isinstance(source[0], Source)
  if not is_pair:
    raise ConfigError(path, source, 'give a source, such as Text(path), or (source, weight)')
  return read(Weighted, {'source': source[0], 'weight': source[1]}, path)
