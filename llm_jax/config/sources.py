"""Where text comes from: `Data.sources` is a tuple of these; `llm_jax/data/sources/` reads them.

To add one, write its class here, name it in `Source`, and write the class that `implementation` names. Prompts are in
`prompt_sources.py`, what an earlier stage answers to them in `samples.py`.

`val_fraction` is the fraction set aside for evaluation: by hash of the document's key, or, where a source is one single
document, its tail.
"""
import dataclasses
from typing import ClassVar

from llm_jax.config.errors import require
from llm_jax.config.fields import Safe
from llm_jax.config.hub_names import HubName
from llm_jax.config.marked_digits import MarkedDigitTexts
from llm_jax.config.prompt_sources import DigitTexts, Prompts, ReasoningGym, SortedDigits, StandardLibraryPrompts
from llm_jax.config.rows import LABELLED, PAIRS, RANKED, RATED, RowKind
from llm_jax.config.samples import BestOf, JudgedPairs, RankedPairs, RevisedAnswers
from llm_jax.config.source import TEMPLATES, SourceConfig

__all__ = [
  'ArrayRecord', 'BestOf', 'Conversations', 'DigitTexts', 'HuggingFaceData', 'JudgedPairs', 'Jsonl', 'LabelledJsonl',
  'MarkedDigitTexts', 'NeedleTexts', 'Parquet', 'Plain', 'Preferences', 'Prompts', 'RankedAnswers', 'RankedPairs',
  'RatedAnswers', 'ReasoningGym', 'RetrievedAnswers', 'RevisedAnswers', 'SortedDigits', 'Source', 'StandardLibrary',
  'StandardLibraryChats', 'StandardLibraryFunctions', 'StandardLibraryPreferences', 'StandardLibraryPrompts',
  'StandardLibraryRatedAnswers', 'Text', 'TokenFile',
]


# ---------------------------------------------------------------------------------------------- text
@dataclasses.dataclass(frozen=True)
class StandardLibrary(SourceConfig):
  """Source code of the running interpreter's standard library, tests excluded: about 10 MB, always at hand."""
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.text:StandardLibraryReader'


@dataclasses.dataclass(frozen=True)
class Text(SourceConfig):
  """`.txt` files: a path, a folder or a glob; each file is one document."""
  path: Safe[str]
  val_fraction: float = 0.1
  implementation: ClassVar[str] = 'llm_jax.data.sources.text:TextReader'


@dataclasses.dataclass(frozen=True)
class Jsonl(SourceConfig):
  """One JSON object a line (optionally .gz or .zst), the text under `field`.

  on_error: what becomes of a bad row, 'fail' or 'skip' (counted).
  """
  path: Safe[str]
  field: str = 'text'
  val_fraction: float = 0.01
  on_error: str = 'fail'
  implementation: ClassVar[str] = 'llm_jax.data.sources.text:JsonlReader'

  def __post_init__(self):
    require(self.on_error in ('fail', 'skip'), 'on_error', self.on_error, "use 'fail' or 'skip'")


@dataclasses.dataclass(frozen=True)
class Parquet(SourceConfig):
  """Parquet files, the text in column `field`."""
  path: Safe[str]
  field: str = 'text'
  val_fraction: float = 0.01
  implementation: ClassVar[str] = 'llm_jax.data.sources.text:ParquetReader'


@dataclasses.dataclass(frozen=True)
class ArrayRecord(SourceConfig):
  """ArrayRecord files whose records are UTF-8 text."""
  path: Safe[str]
  val_fraction: float = 0.01
  implementation: ClassVar[str] = 'llm_jax.data.sources.text:ArrayRecordReader'


@dataclasses.dataclass(frozen=True)
class TokenFile(SourceConfig):
  """A raw memmap of token ids ('uint16' or 'uint32'), documents ended by `separator` (None: one document).

  dtype: of the ids, 'uint16' or 'uint32'.
  separator: the id that ends a document; None: the file is one document.
  """
  path: Safe[str]
  dtype: str = 'uint16'
  separator: int | None = None
  val_fraction: float = 0.01
  implementation: ClassVar[str] = 'llm_jax.data.sources.text:TokenFileReader'

  def __post_init__(self):
    require(self.dtype in ('uint16', 'uint32'), 'dtype', self.dtype, "use 'uint16' or 'uint32'")
    require(self.separator is None or self.separator >= 0, 'separator', self.separator,
            'use the id that ends a document, or None')


@dataclasses.dataclass(frozen=True)
class HuggingFaceData(SourceConfig):
  """A data set of the Hugging Face hub, its Parquet or JSON-lines files; each row is one document.

  name: such as 'HuggingFaceFW/fineweb-edu'.
  config: its configuration, such as 'sample-10BT'; None: its default.
  split: such as 'train'.
  column: the one that holds the text.
  revision: branch, tag or commit; None: the newest commit when the run begins, which it keeps.
  """
  name: str
  config: str | None = None
  split: str = 'train'
  column: str = 'text'
  revision: str | None = None
  val_fraction: float = 0.01
  implementation: ClassVar[str] = 'llm_jax.data.sources.hub:HuggingFaceDataReader'
  packages: ClassVar[tuple[str, ...]] = ('huggingface_hub', 'datasets', 'pyarrow')
  extra: ClassVar[str] = 'hub'

  @property
  def hub_name(self) -> HubName:
    return HubName('dataset', self.name, self.revision)


