"""What is learnt from of one rollout, on the host, until all of its steps are done. Saved with a checkpoint."""
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from llm_jax.batch import LanguageModelBatch, RolloutBatch
from llm_jax.rollout.packing import Layout, pack
from llm_jax.rollout.sampling import Answer


@dataclasses.dataclass(frozen=True)
class RolloutBuffer:
  """Answers behind their prompts.

  ids: int32 [answers, seq_len + 1].
  prompt_lengths, lengths: int32 [answers], ids of the prompt, and of prompt and answer.
  order: int32 [replays, answers], in which the answers are learnt from.
  advantages, old_log_probs, reference_log_probs, values, returns: float32 [answers, seq_len], at the place that
    predicts a token of the answer; see `RolloutBatch`.
  own: uint8 [answers, seq_len], 1 at a place that predicts a token which the model has said itself; None: it has said
    all tokens of the answers.
  """
  ids: np.ndarray
  prompt_lengths: np.ndarray
  lengths: np.ndarray
  order: np.ndarray
  advantages: np.ndarray
  old_log_probs: np.ndarray | None = None
  reference_log_probs: np.ndarray | None = None
  values: np.ndarray | None = None
  returns: np.ndarray | None = None
  own: np.ndarray | None = None

  @classmethod
  def of(cls, answers: Sequence[Answer], seq_len: int, order: np.ndarray) -> 'RolloutBuffer':
    """Without advantages and log-probabilities yet."""
    shape = (len(answers), seq_len)
    ids = np.zeros((len(answers), seq_len + 1), np.int32)
    for row, answer in zip(ids, answers, strict=True):
      whole = (*answer.prompt.ids, *answer.ids)
      row[:len(whole)] = whole
    prompt_lengths = np.array([len(answer.prompt.ids) for answer in answers], np.int32)
    lengths = prompt_lengths + np.array([len(answer.ids) for answer in answers], np.int32)
    own = None
    if any(answer.replies for answer in answers):
      own = np.ones(shape, np.uint8)
      for row, answer in zip(own, answers, strict=True):
        first = len(answer.prompt.ids) - 1
        row[first:first + len(answer.ids)] = answer.is_own
    return cls(ids, prompt_lengths, lengths, order.astype(np.int32), np.zeros(shape, np.float32), own=own)

  def arrays(self) -> dict[str, np.ndarray]:
    """By name; `RolloutBuffer(**arrays)` is an equal buffer."""
    named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return {name: array for name, array in named.items() if array is not None}

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> 'RolloutBuffer':
    return cls(**{name: np.asarray(array) for name, array in arrays.items()})

  def is_answer(self, rows: np.ndarray) -> np.ndarray:
    """Which places of these rows predict a token of the answer that the model has said itself, bool [rows, seq_len]."""
    places = np.arange(self.ids.shape[1] - 1)
    first, end = self.prompt_lengths[rows, None] - 1, self.lengths[rows, None] - 1
    is_answer = (places >= first) & (places < end)
    return is_answer if self.own is None else is_answer & (self.own[rows] > 0)

  def text(self, rows: np.ndarray, length: int, weights: np.ndarray) -> LanguageModelBatch:
    """Rows of one answer each, cut to `length`.   weights: float32 [rows, seq_len]."""
    ids = self.ids[rows]
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (len(rows), length))
    segment_ids = (places < self.lengths[rows, None] - 1).astype(np.int32)
    return LanguageModelBatch(ids[:, :length], ids[:, 1:length + 1], weights[:, :length], places, segment_ids)

  def pack(self, rows: np.ndarray) -> Layout:
    """These answers, side by side in rows of seq_len."""
    return pack(rows, self.lengths[rows] - 1, self.ids.shape[1] - 1)

  def packed_text(self, layout: Layout, weights: np.ndarray) -> LanguageModelBatch:
    """Rows for the model, of several answers each.   weights: float32 [answers, seq_len]."""
    return LanguageModelBatch(layout.gather(self.ids), layout.gather(self.ids[:, 1:]), layout.gather(weights),
                              layout.places, layout.segment_ids)

  def batch(self, layout: Layout, weights: np.ndarray) -> RolloutBatch:
    """What a step learns from."""
    gather = lambda array: None if array is None else layout.gather(array)
    return RolloutBatch(self.packed_text(layout, weights), layout.gather(self.advantages), gather(self.old_log_probs),
                        gather(self.reference_log_probs), gather(self.values), gather(self.returns))

  def shortest_length(self, rows: np.ndarray, lengths: Sequence[int]) -> int:
    """The least of `lengths` that all of these rows fit into."""
    needed = int(self.lengths[rows].max()) - 1
    return min(length for length in lengths if length >= needed)


def token_weights(is_answer: np.ndarray, aggregation: str, most_tokens: int) -> np.ndarray:
  """What each token's loss is multiplied by, float32 [rows, seq_len]; see `PolicyGradient.aggregation`."""
  match aggregation:
    case 'tokens':
      return is_answer.astype(np.float32)
    case 'sequences':
      return (is_answer / np.maximum(is_answer.sum(1, keepdims=True), 1)).astype(np.float32)
    case 'constant_length':
      return (is_answer / most_tokens).astype(np.float32)
    case _:
      raise ValueError(aggregation)
