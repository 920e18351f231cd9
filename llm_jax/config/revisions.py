"""Data that an earlier stage of the run makes by criticising and revising its own answers."""
import dataclasses
import math
from typing import ClassVar

from llm_jax.config.errors import require
from llm_jax.config.fields import Sequences, Tokens
from llm_jax.config.prompt_sources import PromptSource

__all__ = ['Principle', 'Revisions']


@dataclasses.dataclass(frozen=True)
class Principle:
  """One principle of a constitution: what is said to the model behind its answer (Bai et al. 2022, section 3.1).

  revision: asks for a revision of the answer.
  critique: asks for a critique of the answer before; None: it is revised without one (section 3.5).
  """
  revision: str
  critique: str | None = None

  def __post_init__(self):
    require(bool(self.revision.strip()), 'revision', self.revision, 'write what asks for a revision')
    require(self.critique is None or bool(self.critique.strip()), 'critique', self.critique,
            'write what asks for a critique, or None')


@dataclasses.dataclass(frozen=True)
class Revisions:
  """Answers of an earlier stage to prompts, which it criticises and revises, several times in turn, each time by a
  principle that is drawn anew (Bai et al. 2022, Constitutional AI, section 3.1). Sources that name equal revisions read
  the same.

  stage: name of the earlier stage, whose last parameters answer, criticise and revise.
  prompts: what is asked; prompts that are held out are not.
  principles: of which one is drawn for each revision of each answer.
  revisions: how many times an answer is revised.
  count: prompts that are asked, in an order of their own for every stage; None: each once.
  max_new_tokens: the most tokens of an answer, of a critique and of a revision.
  temperature: divides the logits.
  rows_at_once: answers that are sampled and revised, and safe on disk, at a time.
  """
  stage: str
  prompts: PromptSource
  principles: tuple[Principle, ...]
  revisions: int = 4
  count: int | None = None
  max_new_tokens: Tokens = 128
  temperature: float = 1.0
  rows_at_once: Sequences = 256
  answers: ClassVar[int] = 1  # to each prompt

  def __post_init__(self):
    require(len(self.principles) > 0, 'principles', self.principles, 'name at least one Principle(revision=...)')
    for field in ('revisions', 'max_new_tokens', 'rows_at_once'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
    require(self.count is None or self.count >= 1, 'count', self.count, 'use 1 or more, or None for all prompts')
    require(1e-3 <= self.temperature < math.inf, 'temperature', self.temperature, 'use a finite number from 0.001 on')

  @property
  def template(self) -> str | None:
    """The chat template of its prompts and answers; None where they are texts that a model goes on with."""
    return self.prompts.chat_template
