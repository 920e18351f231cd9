"""What a model would predict after each layer, and the candidates that its last layer draws from.

Shapes: B batch, T time, D model width, V vocabulary, N new tokens.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.model.architecture import Architecture
from llm_jax.explain.trace import EXECUTION, Trace
from llm_jax.modules.transformer import Transformer

CANDIDATES = 64  # next tokens that are kept of each position
TEMPERATURES = tuple(round(0.1 * step, 1) for step in range(1, 21))


class Reading(NamedTuple):
  """The logit lens (nostalgebraist 2020): the final norm and the head, on the residual stream after one layer.

  top_T: int32, the most probable token.
  top_probability_T: its probability.
  rank_T: int32, the place of the token that follows in the text, 1 for the most probable; 0 at the last position.
  next_log_prob_T: the log-probability of the token that follows; 0 at the last position.
  """
  top_T: np.ndarray
  top_probability_T: np.ndarray
  rank_T: np.ndarray
  next_log_prob_T: np.ndarray


class Candidates(NamedTuple):
  """The most probable next tokens, in order, and all others together.

  tokens_TN: int32.
  logits_TN: float32.
  rest: [T, len(TEMPERATURES)], the log of the sum of exp(logit / temperature) over all others; -inf if there are none.
  """
  tokens_TN: np.ndarray
  logits_TN: np.ndarray
  rest: np.ndarray


def lens(config: Architecture, params: Any, trace: Trace) -> tuple[Reading, ...]:
  """One reading of the residual stream before the first layer, and one after every layer."""
  next_T = np.append(trace.tokens_T[1:], -1).astype(np.int32)
  readings: list[Reading] = []
  for x_TD in trace.residuals:
    readings.append(Reading(*jax.device_get(_read(config, params, x_TD, next_T))))
  return tuple(readings)


@functools.partial(jax.jit, static_argnames='config')
def _read(config: Architecture, params: Any, x_TD: jax.Array, next_T: jax.Array) -> tuple[jax.Array, ...]:
  """The arrays of a `Reading`."""
  with jax.default_matmul_precision('highest'):
    logits_TV: Any = Transformer(config, EXECUTION).apply({'params': params}, x_TD[None], method=_predict)
  log_probs_TV = jax.nn.log_softmax(logits_TV)
  top_T = jnp.argmax(logits_TV, axis=-1)
  has_next_T = next_T >= 0
  next_T1 = jnp.maximum(next_T, 0)[:, None]
  next_log_prob_T = jnp.take_along_axis(log_probs_TV, next_T1, axis=-1)[:, 0]
  rank_T = 1 + (log_probs_TV > next_log_prob_T[:, None]).sum(-1)
  top_probability_T = jnp.exp(log_probs_TV.max(-1))
  return top_T, top_probability_T, jnp.where(has_next_T, rank_T, 0), jnp.where(has_next_T, next_log_prob_T, 0.0)


def _predict(model: Transformer, x_BTD: jax.Array) -> jax.Array:
  return model.logits(model.final_norm(x_BTD))[0]


def candidates(logits_TV: np.ndarray) -> Candidates:
  """The most probable next tokens of each position."""
  order = np.argsort(-logits_TV, axis=-1, kind='stable')
  tokens_TN = order[:, :CANDIDATES]
  others = np.take_along_axis(logits_TV, order[:, CANDIDATES:], axis=-1)
  rest = np.full((len(logits_TV), len(TEMPERATURES)), -np.inf, np.float32)
  if others.shape[-1]:
    for i, temperature in enumerate(TEMPERATURES):
      rest[:, i] = jax.nn.logsumexp(others / temperature, axis=-1)
  return Candidates(tokens_TN.astype(np.int32), np.take_along_axis(logits_TV, tokens_TN, axis=-1), rest)
