"""Rollouts of a student that learns from its teacher on what it says itself (Agarwal et al. 2024, GKD)."""
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.objectives import Distillation
from llm_jax.data.prompts import Prompt
from llm_jax.rollout.buffer import RolloutBuffer
from llm_jax.rollout.packing import in_parts
from llm_jax.rollout.sampling import Answer
from llm_jax.rollout.source import RolloutSource, Sampled, StepRows


class OwnTextSource(RolloutSource):
  """The student's own answers, for a share of the prompts; for the others the answers of the data (algorithm 1). Which
  ones is a function of the seed and the place alone. Every token of an answer is a target; several share a row."""

  def answers(self, prompts: list[Prompt], key: jax.Array, params: Any, frozen: Any) -> list[Answer]:
    objective = self._stage.objective
    assert isinstance(objective, Distillation)
    draws = jax.random.uniform(jax.random.fold_in(key, self.rollout.replays), (len(prompts),))
    is_own = np.asarray(draws) < objective.own_answers
    own = [prompt for prompt, chosen in zip(prompts, is_own, strict=True) if chosen]
    sampled = iter(super().answers(own, key, params, frozen) if own else [])
    found: list[Answer] = []
    for prompt, chosen in zip(prompts, is_own, strict=True):
      for _ in range(self.rollout.answers):
        found.append(next(sampled) if chosen else self.given(prompt, objective.column))
    return found

  def given(self, prompt: Prompt, column: str) -> Answer:
    """What the row of the prompt has as its answer, as the chat template writes it, cut where it is too long."""
    ids = self._prompts.answer_ids(prompt, column)
    kept = ids[:self.rollout.max_new_tokens]
    return Answer(prompt, kept, str(prompt.columns[column]), len(kept) == len(ids), (0.0,) * len(kept))

  def learnt(self, sampled: Sampled, order: np.ndarray, params: Any, frozen: Any
             ) -> tuple[RolloutBuffer, dict[str, float]]:
    return RolloutBuffer.of(sampled.answers, self._stage.seq_len, order), {}

  def rows(self, buffer: RolloutBuffer, units: np.ndarray) -> StepRows:
    [layout] = in_parts(buffer.pack(units), self.row_counts)
    weights = buffer.is_answer(np.arange(len(buffer.ids))).astype(np.float32)
    return StepRows(buffer.packed_text(layout, weights), layout.num_tokens, layout.answers.size)

  def shapes(self) -> Iterator[tuple[tuple[int, int], LanguageModelBatch]]:
    length = self._stage.seq_len
    for count in self.row_counts:
      yield (count, length), self._abstract_text(count, length)
