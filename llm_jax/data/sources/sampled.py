"""What stands in the place of rows that a run makes itself, before they are there."""
from collections.abc import Iterable
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.samples import SampledSource
from llm_jax.data.sources.documents import DocumentSource, Reader, Record
from llm_jax.data.sources.formats import Files


class SampledReader(Reader[SampledSource]):
  """Refuses to be opened: a stage opens the files that its samples were written to, when they are there."""

  def encoder(self) -> Any:
    raise self._refused()

  def records(self, files: Files) -> Iterable[Record]:
    raise self._refused()

  def open(self, cache_dir: Any = None) -> DocumentSource:
    raise self._refused()

  def _refused(self) -> ConfigError:
    return ConfigError('samples.stage', self.config.samples.stage, 'its answers are sampled when the stage that learns '
                       'from them begins: nothing can be read of them before')
