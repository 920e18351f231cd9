"""The reader of questions that the package `reasoning-gym` makes."""
import difflib
import functools
import importlib.metadata
import os
from collections.abc import Iterable
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.sources import ReasoningGym
from llm_jax.data import fingerprints
from llm_jax.data.sources.documents import DocumentSource, Reader, Record
from llm_jax.data.sources.formats import Files
from llm_jax.data.sources.prompts import PromptEncoder, RawPrompt

PACKAGE = 'reasoning-gym'


class ReasoningGymReader(Reader[ReasoningGym]):
  """Documents are made, not read: the same ones at every call, by the same version of the package."""

  def encoder(self) -> PromptEncoder:
    return PromptEncoder(self.config.template)

  def open(self, cache_dir: str | os.PathLike | None = None) -> DocumentSource:
    kind = type(self.config).__name__
    entries = self._entries
    version = importlib.metadata.version(PACKAGE)
    return DocumentSource(
      kind=kind, fingerprint=fingerprints.of({'kind': kind, 'version': version, **self.selects()}), files={},
      val_fraction=self.config.val_fraction, encoder=self.encoder(), records=lambda: self.records({}),
      changed=lambda: False, changed_files=lambda: [], num_bytes=sum(len(entry['question']) for entry in entries))

  def records(self, files: Files) -> Iterable[Record]:
    for number, entry in enumerate(self._entries):
      yield f'{self.config.generator}:{number}', functools.partial(self._prompt, entry)

  @functools.cached_property
  def _entries(self) -> list[dict[str, Any]]:
    """Raises ConfigError for a generator that there is not."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
    config = self.config
    if config.generator not in DATASETS:
      near = difflib.get_close_matches(config.generator, DATASETS, n=3) or sorted(DATASETS)[:5]
      raise ConfigError('generator', config.generator, f'there is none: the nearest are {", ".join(near)}')
    dataset = reasoning_gym.create_dataset(config.generator, size=config.count, seed=config.seed)
    return [dataset[number] for number in range(config.count)]

  def _prompt(self, entry: dict[str, Any]) -> RawPrompt:
    question, columns = entry['question'], {'answer': str(entry['answer'])}
    if self.config.template is None:
      return RawPrompt(question, columns)
    return RawPrompt([{'role': 'user', 'content': question}], columns)
