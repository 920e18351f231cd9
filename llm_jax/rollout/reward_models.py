"""Scores of answers by reward models, which read prompt and answer as they stood in the rows that taught them."""
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.decode.request import fetch
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.objectives.scalar_head import sequence_scores
from llm_jax.rollout.buffer import RolloutBuffer
from llm_jax.rollout.log_probs import Place, microbatches
from llm_jax.rollout.sampling import Answer


@dataclasses.dataclass(frozen=True)
class RewardModels:
  """(name of a reward, answers) -> the scores of its reward model, float32 [answers].

  frozen: has the models under `reward`.
  end: ids that the prompts' template writes behind the end of an answer, which the model has learnt to read too.
  rows_at_once: of one forward pass.   lengths: what rows may be padded to, the longest first; what does not fit into
    that and a token more is cut off, as in training.
  """
  frozen: Frozen
  end: tuple[int, ...]
  rows_at_once: int
  lengths: tuple[int, ...]
  place: Place

  def __call__(self, name: str, answers: Sequence[Answer]) -> np.ndarray:
    assert self.frozen.reward is not None
    missing = -len(answers) % self.rows_at_once
    padded = [*answers, *[answers[-1]] * missing]
    buffer = RolloutBuffer.of([self.whole(answer) for answer in padded], self.lengths[0], np.zeros((0, len(padded))))
    scores = np.zeros(len(padded), np.float32)
    for rows, _, batch in microbatches(buffer, self.rows_at_once, self.lengths, self.place):
      scores[rows] = fetch(_score(self.frozen.reward[name], batch))
    return scores[:len(answers)]

  def whole(self, answer: Answer) -> Answer:
    """The answer with what stands behind it, where it has ended."""
    ids = (*answer.ids, *self.end) if answer.ended else answer.ids
    return dataclasses.replace(answer, ids=ids[:self.lengths[0] + 1 - len(answer.prompt.ids)])


@jax.jit
def _score(scored: FrozenModel, batch: LanguageModelBatch) -> jax.Array:
  return sequence_scores(scored.model, scored.params, batch)
