"""Data that an earlier stage of the run makes: its answers to prompts, sampled and scored when the stage that learns
from them begins, and written into the run's folder as the rows that other sources read.
"""
import dataclasses
import math
from typing import Any, ClassVar

from llm_jax.config.errors import require
from llm_jax.config.fields import Sequences, Tokens
from llm_jax.config.prompt_sources import PromptSource
from llm_jax.config.revisions import Revisions
from llm_jax.config.rewards import JudgePreference, Reward, Rewarded
from llm_jax.config.rows import PAIRS, RowKind
from llm_jax.config.source import SourceConfig

__all__ = ['BestOf', 'JudgedPairs', 'RankedPairs', 'RevisedAnswers', 'Samples']

PAIRS_OF = ('best_and_worst', 'all')
KEEP = ('all', 'last')
SOFT_LABEL = 'soft_label'  # the entry of a judged pair


@dataclasses.dataclass(frozen=True)
class Samples(Rewarded):
  """Answers of an earlier stage to prompts, and their rewards. They are sampled once: sources that name equal samples
  read the same.

  stage: name of the earlier stage, whose last parameters answer, or their moving average where it kept one.
  prompts: what is asked; prompts that are held out are not.
  rewards: what scores an answer. Its reward is the weighted sum.
  answers: sampled to every prompt.
  count: prompts that are asked, in an order of their own for every stage; None: each once.
  max_new_tokens: the most tokens of an answer.
  temperature: divides the logits.
  rows_at_once: answers that are sampled, and safe on disk, at a time.
  """
  stage: str
  prompts: PromptSource
  rewards: tuple[Reward, ...]
  answers: int = 8
  count: int | None = None
  max_new_tokens: Tokens = 128
  temperature: float = 1.0
  rows_at_once: Sequences = 256

  def __post_init__(self):
    require(len(self.rewards) > 0, 'rewards', self.rewards, 'name at least one, such as Exact()')
    require(self.answers >= 2, 'answers', self.answers, 'the best is chosen among several: use 2 or more')
    require(self.count is None or self.count >= 1, 'count', self.count, 'use 1 or more, or None for all prompts')
    require(self.max_new_tokens >= 1, 'max_new_tokens', self.max_new_tokens, 'use 1 or more')
    require(1e-3 <= self.temperature < math.inf, 'temperature', self.temperature,
            'use a finite number of 0.001 or more: without chance all answers to a prompt are the same')
    require(self.rows_at_once >= self.answers, 'rows_at_once', self.rows_at_once,
            f'answers to one prompt are sampled together: use answers={self.answers} or more')

  @property
  def template(self) -> str | None:
    """The chat template of its prompts and answers; None where they are texts that a model goes on with."""
    return self.prompts.chat_template

  def lengths(self, seq_len: int) -> tuple[int, ...]:
    """What rows are padded to where a reward model reads them."""
    return (seq_len,)


