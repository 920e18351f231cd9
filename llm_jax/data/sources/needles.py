"""The reader of needle texts: of their haystack, in which the rows plant facts."""
import dataclasses
import os
from collections.abc import Iterable

from llm_jax.config.implementation import load
from llm_jax.config.sources import NeedleTexts
from llm_jax.data.packing.needles import NeedleEncoder
from llm_jax.data.sources.documents import DocumentSource, Reader, Record
from llm_jax.data.sources.formats import Files


class NeedleTextsReader(Reader[NeedleTexts]):
  """The source is its haystack's own in all but the rows that are made of it: both share one token store."""

  def __init__(self, config: NeedleTexts):
    super().__init__(config)
    self.haystack: Reader = load(config.haystack)(config.haystack)

  def encoder(self) -> NeedleEncoder:
    return NeedleEncoder(self.haystack.encoder(), self.config.spacing)

  def records(self, files: Files) -> Iterable[Record]:
    return self.haystack.records(files)

  def open(self, cache_dir: str | os.PathLike | None = None) -> DocumentSource:
    haystack = self.haystack.open(cache_dir)
    kind = f'{type(self.config).__name__} spacing={self.config.spacing} in {haystack.kind}'
    return dataclasses.replace(haystack, kind=kind, encoder=self.encoder())
