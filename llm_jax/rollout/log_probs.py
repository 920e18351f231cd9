"""Log-probabilities of sampled answers, once a rollout, by the module that is trained: the sampler's own would differ
by rounding, and a ratio to them would not be 1 where nothing has been learnt yet.

Shapes: B batch, T time, D model width, V vocabulary.
"""
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.decode.request import fetch
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.log_probs import log_probs_and_entropies, tempered_head, token_log_probs
from llm_jax.rollout.buffer import RolloutBuffer
from llm_jax.rollout.packing import Layout, in_parts
from llm_jax.runtime import activity

Place = Callable[[Any], Any]  # a batch of NumPy arrays to the devices


def score_answers(model: Transformer, params: Any, buffer: RolloutBuffer, temperature: float, sizes: Sequence[int],
                  place: Place, with_entropy: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """(log-probabilities, entropies) of the answers, float32 [answers, seq_len]; 0 elsewhere, and where no entropies are
  wanted.

  sizes: how many rows of several answers a microbatch may have.
  """
  log_probs, entropies = np.zeros_like(buffer.advantages), np.zeros_like(buffer.advantages)
  for layout, batch in packed_microbatches(buffer, sizes, place):
    found = _score(model, params, batch, temperature, with_entropy)
    layout.scatter(fetch(found[0]), log_probs)
    layout.scatter(fetch(found[1]), entropies)
  return log_probs, entropies


def value_answers(values: Callable[[Any, LanguageModelBatch], jax.Array], params: Any, buffer: RolloutBuffer,
                  sizes: Sequence[int], place: Place) -> np.ndarray:
  """What a critic foresees before every token of the answers, float32 [answers, seq_len]; 0 elsewhere.

  values: compiled (params, rows) -> float32 [batch, time].   sizes: see `score_answers`.
  """
  found = np.zeros_like(buffer.advantages)
  for layout, batch in packed_microbatches(buffer, sizes, place):
    layout.scatter(fetch(values(params, batch)), found)
  return found


def packed_microbatches(buffer: RolloutBuffer, sizes: Sequence[int], place: Place
                        ) -> Iterator[tuple[Layout, LanguageModelBatch]]:
  """(where its answers stand, what is placed of them) of all answers in turn; each target of an answer has weight 1."""
  everything = np.arange(len(buffer.ids))
  weights = buffer.is_answer(everything).astype(np.float32)
  for layout in in_parts(buffer.pack(everything), sizes):
    activity.beat()
    yield layout, place(buffer.packed_text(layout, weights))


def microbatches(buffer: RolloutBuffer, rows_at_once: int, lengths: Sequence[int], place: Place
                 ) -> Iterator[tuple[np.ndarray, int, LanguageModelBatch]]:
  """(rows of one answer each, their length, what is placed of them) of all answers in turn; each target of an answer
  has weight 1."""
  for first in range(0, len(buffer.ids), rows_at_once):
    activity.beat()
    rows = np.arange(first, first + rows_at_once)
    length = buffer.shortest_length(rows, lengths)
    yield rows, length, place(buffer.text(rows, length, buffer.is_answer(rows).astype(np.float32)))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _score(model: Transformer, params: Any, batch: LanguageModelBatch, temperature: float, with_entropy: bool
           ) -> tuple[jax.Array, jax.Array]:
  x_BTD: Any = model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids, method='features')
  w_VD, soft_cap = tempered_head(model, params, temperature)
  kernels = model.execution.kernel_set
  if with_entropy:
    log_probs_BT, entropies_BT = log_probs_and_entropies(x_BTD, w_VD, batch.targets, soft_cap=soft_cap, kernels=kernels)
  else:
    log_probs_BT = token_log_probs(x_BTD, w_VD, batch.targets, soft_cap=soft_cap, kernels=kernels)
    entropies_BT = jnp.zeros_like(log_probs_BT)
  is_answer_BT = batch.weights > 0
  return jnp.where(is_answer_BT, log_probs_BT, 0), jnp.where(is_answer_BT, entropies_BT, 0)
