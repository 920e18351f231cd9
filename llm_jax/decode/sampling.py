"""How the next token is chosen from the logits.

Shapes: B batch, V vocabulary, P prompt time.
"""
import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp

from llm_jax.config.errors import require
from llm_jax.draw import draw


@dataclasses.dataclass(frozen=True)
class Greedy:
  """The most probable token; of several, the one with the lowest id.   repetition_penalty: see `Sampling`."""
  repetition_penalty: float = 1.0

  def __post_init__(self):
    _check_penalty(self.repetition_penalty)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """A random token from softmax(logits / temperature), cut to the likeliest tokens and renormalised, in this order:

  repetition_penalty: logits of the tokens in the prompt and of those generated so far are divided by it where positive
    and multiplied by it where negative; 1 changes nothing (Keskar et al. 2019, section 4.1, as `transformers` has it).
  temperature: divides the logits.
  top_k: keep the k most probable tokens (Fan et al. 2018).
  top_p: keep the smallest set of most probable tokens whose probabilities reach p (Holtzman et al. 2020, section 3.1).
  min_p: keep the tokens with at least min_p of the greatest probability (Nguyen et al. 2024, section 3).
  """
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  repetition_penalty: float = 1.0

  def __post_init__(self):
    for field in ('temperature', 'top_p', 'min_p'):
      value = getattr(self, field)
      require(value is None and field != 'temperature' or isinstance(value, numbers.Real), field, value, 'use a number')
    require(self.top_k is None or isinstance(self.top_k, numbers.Integral), 'top_k', self.top_k, 'use a whole number')
    require(1e-30 <= self.temperature < math.inf, 'temperature', self.temperature,
            'use a finite number above 0; for the most probable token --temperature=0, in code Greedy()')
    require(self.top_k is None or self.top_k >= 1, 'top_k', self.top_k, 'use 1 or more, or leave it out')
    require(self.top_p is None or 0 < self.top_p <= 1, 'top_p', self.top_p,
            'use a probability in (0, 1]; 1 keeps all tokens')
    require(self.min_p is None or 0 < self.min_p <= 1, 'min_p', self.min_p, 'use a share in (0, 1], or leave it out')
    _check_penalty(self.repetition_penalty)


def _check_penalty(penalty: float) -> None:
  require(math.isfinite(penalty) and penalty > 0, 'repetition_penalty', penalty,
          'use a finite number above 0: more than 1 discourages repetition, 1 changes nothing')


GREEDY = Greedy()


def choose(logits_BV: jax.Array, sampling: Greedy | Sampling, keys_B: jax.Array, seen_BV: jax.Array | None = None
           ) -> jax.Array:
  """The next token of each row, int32 [batch].

  keys_B: a random key for each row (not used by Greedy).   seen_BV: bool, see `init_seen`.
  """
  match sampling:
    case Greedy():
      return first_maximum(penalize(logits_BV, sampling, seen_BV))
    case Sampling():
      logits_BV = filter_logits(logits_BV, sampling, seen_BV)
      return draw_rows(jax.nn.softmax(logits_BV, axis=-1), keys_B)


def draw_rows(weights_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
  """A token of each row by its own key, int32 [batch], with probabilities in proportion to the weights."""
  return jax.vmap(lambda weights_V, key: draw(weights_V, key, 1)[0])(weights_BV, keys_B)


def distribution(logits_BV: jax.Array, sampling: Greedy | Sampling, seen_BV: jax.Array | None = None) -> jax.Array:
  """The probabilities with which `choose` draws, float32 [batch, vocab]; for Greedy 1 on one token."""
  match sampling:
    case Greedy():
      chosen_B = first_maximum(penalize(logits_BV, sampling, seen_BV))
      return jax.nn.one_hot(chosen_B, logits_BV.shape[-1], dtype=jnp.float32)
    case Sampling():
      return jax.nn.softmax(filter_logits(logits_BV, sampling, seen_BV), axis=-1)


def first_maximum(logits_BV: jax.Array) -> jax.Array:
  """argmax over the last axis, int32: first the part of the vocabulary with the largest logit, then its place there.

  XLA on CPU runs `jnp.argmax` as a scalar loop. This reads the logits once, or twice if V is prime (then one part).
  """
  B, V = logits_BV.shape
  parts = next(n for n in range(math.isqrt(V), 0, -1) if V % n == 0)
  by_part = logits_BV.reshape(B, parts, -1)
  tops = jax.lax.optimization_barrier(by_part.max(axis=-1))
  top_B1 = tops.max(axis=-1, keepdims=True)
  part_B = _first(tops == top_B1)
  of_part = jnp.take_along_axis(by_part, part_B[:, None, None], axis=1)[:, 0]
  return part_B * (V // parts) + _first(of_part == top_B1)


def _first(found_BV: jax.Array) -> jax.Array:
  """The first true index, int32. If there is none (the logits are NaN), the last index: a valid token in any case."""
  V = found_BV.shape[-1]
  return jnp.minimum(jnp.where(found_BV, jnp.arange(V, dtype=jnp.int32), V).min(axis=-1), V - 1)


def filter_logits(logits_BV: jax.Array, sampling: Sampling, seen_BV: jax.Array | None = None) -> jax.Array:
  """The logits that `sampling` draws from, -inf for tokens that are cut. Tokens equal to the last one kept stay."""
  logits_BV = penalize(logits_BV.astype(jnp.float32), sampling, seen_BV) / sampling.temperature
  if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
    least = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  if sampling.top_p is not None and sampling.top_p < 1:
    descending = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of all likelier tokens; 0 for the first, so it stays
    least = jnp.where(before < sampling.top_p, descending, jnp.inf).min(axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  if sampling.min_p is not None:
    least = logits_BV.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  return logits_BV


# ------------------------------------------------------------------------------------------- repetition
def penalize(logits_BV: jax.Array, sampling: Greedy | Sampling, seen_BV: jax.Array | None) -> jax.Array:
  """Logits under the repetition penalty."""
  if sampling.repetition_penalty == 1:
    return logits_BV
  assert seen_BV is not None, 'a repetition penalty needs the tokens that were seen'
  penalized_BV = jnp.where(logits_BV > 0, logits_BV / sampling.repetition_penalty,
                           logits_BV * sampling.repetition_penalty)
  return jnp.where(seen_BV, penalized_BV, logits_BV)


def init_seen(sampling: Greedy | Sampling, tokens_BP: jax.Array, real_BP: jax.Array, vocab_size: int
              ) -> jax.Array | None:
  """Which tokens each row contains, bool [batch, vocab]; None without a penalty.

  real_BP: bool, false for padding.
  """
  if sampling.repetition_penalty == 1:
    return None
  rows = jnp.arange(len(tokens_BP))[:, None]
  return jnp.zeros((len(tokens_BP), vocab_size), bool).at[rows, tokens_BP].max(real_BP)


def mark_seen(seen_BV: jax.Array | None, tokens_B: jax.Array) -> jax.Array | None:
  """`seen_BV` with the newest token of each row."""
  return None if seen_BV is None else seen_BV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
