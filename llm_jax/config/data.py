"""Tokenizers, sources of text, and their mixture."""
import dataclasses
import itertools
import math
import re
from typing import ClassVar

from llm_jax.config.errors import require

TEMPLATES = ('plain', 'chatml', 'llama2', 'llama3')


# ---------------------------------------------------------------------------------------------- tokenizers
@dataclasses.dataclass(frozen=True)
class Bytes:
  """256 bytes and one control token, `<|endoftext|>` = 256: a vocabulary of 257."""


@dataclasses.dataclass(frozen=True)
class BPE:
  """Byte-level BPE trained on the first stage's training text, then kept in the workdir.

  vocab_size counts the 256 bytes, the merges, the end of text and the names in `control`, which come last.
  pattern: 'gpt2', 'cl100k' or 'llama3', or a regular expression.
  control: further control tokens, such as a chat template's: ('<|im_start|>', '<|im_end|>').
  """
  vocab_size: int = 4_096
  pattern: str = 'cl100k'
  split_digits: bool = False
  sample_bytes: int = 20_000_000
  control: tuple[str, ...] = ()

  def __post_init__(self):
    least = 258 + len(self.control)
    require(self.vocab_size >= least, 'vocab_size', self.vocab_size,
            f'use {least} or more: bytes, a merge, and {1 + len(self.control)} control tokens')
    require(self.sample_bytes > 0, 'sample_bytes', self.sample_bytes, 'use 1 or more, such as 20_000_000')


@dataclasses.dataclass(frozen=True)
class TiktokenFile:
  """A tiktoken rank file on disk (GPT-2, cl100k, Llama 3).

  control: names of the ids after the ranks, in order; '' leaves one unused (cl100k: ('', '<|endoftext|>')).
  end_of_text: the one of them that separates documents; None means the first that has a name.
  """
  path: str
  pattern: str = 'cl100k'
  control: tuple[str, ...] = ('<|endoftext|>',)
  split_digits: bool = False
  end_of_text: str | None = None


@dataclasses.dataclass(frozen=True)
class HuggingFaceFile:
  """A `tokenizer.json`. end_of_text: its control token that separates documents."""
  path: str
  end_of_text: str = '<|endoftext|>'


Tokenizer = Bytes | BPE | TiktokenFile | HuggingFaceFile


# ---------------------------------------------------------------------------------------------- sources
# `held_out` is the fraction set aside for evaluation: by hash of the document's key, or, where a source is one single
# document, its tail.
@dataclasses.dataclass(frozen=True)
class StandardLibrary:
  """Source code of the running interpreter's standard library, tests excluded: about 10 MB, always at hand."""
  held_out: float = 0.05


@dataclasses.dataclass(frozen=True)
class Text:
  """`.txt` files: a path, a folder or a glob; each file is one document."""
  path: str
  held_out: float = 0.1


@dataclasses.dataclass(frozen=True)
class Jsonl:
  """One JSON object a line (optionally .gz), the text under `field`. on_error: 'fail' or 'skip' (counted)."""
  path: str
  field: str = 'text'
  held_out: float = 0.01
  on_error: str = 'fail'

  def __post_init__(self):
    require(self.on_error in ('fail', 'skip'), 'on_error', self.on_error, "use 'fail' or 'skip'")


@dataclasses.dataclass(frozen=True)
class Parquet:
  """Parquet files, the text in column `field`."""
  path: str
  field: str = 'text'
  held_out: float = 0.01


@dataclasses.dataclass(frozen=True)
class ArrayRecord:
  """ArrayRecord files whose records are UTF-8 text."""
  path: str
  held_out: float = 0.01


@dataclasses.dataclass(frozen=True)
class TokenFile:
  """A raw memmap of token ids ('uint16' or 'uint32'), documents ended by `separator` (None: one document)."""
  path: str
  dtype: str = 'uint16'
  separator: int | None = None
  held_out: float = 0.01

  def __post_init__(self):
    require(self.dtype in ('uint16', 'uint32'), 'dtype', self.dtype, "use 'uint16' or 'uint32'")
    require(self.separator is None or self.separator >= 0, 'separator', self.separator,
            'use the id that ends a document, or None')


@dataclasses.dataclass(frozen=True)
class Conversations:
  """JSON lines (optionally .gz) with a list of {"role", "content"} under `field`, written out by a chat template. Only
  what the assistant says is a target, the end of its turn included."""
  path: str
  template: str = 'chatml'
  field: str = 'messages'
  held_out: float = 0.01

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


