"""The kinds of source: text, token files, dialogues, needles and texts with classes.

`val_fraction` is the fraction set aside for evaluation: by hash of the document's key, or, where a source is one single
document, its tail.
"""
import dataclasses
from typing import ClassVar

from llm_jax.config.errors import require
from llm_jax.config.fields import Safe

__all__ = [
  'ArrayRecord', 'Chats', 'Conversations', 'Dialogues', 'Jsonl', 'Labelled', 'LabelledJsonl', 'NeedleTexts', 'Pairs',
  'Parquet', 'Plain', 'Preferences', 'Source', 'StandardLibrary', 'StandardLibraryChats', 'StandardLibraryFunctions',
  'StandardLibraryPreferences', 'Text', 'TokenFile',
]

TEMPLATES = ('plain', 'chatml', 'llama2', 'llama3')


@dataclasses.dataclass(frozen=True)
class StandardLibrary:
  """Source code of the running interpreter's standard library, tests excluded: about 10 MB, always at hand."""
  val_fraction: float = 0.05


@dataclasses.dataclass(frozen=True)
class Text:
  """`.txt` files: a path, a folder or a glob; each file is one document."""
  path: Safe[str]
  val_fraction: float = 0.1


@dataclasses.dataclass(frozen=True)
class Jsonl:
  """One JSON object a line (optionally .gz), the text under `field`. on_error: 'fail' or 'skip' (counted)."""
  path: Safe[str]
  field: str = 'text'
  val_fraction: float = 0.01
  on_error: str = 'fail'

  def __post_init__(self):
    require(self.on_error in ('fail', 'skip'), 'on_error', self.on_error, "use 'fail' or 'skip'")


@dataclasses.dataclass(frozen=True)
class Parquet:
  """Parquet files, the text in column `field`."""
  path: Safe[str]
  field: str = 'text'
  val_fraction: float = 0.01


@dataclasses.dataclass(frozen=True)
class ArrayRecord:
  """ArrayRecord files whose records are UTF-8 text."""
  path: Safe[str]
  val_fraction: float = 0.01


@dataclasses.dataclass(frozen=True)
class TokenFile:
  """A raw memmap of token ids ('uint16' or 'uint32'), documents ended by `separator` (None: one document)."""
  path: Safe[str]
  dtype: str = 'uint16'
  separator: int | None = None
  val_fraction: float = 0.01

  def __post_init__(self):
    require(self.dtype in ('uint16', 'uint32'), 'dtype', self.dtype, "use 'uint16' or 'uint32'")
    require(self.separator is None or self.separator >= 0, 'separator', self.separator,
            'use the id that ends a document, or None')


@dataclasses.dataclass(frozen=True)
class Conversations:
  """JSON lines (optionally .gz) with a list of {"role", "content"} under `field`, written out by a chat template. Only
  what the assistant says is a target, the end of its turn included."""
  path: Safe[str]
  template: str = 'chatml'
  field: str = 'messages'
  val_fraction: float = 0.01

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


@dataclasses.dataclass(frozen=True)
class Preferences:
  """JSON lines (optionally .gz) of two answers to the same: {"prompt", "chosen", "rejected"}, each a text or a list of
  {"role", "content"}, written out by a chat template.

  mask_formatting: the end of turn is no target in either answer (Dubey et al. 2024, Llama 3, section 4.1.4).
  """
  path: Safe[str]
  template: str = 'chatml'
  mask_formatting: bool = True
  val_fraction: float = 0.01

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


@dataclasses.dataclass(frozen=True)
class StandardLibraryChats:
  """Conversations from the running interpreter's standard library: the signature of a short function and what it does,
  and as the answer its body, fenced as Python. A file's functions are held out where `StandardLibrary` with the same
  `val_fraction` holds out the file."""
  template: str = 'chatml'
  val_fraction: float = 0.05

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


@dataclasses.dataclass(frozen=True)
class StandardLibraryPreferences:
  """The questions of `StandardLibraryChats` with two answers: the function's body, and the same spoilt, or another's.

  mask_formatting: as `Preferences` has it.
  """
  template: str = 'chatml'
  mask_formatting: bool = True
  val_fraction: float = 0.05

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


Plain = StandardLibrary | Text | Jsonl | Parquet | ArrayRecord | TokenFile


@dataclasses.dataclass(frozen=True)
class NeedleTexts:
  """Facts planted in the text of `haystack` and asked for at its end, a row as long as the stage's sequence length.
  Only the answers are targets. Rows are made as they are read; held out there are none (`Needles` asks about the
  haystack's).

  spacing: a row has from one fact to one every `spacing` tokens, 16 at most.
  """
  haystack: Plain = StandardLibrary()
  spacing: int = 32
  val_fraction: ClassVar[float] = 0.0

  def __post_init__(self):
    require(self.spacing > 0, 'spacing', self.spacing, 'use 1 token or more')


@dataclasses.dataclass(frozen=True)
class LabelledJsonl:
  """JSON lines (optionally .gz) of a text and its class, {"text", "label"}, or of two texts and theirs (premise and
  hypothesis), {"text", "pair", "label"} with pair='pair'; for `Classification`.

  labels: names of the classes. A row has one of them, or a whole number that reads as one.
  text, pair, label: the fields; pair=None: a row has one text.
  special_tokens: those before the text, between two texts, and behind, where the class is read (Radford et al. 2018,
    GPT-1, section 3.3: start, delimiter, extract); '' is the tokenizer's end of text.
  As many whole texts as fit share a row of the stage's sequence length, whatever `packing` says; longer ones lose
  their ends.
  """
  path: Safe[str]
  labels: tuple[str, ...]
  text: str = 'text'
  pair: str | None = None
  label: str = 'label'
  special_tokens: tuple[str, ...] = ('', '', '')
  val_fraction: float = 0.1

  def __post_init__(self):
    _check_labelled(self.labels, self.special_tokens)


@dataclasses.dataclass(frozen=True)
class StandardLibraryFunctions:
  """Functions of the running interpreter's standard library; the class is the package that one is from, of those that
  `labels` names. A file's functions are held out where `StandardLibrary` with the same `val_fraction` holds out the
  file.

  special_tokens: as `LabelledJsonl` has it.
  """
  labels: tuple[str, ...] = ('asyncio', 'email', 'importlib', 'multiprocessing', 'unittest', 'xml')
  special_tokens: tuple[str, ...] = ('', '', '')
  val_fraction: float = 0.05

  def __post_init__(self):
    _check_labelled(self.labels, self.special_tokens)


def _check_labelled(labels: tuple[str, ...], special_tokens: tuple[str, ...]) -> None:
  require(len(labels) >= 2, 'labels', labels, 'name two classes or more')
  twice = tuple(label for i, label in enumerate(labels) if label in labels[:i])
  require(not twice, 'labels', twice, 'named twice')
  require(len(special_tokens) == 3, 'special_tokens', special_tokens, 'name three: before a text, between two, behind')


Chats = Conversations | StandardLibraryChats
Pairs = Preferences | StandardLibraryPreferences
Dialogues = Chats | Pairs  # written out by a template, and only what the assistant says is learnt
Labelled = LabelledJsonl | StandardLibraryFunctions
Source = Plain | NeedleTexts | Dialogues | Labelled
