"""Reader of data sets on the Hugging Face hub."""
import functools
import itertools
import pathlib
from collections.abc import Iterable
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.sources import HuggingFaceData
from llm_jax.data import fingerprints
from llm_jax.data.sources import formats
from llm_jax.data.sources.documents import JSONL, Record
from llm_jax.data.sources.formats import Files
from llm_jax.data.sources.text import PlainReader
from llm_jax.runtime import hub

JSON_LINES = (*JSONL, '.json', '.json.gz', '.json.zst')  # where a data set has `.json`, its rows are lines


class HuggingFaceDataReader(PlainReader[HuggingFaceData]):
  """The files of the split are fetched whole, into the hub's cache, and then read as any others."""

  def find(self) -> Files:
    name = self.config.hub_name
    if self.config.revision is None:  # of a run it is pinned
      name = self._newest
    files = hub.dataset_files(name, self.config.config, self.config.split, fingerprints.cache_folder())
    for path in files:
      if not path.endswith(('.parquet', *JSON_LINES)):
        raise ConfigError('name', self.config.name, f'{path} is neither Parquet nor JSON lines: name another '
                          'configuration, or convert it and name the files by Parquet(path) or Jsonl(path)')
    return files

  @functools.cached_property
  def _newest(self) -> hub.HubName:
    name = self.config.hub_name
    return hub.HubName(name.kind, name.name, hub.commit_of(name))

  def records(self, files: Files) -> Iterable[Record]:
    is_parquet = lambda item: item[0].endswith('.parquet')
    for has_columns, group in itertools.groupby(files.items(), is_parquet):
      found: dict[str, pathlib.Path] = dict(group)
      if has_columns:
        yield from formats.parquet(found, self.config.column)
      else:
        yield from formats.jsonl(found, functools.partial(formats.text_of_json, field=self.config.column))

  def selects(self) -> dict[str, Any]:
    """The files say which rows there are, wherever they are from."""
    return {'column': self.config.column}
