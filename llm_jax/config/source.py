"""What every source states, whatever it reads."""
from typing import ClassVar

from llm_jax.config.rows import TEXT, RowKind

__all__: list[str] = []  # nothing that an experiment names

NAMED_TEMPLATES = ('plain', 'chatml', 'llama2', 'llama3')
OWN_TEMPLATE = 'model'  # the chat template that an imported model brings along
TEMPLATES = (*NAMED_TEMPLATES, OWN_TEMPLATE)


class SourceConfig:
  """What every source states beside its own fields.

  implementation: the class that reads it, 'package.module:Class'.
  rows: the kind of rows that its documents become.

  Fields that most of them have:

  path: a file, a folder or a glob.
  field: the name under which a row has its text or messages.
  val_fraction: fraction of the documents that is set aside for evaluation.
  """
  implementation: ClassVar[str]
  rows: ClassVar[RowKind] = TEXT

  @property
  def chat_template(self) -> str | None:
    """What writes out its dialogues; None where its documents are none."""
    return None

  @property
  def sequences(self) -> int:
    """Token sequences of the stage's `seq_len` in one row."""
    return self.rows.sequences

  @property
  def classes(self) -> tuple[str, ...] | None:
    """Names of the classes of its texts; None where they have none."""
    return None

  @property
  def has_margins(self) -> bool:
    """Whether its rows say how much better one of two answers is."""
    return False

  @property
  def has_soft_labels(self) -> bool:
    """Whether its rows say how probable it is that one of two answers is better."""
    return False
