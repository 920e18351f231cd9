"""Models of Hugging Face for programs that read runs: each is imported once, into the cache folder."""
import json
import os
import pathlib
import sys

from launch import runtime
from llm_jax.config.errors import ConfigError
from llm_jax.config.hub_names import HubName, is_hub_name


def run_folder(flag: str, place: pathlib.Path) -> pathlib.Path:
  """The folder of a run as it is; for a Hugging Face folder, or a name on the hub, that of a run which holds its model.

  Args:
    flag: what named it, for errors.

  Raises:
    ConfigError: the hub does not have it or cannot be asked, or it is no model that can be read.
  """
  on_hub = is_hub_name(str(place))
  if not on_hub and not is_hugging_face(place):
    return place
  runtime.prepare()  # what reads weights imports jax
  from llm_jax.data import fingerprints
  from llm_jax.runtime import hub
  if on_hub:
    commit = hub.commit_of(HubName('model', str(place)))
    folder = hub.model_folder(place, commit)
    key = f'{str(place).replace("/", "--")}-{commit[:12]}'
  else:
    folder = place
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(place.iterdir())]
    key = f'{place.absolute().name}-{fingerprints.of([str(place.absolute()), states])[:12]}'
  workdir = fingerprints.cache_folder() / 'imported' / key
  if not workdir.exists():
    print(f'{flag}: imported into {workdir}', file=sys.stderr)
    _import(folder, workdir)
  return workdir


def is_hugging_face(folder: pathlib.Path) -> bool:
  """Whether it holds a model, and no run."""
  try:
    values = json.loads((folder / 'config.json').read_bytes())
  except (OSError, ValueError):
    return False
  return isinstance(values, dict) and 'model_type' in values and 'stages' not in values


def _import(folder: pathlib.Path, workdir: pathlib.Path) -> None:
  """Under another name until it is complete."""
  from launch import convert_source, convert_target
  making = workdir.with_name(f'.{workdir.name}.{os.getpid()}')
  convert_target.write_run(making, convert_source.read_hf(folder))
  try:
    making.rename(workdir)
  except OSError as error:
    if not workdir.exists():  # else another program has made it meanwhile
      raise ConfigError('LLM_JAX_CACHE', str(workdir.parent), f'cannot be written ({error.strerror}): name another '
                        'folder') from error
