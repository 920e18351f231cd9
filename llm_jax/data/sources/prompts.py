"""Readers of prompts, and of the made-up task of sorting digits."""
import dataclasses
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.config.prompt_sources import DigitTexts, Prompts, SortedDigits, StandardLibraryPrompts
from llm_jax.data import fingerprints
from llm_jax.data.packing.rows import Encoded
from llm_jax.data.packing.text import TextEncoder
from llm_jax.data.sources import formats, standard_library
from llm_jax.data.sources.dialogues import LibraryReader, field, read_prompt, read_tools
from llm_jax.data.sources.documents import JSONL, Config, DocumentSource, Reader, Record
from llm_jax.data.sources.formats import Files
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer, opened
from llm_jax.data.tokenizers.jinja_template import Tools


@dataclasses.dataclass(frozen=True)
class RawPrompt:
  """A prompt as it is read.

  messages: what a chat template writes, or a text that the model goes on with.
  columns: what else its row has.
  """
  messages: list[chat_templates.Message] | str
  columns: dict[str, Any]

  @property
  def tools(self) -> Tools:
    """Descriptions of functions, for a model's own chat template."""
    return read_tools(self.columns, 'prompt')

  @property
  def text(self) -> str:
    """What the user says last, or the text."""
    return self.messages if isinstance(self.messages, str) else self.messages[-1]['content']

  def __len__(self) -> int:
    return len(self.text)


@dataclasses.dataclass(frozen=True)
class PromptEncoder:
  """Writes prompts as ids.   template: a chat template, or None: prompts are texts to go on with."""
  template: str | None
  is_divisible = False
  has_text = False

  def ids(self, prompt: RawPrompt, tokenizer: Tokenizer) -> list[int]:
    """Up to where the answer begins."""
    if isinstance(prompt.messages, str):
      return opened(tokenizer, tokenizer.encode(prompt.messages))
    assert self.template is not None
    return chat_templates.prompt_ids(prompt.messages, self.template, tokenizer, prompt.tools).tolist()

  def stop_tokens(self, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer."""
    return (tokenizer.eot,) if self.template is None else chat_templates.end_of_turn(self.template, tokenizer)

  def answer_ids(self, messages: list[chat_templates.Message] | str, answer: str, tokenizer: Tokenizer
                 ) -> tuple[int, ...]:
    """An answer to a prompt, with what ends it."""
    if isinstance(messages, str):
      return (*tokenizer.encode(answer), tokenizer.eot)
    assert self.template is not None
    dialogue = [*messages, {'role': 'assistant', 'content': answer}]
    ids, counts = chat_templates.render(dialogue, self.template, tokenizer, start=len(messages))
    return tuple(ids[counts].tolist())

  def end(self, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that stand behind the end of an answer that is the last."""
    return () if self.template is None else chat_templates.after_turn(self.template, tokenizer)


class PromptsReader(Reader[Prompts]):
  suffixes = JSONL

  def encoder(self) -> PromptEncoder:
    return PromptEncoder(self.config.template)

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, functools.partial(read_row, source=self.config))


class StandardLibraryPromptsReader(LibraryReader[StandardLibraryPrompts]):

  def encoder(self) -> PromptEncoder:
    return PromptEncoder(self.config.template)

  def records(self, files: Files) -> Iterable[Record]:
    for name, (question, answer) in standard_library.conversations(files):
      yield name, functools.partial(RawPrompt, [question], {'answer': answer['content']})


def read_row(line: bytes, where: str, source: Prompts) -> RawPrompt:
  """One line of JSONL. Raises ConfigError naming the row."""
  row = formats.json_object(line, where)
  found = field(row, source.field, where)
  columns = {name: value for name, value in row.items() if name != source.field}
  if source.template is not None:
    return RawPrompt(read_prompt({**row, 'prompt': found}, where, source.template), columns)
  if not isinstance(found, str) or not found:
    raise formats.bad(where, f'{source.field} is no text', 'without a template give the text to go on with')
  formats.check_unicode(found, where)
  return RawPrompt(found, columns)


# ---------------------------------------------------------------------------------------------- sorting digits
class DigitsReader(Reader[Config]):
  """Documents are made, not read: from random digits, the same ones at every call."""

  def open(self, cache_dir: Any = None) -> DocumentSource:
    config: Any = self.config
    kind = type(config).__name__
    return DocumentSource(
      kind=kind, fingerprint=fingerprints.of({'kind': kind, **self.selects()}), files={},
      val_fraction=config.val_fraction, encoder=self.encoder(), records=lambda: self.records({}),
      changed=lambda: False, changed_files=lambda: [], num_bytes=config.count * (2 * config.digits + 1))

  def records(self, files: Files) -> Iterator[Record]:
    config: Any = self.config
    for digits in random_digits(config.digits, config.count):
      yield digits, self.read_of(digits)

  def read_of(self, digits: str) -> Callable[[], Any]:
    """What makes the document of these digits."""
    raise NotImplementedError


class SortedDigitsReader(DigitsReader[SortedDigits]):

  def encoder(self) -> PromptEncoder:
    return PromptEncoder(None)

  def read_of(self, digits: str) -> Callable[[], RawPrompt]:
    return lambda: RawPrompt(f'{digits}>', {'answer': ''.join(sorted(digits))})


class DigitTextEncoder(TextEncoder):
  """Only what stands behind the '>' is learnt, and that the text ends there."""
  has_counts = True
  is_divisible = False

  @property
  def versions(self) -> dict[str, int]:
    return {'digits': 1}

  def encode(self, documents: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for text in documents:
      prompt, _, answer = text.partition('>')
      given, learnt = tokenizer.encode(f'{prompt}>'), tokenizer.encode(answer)
      ids = np.array([*tokenizer.begin, *given, *learnt, *tokenizer.end])
      counts = np.arange(len(ids)) >= len(tokenizer.begin) + len(given)
      yield Encoded((ids,), len(answer), counts.astype(np.uint8))

  def learnt_bytes(self, document: str, tokenizer: Tokenizer) -> Iterator[bytes]:
    yield document.partition('>')[2].encode()


class DigitTextsReader(DigitsReader[DigitTexts]):

  def encoder(self) -> DigitTextEncoder:
    return DigitTextEncoder()

  def read_of(self, digits: str) -> Callable[[], str]:
    return lambda: f'{digits}>{answer_in_text(digits)}'


def random_digits(length: int, count: int) -> Iterator[str]:
  """So many numbers of `length` digits, each once; a longer list begins with the shorter one."""
  rng = random.Random(length)
  seen: set[str] = set()
  while len(seen) < count:
    digits = ''.join(rng.choices('0123456789', k=length))
    if digits not in seen:
      seen.add(digits)
      yield digits


def answer_in_text(digits: str) -> str:
  """What stands behind these digits in a text: themselves, their reverse or their order, by their hash."""
  place = fingerprints.unit_interval(f'answer to {digits}')
  if place < 0.5:
    return digits
  return digits[::-1] if place < 0.8 else ''.join(sorted(digits))