class SampledSource(SourceConfig):
  """What is chosen of samples.   samples: the answers."""
  samples: Any  # Samples or Revisions

  @property
  def chat_template(self) -> str | None:
    return self.samples.template

  @property
  def file_name(self) -> str:
    """Of the rows, beside the samples; no two that differ have the same. Its first word names them to people."""
    raise NotImplementedError

  @property
  def remedy(self) -> str:
    """What to do where nothing is chosen."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class BestOf(SampledSource):
  """Rejection sampling: the best of several answers of an earlier stage to every prompt, as a conversation to learn
  (Touvron et al. 2023, Llama 2, section 3.2.3; Dong et al. 2023, RAFT, algorithm 1).

  An answer that was cut off, or says nothing, is not chosen: it would be learnt to end there. Of several that are best
  it is the first.

  samples: the answers that are chosen from.
  at_least: the least reward of an answer that is learnt; prompts whose best has less are left out. None: all are kept.
  """
  samples: Samples
  at_least: float | None = None
  val_fraction: float = 0.0
  implementation: ClassVar[str] = 'llm_jax.data.sources.sampled:SampledReader'

  @property
  def file_name(self) -> str:
    return 'best_of' if self.at_least is None else f'best_of.{self.at_least!r}'

  @property
  def remedy(self) -> str:
    return ('none ends by itself and says something' if self.at_least is None else
            f'none has at_least={self.at_least}: lower it') + ', or sample more of them'


@dataclasses.dataclass(frozen=True)
class RankedPairs(SampledSource):
  """Pairs of answers of an earlier stage to a prompt, of which the one with the higher reward is chosen: for a reward
  model, DPO and its kin.

  Answers that were cut off or say nothing are left out, and so are equal ones.

  samples: the answers that are ranked.
  pairs: 'best_and_worst' of each prompt, or 'all' that differ in their reward (InstructGPT, section 3.4).
  least_gap: how much more reward the chosen answer has at least, beside having more.
  demonstration: name of the entry of a prompt's row that has a good answer; None: there is none. It is chosen before
    every answer that differs from it, however that was rewarded, and answers are not compared with each other.
  mask_formatting: as `Preferences` has it.
  """
  samples: Samples
  pairs: str = 'best_and_worst'
  least_gap: float = 0.0
  demonstration: str | None = None
  mask_formatting: bool = True
  val_fraction: float = 0.0
  implementation: ClassVar[str] = 'llm_jax.data.sources.sampled:SampledReader'
  rows: ClassVar[RowKind] = PAIRS

  def __post_init__(self):
    require(self.pairs in PAIRS_OF, 'pairs', self.pairs, f'use one of {PAIRS_OF}')
    require(self.least_gap >= 0, 'least_gap', self.least_gap, 'use 0 or more')

  @property
  def file_name(self) -> str:
    gap = f'.{self.least_gap!r}' if self.least_gap else ''
    demonstration = '' if self.demonstration is None else f'.{self.demonstration}'
    return f'pairs.{self.pairs}{gap}{demonstration}'

  @property
  def remedy(self) -> str:
    return 'no two of a prompt differ in their rewards enough: lower least_gap, or sample more of them'


@dataclasses.dataclass(frozen=True)
class JudgedPairs(SampledSource):
  """Pairs of two answers of an earlier stage to a prompt, and how probable a language model finds it that the chosen
  one is better: a soft label, for a reward model or DPO (Bai et al. 2022, Constitutional AI, section 4.1).

  Answers that were cut off or say nothing are left out, and so are equal ones.

  samples: two answers to each prompt, whose one reward is JudgePreference.
  mask_formatting: as `Preferences` has it.
  """
  samples: Samples
  mask_formatting: bool = True
  val_fraction: float = 0.0
  implementation: ClassVar[str] = 'llm_jax.data.sources.sampled:SampledReader'
  rows: ClassVar[RowKind] = PAIRS

  def __post_init__(self):
    first, *others = self.samples.rewards
    is_label = isinstance(first, JudgePreference) and first.against is None and first.weight == 1 and not others
    require(is_label, 'samples.rewards', self.samples.rewards,
            'the probability that the one answer is better is the label: use JudgePreference(judge) alone')
    require(self.samples.answers == 2, 'samples.answers', self.samples.answers, 'the judge compares two: use 2')

  @property
  def has_soft_labels(self) -> bool:
    return True

  @property
  def file_name(self) -> str:
    return 'judged_pairs'

  @property
  def remedy(self) -> str:
    return 'no two of a prompt end by themselves and differ: sample more of them'


@dataclasses.dataclass(frozen=True)
class RevisedAnswers(SampledSource):
  """Prompts with the revisions of an earlier stage's answers, as conversations to learn (Bai et al. 2022, section
  3.1).

  A revision that was cut off, or says nothing, or whose critique did, is left out.

  samples: the revisions.
  keep: 'all' revisions of an answer, or the 'last' one.
  """
  samples: Revisions
  keep: str = 'all'
  val_fraction: float = 0.0
  implementation: ClassVar[str] = 'llm_jax.data.sources.sampled:SampledReader'

  def __post_init__(self):
    require(self.keep in KEEP, 'keep', self.keep, f'use one of {KEEP}')

  @property
  def file_name(self) -> str:
    return f'revised_{self.keep}'

  @property
  def remedy(self) -> str:
    return 'no revision ends by itself and says something: raise max_new_tokens, or ask otherwise'
