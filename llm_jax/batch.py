"""What flows from data to objectives: typed pytrees, never string keys."""
from typing import Any

import flax.struct

Array = Any  # np.ndarray on the host, jax.Array on the devices, jax.ShapeDtypeStruct where only shapes matter


@flax.struct.dataclass
class LanguageModelBatch:
  """Packed sequences for next-token prediction. Every field is [batch, time], `sources` [batch].

  `segment_ids` numbers the documents of a row from 1 (0 is padding): attention stays inside a segment.
  `positions` restart at 0 with every segment. `weights` is 1 where `targets` counts and 0 on padding and
  where the target belongs to the next document. `sources` says which source of a mixture of several each row is from.
  `teacher_ids` are ids that a teacher has drawn for each target, [batch, time, ids].
  """
  tokens: Array       # int32
  targets: Array      # int32
  weights: Array      # float32
  positions: Array    # int32
  segment_ids: Array  # int32
  sources: Array | None = None  # int32
  teacher_ids: Array | None = None  # int32


@flax.struct.dataclass
class PreferenceBatch:
  """Pairs of answers to the same prompt. Row i of `chosen` and of `rejected` are one pair.

  Every row is one document, prompt and answer, from position 0 on, then padding; `weights` is 1 where the target is a
  token of the answer that counts, so that a row's log-probability is the weighted sum over its targets. `margins` says
  how much better each chosen answer is, where the data tells, and `soft_labels` how probable it is that it is better.
  `sources` as LanguageModelBatch has it; its sides have none.
  """
  chosen: LanguageModelBatch
  rejected: LanguageModelBatch
  margins: Array | None = None      # float32 [batch]
  sources: Array | None = None      # int32
  soft_labels: Array | None = None  # float32 [batch]


@flax.struct.dataclass
class RankedBatch:
  """Several answers to the same prompt, of which it is known which are better. Row i of each of `answers` is one to
  prompt i; rows are as those of PreferenceBatch.

  `ranks` is 1 for the best answers, the larger the worse, and 0 where a prompt has fewer answers; those of one rank are
  not compared. `sources` as LanguageModelBatch has it; `answers` have none.
  """
  answers: tuple[LanguageModelBatch, ...]
  ranks: tuple[Array, ...]      # int32 [batch], of each of the answers
  sources: Array | None = None  # int32


@flax.struct.dataclass
class LabelledBatch:
  """Packed texts, each a document with a class.

  `labels` is the class at the last token of each text, the one it is read from, and -1 everywhere else. `text.weights`
  is 1 / n at each of the n targets of a text: the weighted sum is a sum over texts of means over their targets.
  `sources` as LanguageModelBatch has it; `text` has none.
  """
  text: LanguageModelBatch
  labels: Array  # int32 [batch, time]
  sources: Array | None = None  # int32 [batch]


@flax.struct.dataclass
class RatedBatch:
  """Answers and whether they are desirable. Rows of `answer` and of `mismatched` are as those of PreferenceBatch.

  Row i of `mismatched` is the prompt of row i with the answer to another one. A row of padding has no targets.
  `sources` as LanguageModelBatch has it; its sides have none.
  """
  answer: LanguageModelBatch
  mismatched: LanguageModelBatch
  is_desirable: Array           # int32 [batch], 1 or 0
  sources: Array | None = None  # int32 [batch]


@flax.struct.dataclass
class RolloutBatch:
  """Answers that the model has sampled itself, several to a row, packed as in LanguageModelBatch: each is a segment of
  prompt and answer.

  `text.weights` is what a target's loss is multiplied by: 1, or less where answers count alike whatever their length.
  Log-probabilities are of the targets, under softmax(logits / temperature), and 0 where no target is of the answer.
  `pretraining` is text that is learnt beside them. Its weights are such that the sum of its weighted losses, divided
  by what the loss of the step's answers is divided by, is the weighted mean over its own targets.
  """
  text: LanguageModelBatch
  advantages: Array                        # float32 [batch, time]
  old_log_probs: Array | None = None       # float32 [batch, time], when they were sampled; None: by these parameters
  reference_log_probs: Array | None = None # float32 [batch, time]
  values: Array | None = None              # float32 [batch, time], what a critic foresaw before each target
  returns: Array | None = None             # float32 [batch, time], what it is to foresee
  pretraining: LanguageModelBatch | None = None  # of any number of rows


Batch = LanguageModelBatch | PreferenceBatch | RankedBatch | LabelledBatch | RatedBatch | RolloutBatch