Plain = StandardLibrary | Text | Jsonl | Parquet | ArrayRecord | TokenFile | HuggingFaceData


@dataclasses.dataclass(frozen=True)
class NeedleTexts(SourceConfig):
  """Facts planted in the text of `haystack` and asked for at its end, a row as long as the stage's sequence length.
  Only the answers are targets. Rows are made as they are read; none is set aside for evaluation (`Needles` plants its
  own in the haystack's validation split).

  haystack: the text that facts are planted in.
  spacing: a row has from one fact to one every `spacing` tokens, 16 at most.
  """
  haystack: Plain = StandardLibrary()
  spacing: int = 32
  val_fraction: ClassVar[float] = 0.0
  implementation: ClassVar[str] = 'llm_jax.data.sources.needles:NeedleTextsReader'

  def __post_init__(self):
    require(self.spacing > 0, 'spacing', self.spacing, 'use 1 token or more')


# ---------------------------------------------------------------------------------------------- dialogues
class DialogueSource(SourceConfig):
  """Documents written out by a chat template; only what the assistant says is a target, the end of its turn included.

  template: 'plain', 'chatml', 'llama2', 'llama3', or 'model': the chat template that an imported model brings along.
    None: contents stand one behind the other, and an answer ends with the end of text.
  """
  template: str | None

  def __post_init__(self):
    require(self.template is None or self.template in TEMPLATES, 'template', self.template,
            f'use one of {TEMPLATES}, or None')

  @property
  def chat_template(self) -> str | None:
    return self.template


@dataclasses.dataclass(frozen=True)
class Conversations(DialogueSource):
  """JSON lines (optionally .gz or .zst) with a list of {"role", "content"} under `field`; "system" beside it is its
  first message. With template='model' a row may have "tools", and messages have whatever the model's chat template
  reads.

  A message of the assistant, or a row, with "weight": 0, "train": false or "trainable": false is not learnt. Any other
  entry that holds something is refused, for nothing would read it.

  ignore: entries of rows and messages that may be left unread, such as ('id', 'source').
  """
  path: Safe[str]
  template: str | None = 'chatml'
  field: str = 'messages'
  val_fraction: float = 0.01
  ignore: tuple[str, ...] = ()
  implementation: ClassVar[str] = 'llm_jax.data.sources.dialogues:ConversationsReader'


@dataclasses.dataclass(frozen=True)
class StandardLibraryChats(DialogueSource):
  """Conversations from the running interpreter's standard library: the signature of a short function and what it does,
  and as the answer its body, fenced as Python. A file's functions are in the validation split where `StandardLibrary`
  with the same `val_fraction` has the file there."""
  template: str | None = 'chatml'
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.dialogues:StandardLibraryChatsReader'


@dataclasses.dataclass(frozen=True)
class Preferences(DialogueSource):
  """JSON lines (optionally .gz or .zst) of two answers to the same: {"prompt", "chosen", "rejected"}, each a text or a
  list of {"role", "content"}.

  mask_formatting: the end of turn is no target in either answer (Dubey et al. 2024, Llama 3, section 4.1.4).
  ignore: entries of rows and messages that may be left unread, such as ('id', 'source'). Others are refused.
  margin: name of the entry that says how much better the chosen answer is, a number from 0 on; None: rows have none.
  soft_label: name of the entry with the probability that the chosen answer is better; None: it is, for certain.
  """
  path: Safe[str]
  template: str | None = 'chatml'
  mask_formatting: bool = True
  val_fraction: float = 0.01
  ignore: tuple[str, ...] = ()
  margin: str | None = None
  soft_label: str | None = None
  implementation: ClassVar[str] = 'llm_jax.data.sources.dialogues:PreferencesReader'
  rows: ClassVar[RowKind] = PAIRS

  @property
  def has_margins(self) -> bool:
    return self.margin is not None

  @property
  def has_soft_labels(self) -> bool:
    return self.soft_label is not None


@dataclasses.dataclass(frozen=True)
class RankedAnswers(DialogueSource):
  """JSON lines (optionally .gz or .zst) of several answers to the same, the best first: {"prompt", "answers": [...]},
  each a text or a list of {"role", "content"}. "ranks" beside them, such as [1, 2, 2], says which are equally good.

  answers: the most that a prompt has; one of fewer is padded.
  ignore: entries of rows and messages that may be left unread, such as ('id', 'source'). Others are refused.
  """
  path: Safe[str]
  answers: int = 4
  template: str | None = 'chatml'
  val_fraction: float = 0.01
  ignore: tuple[str, ...] = ()
  implementation: ClassVar[str] = 'llm_jax.data.sources.dialogues:RankedAnswersReader'
  rows: ClassVar[RowKind] = RANKED

  def __post_init__(self):
    super().__post_init__()
    require(2 <= self.answers <= 64, 'answers', self.answers, 'use 2 to 64')

  @property
  def sequences(self) -> int:
    return self.answers


