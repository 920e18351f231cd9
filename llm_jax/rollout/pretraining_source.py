"""Rollouts of policy gradients and PPO with text that is learnt beside the answers (InstructGPT, equation 2)."""
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch, RolloutBatch
from llm_jax.config.policy_gradients import PolicyGradient
from llm_jax.data.batch_source import DataPosition
from llm_jax.data.batches import TrainSource
from llm_jax.rollout.rewarded_source import RewardedSource

PREFIX = 'pretraining_loss.'  # begins what the fingerprint says of the text


class PretrainingSource(RewardedSource):
  """A `RewardedSource` whose batches have text besides, the next rows of `text` in every step."""

  def __init__(self, text: TrainSource, *parts: Any, **named: Any):
    super().__init__(*parts, **named)
    self.text = text

  def next(self, state: Any = None, frozen: Any = None) -> RolloutBatch:
    batch = super().next(state, frozen)
    assert self._stage.pretraining_loss is not None
    text = self.text.next()
    assert isinstance(text, LanguageModelBatch)
    counts_tokens = not isinstance(self._objective, PolicyGradient) or self._objective.aggregation == 'tokens'
    counted = batch.text.weights if counts_tokens else batch.text.segment_ids.max(1)  # segments are answers
    weights = scaled(text.weights, counted, self._stage.pretraining_loss.weight)
    return dataclasses.replace(batch, pretraining=dataclasses.replace(text, weights=weights))

  def shapes(self) -> Iterator[tuple[tuple[int, int], RolloutBatch]]:
    for shape, batch in super().shapes():
      yield shape, dataclasses.replace(batch, pretraining=self.text.abstract())

  @property
  def fingerprint(self) -> dict[str, str]:
    return {**super().fingerprint, **{f'{PREFIX}{name}': value for name, value in self.text.fingerprint.items()}}

  def restore(self, position: DataPosition, arrays: Mapping[str, Any] | None = None) -> None:
    super().restore(position, arrays)
    steps = position.samples // self._stage.batch_size
    self.text.restore(DataPosition(steps * self.text.batch_size, self.text.fingerprint))

  def close(self) -> None:
    self.text.close()
    super().close()


@jax.jit
def scaled(weights: jax.Array, counted: jax.Array, gamma: float) -> jax.Array:
  """Weights in the same proportions whose sum is gamma times what the loss of a step's answers is divided by.

  counted: what sums to that divisor.
  """
  return weights * (gamma * counted.sum() / jnp.maximum(weights.sum(), 1))