@dataclasses.dataclass(frozen=True)
class Preferences:
  """JSON lines (optionally .gz) of two answers to the same: {"prompt", "chosen", "rejected"}, each a text or a list of
  {"role", "content"}, written out by a chat template.

  mask_formatting: the end of turn is no target in either answer (Dubey et al. 2024, Llama 3, section 4.1.4).
  """
  path: str
  template: str = 'chatml'
  mask_formatting: bool = True
  held_out: float = 0.01

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


@dataclasses.dataclass(frozen=True)
class StandardLibraryChats:
  """Conversations from the running interpreter's standard library: the signature of a short function and what it does,
  and as the answer its body, fenced as Python. A file's functions are held out where `StandardLibrary` with the same
  `held_out` holds out the file."""
  template: str = 'chatml'
  held_out: float = 0.1

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


@dataclasses.dataclass(frozen=True)
class StandardLibraryPreferences:
  """The questions of `StandardLibraryChats` with two answers: the function's body, and the same spoilt, or another's.

  mask_formatting: as `Preferences` has it.
  """
  template: str = 'chatml'
  mask_formatting: bool = True
  held_out: float = 0.1

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')


Plain = StandardLibrary | Text | Jsonl | Parquet | ArrayRecord | TokenFile


@dataclasses.dataclass(frozen=True)
class Needles:
  """Facts planted in the text of `haystack` and asked for at its end, a row as long as the stage's context. Only the
  answers are targets. Rows are made as they are read; held out there are none (`NeedleTest` asks about the haystack's).

  spacing: a row has from one fact to one every `spacing` tokens, 16 at most.
  """
  haystack: Plain = StandardLibrary()
  spacing: int = 32
  held_out: ClassVar[float] = 0.0

  def __post_init__(self):
    require(self.spacing > 0, 'spacing', self.spacing, 'use 1 token or more')


@dataclasses.dataclass(frozen=True)
class LabelledJsonl:
  """JSON lines (optionally .gz) of a text and its class, {"text", "label"}, or of two texts and theirs (premise and
  hypothesis), {"text", "pair", "label"} with pair='pair'; for `Classification`.

  labels: names of the classes. A row has one of them, or a whole number that reads as one.
  text, pair, label: the fields; pair=None: a row has one text.
  marks: control tokens before the text, between two texts, and behind, where the class is read (Radford et al. 2018,
    GPT-1, section 3.3: start, delimiter, extract); '' is the tokenizer's end of text.
  As many whole texts as fit share a row of the stage's context, whatever `packing` says; longer ones lose their ends.
  """
  path: str
  labels: tuple[str, ...]
  text: str = 'text'
  pair: str | None = None
  label: str = 'label'
  marks: tuple[str, ...] = ('', '', '')
  held_out: float = 0.1

  def __post_init__(self):
    _check_labelled(self.labels, self.marks)


@dataclasses.dataclass(frozen=True)
class StandardLibraryFunctions:
  """Functions of the running interpreter's standard library; the class is the package that one is from, of those that
  `labels` names. A file's functions are held out where `StandardLibrary` with the same `held_out` holds out the file.

  marks: as `LabelledJsonl` has it.
  """
  labels: tuple[str, ...] = ('asyncio', 'email', 'importlib', 'multiprocessing', 'unittest', 'xml')
  marks: tuple[str, ...] = ('', '', '')
  held_out: float = 0.1

  def __post_init__(self):
    _check_labelled(self.labels, self.marks)


def _check_labelled(labels: tuple[str, ...], marks: tuple[str, ...]) -> None:
  require(len(labels) >= 2, 'labels', labels, 'name two classes or more')
  twice = tuple(label for i, label in enumerate(labels) if label in labels[:i])
  require(not twice, 'labels', twice, 'named twice')
  require(len(marks) == 3, 'marks', marks, 'name three: before a text, between two, behind')


Chats = Conversations | StandardLibraryChats
Pairs = Preferences | StandardLibraryPreferences
Dialogues = Chats | Pairs  # written out by a template, and only what the assistant says is learnt
Labelled = LabelledJsonl | StandardLibraryFunctions
Source = Plain | Needles | Dialogues | Labelled


