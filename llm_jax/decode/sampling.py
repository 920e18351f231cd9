"""How the next token is chosen from the logits."""
import dataclasses
import math

import jax
import jax.numpy as jnp

from llm_jax.config.errors import require


@dataclasses.dataclass(frozen=True)
class Greedy:
  """The most probable token; the lowest id among equals."""


GREEDY = Greedy()


@dataclasses.dataclass(frozen=True)
class Sampling:
  """A random token, by softmax(logits / temperature) cut to the likeliest and renormalised, in this order:

  top_k: keep the k most probable tokens (Fan et al. 2018).
  top_p: keep the smallest set of most probable tokens whose probabilities reach p (Holtzman et al. 2020, section 3.1).
  """
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None

  def __post_init__(self):
    require(math.isfinite(self.temperature) and self.temperature > 0, 'temperature', self.temperature,
            'use a finite number above 0, or Greedy() for the most probable token')
    require(self.top_k is None or self.top_k >= 1, 'top_k', self.top_k, 'use 1 or more, or None for all tokens')
    require(self.top_p is None or 0 < self.top_p <= 1, 'top_p', self.top_p, 'use a probability in (0, 1], or None')


def choose(logits_BV: jax.Array, sampling: Greedy | Sampling, keys_B: jax.Array) -> jax.Array:
  """The next token of each row, int32 [batch]. keys_B: a random key for each row (not used by Greedy)."""
  match sampling:
    case Greedy():
      return first_maximum(logits_BV)
    case Sampling():
      return jax.vmap(jax.random.categorical)(keys_B, filter_logits(logits_BV, sampling)).astype(jnp.int32)


def first_maximum(logits_BV: jax.Array) -> jax.Array:
  """argmax over the last axis, int32. XLA on CPU runs `jnp.argmax` as a scalar loop, three times slower than this."""
  V = logits_BV.shape[-1]
  is_top_BV = logits_BV == jax.lax.optimization_barrier(logits_BV.max(axis=-1, keepdims=True))
  first_B = jnp.where(is_top_BV, jnp.arange(V, dtype=jnp.int32), V).min(axis=-1)
  return jnp.minimum(first_B, V - 1)  # not a number anywhere: still a token


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """Logits of the distribution that `sampling` draws from: -inf where a token is cut. Equals at the edge all stay."""
  logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
  if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
    least = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  if sampling.top_p is not None and sampling.top_p < 1:
    descending = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of all that is likelier: 0 for the first, which stays
    least = jnp.where(before < sampling.top_p, descending, jnp.inf).min(axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  return logits_BV
