"""The reader of questions to learn from, with the passages that are found for them in the prompt."""
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.sources import RetrievedAnswers
from llm_jax.data.packing.chats import ChatEncoder, Dialogue
from llm_jax.data.sources import formats
from llm_jax.data.sources.dialogues import answered, field
from llm_jax.data.sources.documents import JSONL, Reader, Record
from llm_jax.data.sources.formats import Files
from llm_jax.retrieve.bm25 import BM25
from llm_jax.retrieve.index import Index, load
from llm_jax.retrieve.prompt import behind_passages


class RetrievedAnswersReader(Reader[RetrievedAnswers]):
  """A document is the passages and the question, which the user says, and the answer. Without a template a space stands
  before the answer, as evaluations have it."""
  suffixes = JSONL

  @functools.cached_property
  def index(self) -> Index:
    return load(pathlib.Path(self.config.index))

  @functools.cached_property
  def bm25(self) -> BM25:
    return BM25(self.index.texts)

  def encoder(self) -> ChatEncoder:
    return ChatEncoder(self.config.template)

  def selects(self) -> dict[str, Any]:
    """Other passages make other rows; where the folder of the index is decides nothing."""
    fields = super().selects()
    del fields['index']
    return {**fields, 'passages': self.index.fingerprint}

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, self._read)

  def _read(self, line: bytes, where: str) -> Dialogue:
    """One line of JSONL. Raises ConfigError naming the row."""
    row = formats.json_object(line, where)
    question, answer = (field(row, name, where) for name in (self.config.question, self.config.answer))
    for name, value in ((self.config.question, question), (self.config.answer, answer)):
      require(isinstance(value, str), where, f'{name} is a {type(value).__name__}', 'give a text')
    found = self.bm25.search(question, self.config.count)
    prompt = behind_passages([self.index.passages[place].text for place in found], question)
    if self.config.template is None:
      answer = f' {answer}'
    messages = [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': answer}]
    return answered(Dialogue(messages, 1), self.config.template, where, 'prompt')