Weight = float | tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A source and its share of the mixture.

  weight: a number; or points (share of the stage's steps, weight) with straight lines between them, so that
  ((0, .1), (.5, .1), (1, .9)) takes the source up in the second half of the stage.
  """
  source: Source
  weight: Weight = 1.0

  def __post_init__(self):
    require(0 <= self.source.held_out < 1, 'source.held_out', self.source.held_out, 'use a fraction in [0, 1)')
    if not isinstance(self.weight, tuple):
      require(math.isfinite(self.weight) and self.weight > 0, 'weight', self.weight, 'use a finite weight above 0')
      return
    pairs = len(self.weight) > 0 and all(len(point) == 2 for point in self.weight)
    require(pairs, 'weight', self.weight, 'use points (share of the steps, weight), such as ((0, 1), (1, .5))')
    places = [place for place, _ in self.weight]
    rising = all(a < b for a, b in zip(places, places[1:], strict=False))
    require(rising and 0 <= places[0] and places[-1] <= 1, 'weight', self.weight,
            "points are shares of the stage's steps: let them rise from 0 to 1")
    require(all(0 <= weight < math.inf for _, weight in self.weight) and self.most > 0, 'weight', self.weight,
            'use finite weights of 0 or more, one of them above')

  @property
  def most(self) -> float:
    return max(weight for _, weight in self.weight) if isinstance(self.weight, tuple) else self.weight

  def at(self, progress: float) -> float:
    """The weight at a share of the stage's steps."""
    if not isinstance(self.weight, tuple):
      return self.weight
    after = sum(place <= progress for place, _ in self.weight)
    if after in (0, len(self.weight)):
      return self.weight[min(after, len(self.weight) - 1)][1]
    (x0, y0), (x1, y1) = self.weight[after - 1:after + 1]
    return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)


@dataclasses.dataclass(frozen=True)
class Data:
  """A weighted mixture of sources, packed into rows of the stage's context.

  packing: 'split' concatenates documents and cuts every `context` tokens; 'best_fit' keeps documents whole where they
  fit (Ding et al. 2024) and pads.
  """
  sources: tuple[Weighted, ...]
  packing: str = 'split'

  def __post_init__(self):
    require(len(self.sources) > 0, 'sources', self.sources, 'name at least one source')
    require(self.packing in ('split', 'best_fit'), 'packing', self.packing, "use 'split' or 'best_fit'")
    pairs = [isinstance(part.source, Pairs) for part in self.sources]
    require(all(pairs) or not any(pairs), 'sources', [type(part.source).__name__ for part in self.sources],
            'pairs of answers cannot be mixed with other text: give them a stage of their own')
    templates = list(dict.fromkeys(part.source.template for part in self.sources if isinstance(part.source, Dialogues)))
    require(len(templates) <= 1, 'sources', templates,
            'dialogues of one stage are written out by one chat template: choose one of these for all')
    labels = [getattr(part.source, 'labels', None) for part in self.sources]
    require(len(set(labels)) == 1, 'sources', labels, 'texts with classes are mixed with none but those of the same')
    for place in {place for part in self.sources if isinstance(part.weight, tuple) for place, _ in part.weight}:
      require(sum(part.at(place) for part in self.sources) > 0, 'sources', [part.weight for part in self.sources],
              f'all weights are 0 at {place} of the stage: leave one above')

  @property
  def names(self) -> tuple[str, ...]:
    """Of its sources, no two alike: the first word of the file's or folder's name, else the kind."""
    names: list[str] = []
    for part in self.sources:
      places = getattr(part.source, 'path', '').replace('*', '').split('/')
      words = [re.match(r'[\w-]*', place)[0].strip('_-') for place in reversed(places)]
      name = next(filter(None, words), type(part.source).__name__)
      counted = (f'{name}_{k}' if k > 1 else name for k in itertools.count(1))
      names.append(next(each for each in counted if each not in names))
    return tuple(names)

  @property
  def pairs(self) -> bool:
    """Whether rows are pairs of answers, one pair a row."""
    return isinstance(self.sources[0].source, Pairs)

  @property
  def labels(self) -> tuple[str, ...] | None:
    """The classes of its texts; None where they have none."""
    source = self.sources[0].source
    return source.labels if isinstance(source, Labelled) else None

  @property
  def template(self) -> str | None:
    """The chat template of its conversations or pairs; None where it is all plain text."""
    templates = [part.source.template for part in self.sources if isinstance(part.source, Dialogues)]
    return templates[0] if templates else None