@dataclasses.dataclass(frozen=True)
class RatedAnswers(DialogueSource):
  """JSON lines (optionally .gz or .zst) of an answer and whether it is desirable, {"prompt", "completion", "label":
  true}; the prompt and the completion are each a text or a list of {"role", "content"}.

  path: file, folder or glob.
  ignore: entries of rows and messages that may be left unread, such as ('id', 'source'). Others are refused.
  """
  path: Safe[str]
  template: str | None = 'chatml'
  val_fraction: float = 0.01
  ignore: tuple[str, ...] = ()
  implementation: ClassVar[str] = 'llm_jax.data.sources.dialogues:RatedAnswersReader'
  rows: ClassVar[RowKind] = RATED


@dataclasses.dataclass(frozen=True)
class RetrievedAnswers(DialogueSource):
  """JSON lines (optionally .gz or .zst) of a question and its answer, {"question", "answer"}. The passages that BM25
  finds for the question stand before it in the prompt, as `launch.evaluate --strategy=retrieval` puts them.

  index: a folder that `launch.retrieve --build` has made.
  count: passages before a question.
  question, answer: the fields.
  """
  path: Safe[str]
  index: Safe[str]
  count: int = 1
  template: str | None = 'chatml'
  question: str = 'question'
  answer: str = 'answer'
  val_fraction: float = 0.01
  implementation: ClassVar[str] = 'llm_jax.retrieve.training:RetrievedAnswersReader'

  def __post_init__(self):
    super().__post_init__()
    require(self.count >= 1, 'count', self.count, 'use 1 passage or more')


@dataclasses.dataclass(frozen=True)
class StandardLibraryPreferences(DialogueSource):
  """The questions of `StandardLibraryChats` with two answers: the function's body, and the same spoilt, or another's.

  mask_formatting: as `Preferences` has it.
  """
  template: str | None = 'chatml'
  mask_formatting: bool = True
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.dialogues:StandardLibraryPreferencesReader'
  rows: ClassVar[RowKind] = PAIRS


@dataclasses.dataclass(frozen=True)
class StandardLibraryRatedAnswers(DialogueSource):
  """The questions of `StandardLibraryChats`, each with one answer: for one half of them the function's body, which is
  desirable, for the other half the worse answer that `StandardLibraryPreferences` rejects."""
  template: str | None = 'chatml'
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.dialogues:StandardLibraryRatedAnswersReader'
  rows: ClassVar[RowKind] = RATED


# ---------------------------------------------------------------------------------------------- texts with classes
class LabelledSource(SourceConfig):
  """Texts with a class.

  labels: names of the classes.
  special_tokens: those before a text, between two texts, and behind, where the class is read (Radford et al. 2018,
    GPT-1, section 3.3: start, delimiter, extract). '' is what stands before a document, and else the end of text.
  """
  labels: tuple[str, ...]
  special_tokens: tuple[str, ...]
  rows: ClassVar[RowKind] = LABELLED

  def __post_init__(self):
    require(len(self.labels) >= 2, 'labels', self.labels, 'name two classes or more')
    repeated = tuple(label for i, label in enumerate(self.labels) if label in self.labels[:i])
    require(not repeated, 'labels', repeated, 'named twice')
    require(len(self.special_tokens) == 3, 'special_tokens', self.special_tokens,
            'name three: before a text, between two, behind')

  @property
  def classes(self) -> tuple[str, ...]:
    return self.labels


@dataclasses.dataclass(frozen=True)
class LabelledJsonl(LabelledSource):
  """JSON lines (optionally .gz or .zst) of a text and its class, {"text", "label"}, or of two texts and theirs (premise
  and hypothesis), {"text", "pair", "label"} with pair='pair'.

  labels: a row has one of them, or a whole number that reads as one.
  text, pair, label: the fields; pair=None: a row has one text.
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
  implementation: ClassVar[str] = 'llm_jax.data.sources.labelled:LabelledJsonlReader'


@dataclasses.dataclass(frozen=True)
class StandardLibraryFunctions(LabelledSource):
  """Functions of the running interpreter's standard library; the class is the package that one is from, of those that
  `labels` names. A file's functions are in the validation split where `StandardLibrary` with the same `val_fraction`
  has the file there."""
  labels: tuple[str, ...] = ('asyncio', 'email', 'importlib', 'multiprocessing', 'unittest', 'xml')
  special_tokens: tuple[str, ...] = ('', '', '')
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.labelled:StandardLibraryFunctionsReader'


Source = (
  Plain | NeedleTexts | Conversations | StandardLibraryChats | Preferences | StandardLibraryPreferences |
  RankedAnswers | RatedAnswers | StandardLibraryRatedAnswers | RetrievedAnswers | LabelledJsonl |
  StandardLibraryFunctions | StandardLibraryPrompts | Prompts | ReasoningGym | SortedDigits | DigitTexts | BestOf |
  RankedPairs | JudgedPairs | RevisedAnswers | MarkedDigitTexts
)
