"""The kinds of tokenizer; `llm_jax/data/tokenizers/base.py` makes them."""
import dataclasses
import re
from typing import Annotated, ClassVar

from llm_jax.config.errors import require
from llm_jax.config.fields import Safe, Unit
from llm_jax.config.hub_names import HubName, is_hub_name

__all__ = ['BPE', 'Bytes', 'HuggingFaceFile', 'TiktokenFile', 'Tokenizer']

PATTERNS = ('gpt2', 'cl100k', 'llama3')


@dataclasses.dataclass(frozen=True)
class Bytes:
  """256 bytes and one special token, `<|endoftext|>` = 256: a vocabulary of 257."""
  vocab_size: ClassVar[int] = 257


@dataclasses.dataclass(frozen=True)
class BPE:
  """Byte-level BPE trained on the first stage's training text, then kept in the workdir.

  vocab_size: the 256 bytes, the merges, the end of text, and the names in `special_tokens`, which come last.
  pattern: 'gpt2', 'cl100k' or 'llama3', or a regular expression that matches every character in some place.
  split_digits: whether every digit is a token of its own.
  sample_bytes: bytes of text that it is trained on.
  special_tokens: further special tokens, such as a chat template's: ('<|im_start|>', '<|im_end|>').
  """
  vocab_size: int = 4_096
  pattern: str = 'cl100k'
  split_digits: bool = False
  sample_bytes: Annotated[int, Unit('bytes')] = 20_000_000
  special_tokens: tuple[str, ...] = ()

  def __post_init__(self):
    least = 258 + len(self.special_tokens)
    require(self.vocab_size >= least, 'vocab_size', self.vocab_size,
            f'use {least} or more: bytes, a merge, and {1 + len(self.special_tokens)} special tokens')
    require(self.sample_bytes > 0, 'sample_bytes', self.sample_bytes, 'use 1 or more, such as 20_000_000')
    _check_pattern(self.pattern)


@dataclasses.dataclass(frozen=True)
class TiktokenFile:
  """A tiktoken rank file on disk (GPT-2, cl100k, Llama 3).

  path: the file.
  pattern: 'gpt2', 'cl100k' or 'llama3', or a regular expression that matches every character in some place.
  special_tokens: names of the ids after the ranks, in order; '' leaves one unused (cl100k: ('', '<|endoftext|>')).
  split_digits: whether every digit is a token of its own.
  end_of_text: the one of them that separates documents; None means the first that has a name.
  """
  path: Safe[str]
  pattern: str = 'cl100k'
  special_tokens: tuple[str, ...] = ('<|endoftext|>',)
  split_digits: bool = False
  end_of_text: str | None = None

  def __post_init__(self):
    _check_pattern(self.pattern)


@dataclasses.dataclass(frozen=True)
class HuggingFaceFile:
  """A `tokenizer.json`, with the files that stand beside it in a model's folder, read as `transformers` reads them.

  path: the file, or the name of a model on the hub.
  end_of_text: its special token that ends a document.
  revision: branch, tag or commit on the hub; None: the newest commit when the run begins, which it keeps.
  """
  path: Safe[str]
  end_of_text: str = '<|endoftext|>'
  revision: str | None = None

  @property
  def hub_name(self) -> HubName | None:
    return HubName('model', self.path, self.revision) if is_hub_name(self.path) else None


def _check_pattern(pattern: str) -> None:
  """Refuses a misspelt name: as a regular expression it would match itself alone."""
  require(pattern in PATTERNS or not re.fullmatch(r'[\w-]*', pattern), 'pattern', pattern,
          f'use one of {PATTERNS}, or a regular expression')


Tokenizer = Bytes | BPE | TiktokenFile | HuggingFaceFile
