"""Beam search: the most probable continuations, found on the device by keeping the best few at every step.

Scores, ends and stopping are those of `transformers.generate(num_beams=...)`. The beams of a prompt are ordered, best
first; the model runs B x W rows.

Shapes: B batch, D model width, V vocabulary, P prompt time, N new tokens, W beams, Y beam candidates.
"""
import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.program import Program, read_prompts
from llm_jax.decode.request import bucket, check_count, fetch, make_choice, make_request, mesh_of
from llm_jax.decode.sampling import GREEDY
from llm_jax.modules.cache import Cache
from llm_jax.modules.execution import Execution

NEVER = -1e9  # a score below every sum of log-probabilities, for candidates that must not be chosen


@dataclasses.dataclass(frozen=True)
class Beams:
  """The `num_beams` best continuations of each prompt, best first (fewer if a tiny vocabulary has no more).

  tokens: token ids, the stop token that ended the continuation included.
  scores: the sum of a continuation's log-probabilities divided by length ** length_penalty.
  """
  tokens: list[list[list[int]]]
  scores: list[list[float]]


def beam_search(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
                num_beams: int, *, length_penalty: float = 1.0, early_stopping: bool | Literal['never'] = False,
                stop_tokens: Sequence[int] = (), execution: Execution | None = None) -> Beams:
  """Searches for the continuations of the highest score.

  Args:
    config, params, prompts, max_new_tokens, execution: as in `generate`.
    num_beams: how many continuations are kept at every step, and returned.
    length_penalty: above 0, longer continuations win; 0, the plain sum of log-probabilities decides.
    early_stopping: when a prompt is done after `num_beams` continuations have ended. True: immediately. False: when the
      best unfinished continuation, if it ended now, would score less than the worst ended one. 'never': when it could
      not reach that score at any length, as log-probabilities are below 0.
    stop_tokens: ids that end a continuation.

  Raises:
    ConfigError: as `generate`, or if every token is a stop token.
  """
  check_count('num_beams', num_beams)
  require(isinstance(length_penalty, numbers.Real), 'length_penalty', length_penalty, 'use a number, such as 1.0')
  _, stop_tokens = make_choice(GREEDY, None, stop_tokens)
  require(early_stopping in (True, False, 'never'), 'early_stopping', early_stopping, "use True, False or 'never'")
  require(max(2, 1 + len(stop_tokens)) <= config.vocab_size, 'stop_tokens', stop_tokens,
          f'leave a token to go on with: the vocabulary has {config.vocab_size}')
  with mesh_of(params):
    request = make_request(config, params, prompts, max_new_tokens, execution)
    program = Program(request.config, request.execution, GREEDY, stop_tokens)
    state = search(program, Rule(num_beams, length_penalty, early_stopping), request.params, request.prompts_BP,
                   request.lengths_B, max_new_tokens, bucket(max_new_tokens))
  tokens, scores, ends = fetch(state.ended_BWN), fetch(state.ended_scores_BW), fetch(state.lengths_BW)
  found = [[(row[:end].tolist(), float(score)) for row, score, end in zip(*prompt, strict=True) if end]
           for prompt in zip(tokens, scores, ends, strict=True)]
  return Beams([[row for row, _ in beams] for beams in found], [[score for _, score in beams] for beams in found])


@dataclasses.dataclass(frozen=True)
class Rule:
  """The arguments of `beam_search` that rank continuations."""
  num_beams: int
  length_penalty: float
  early_stopping: bool | str

  def score(self, log_probs: jax.Array, length: jax.Array) -> jax.Array:
    return log_probs / length.astype(jnp.float32) ** self.length_penalty


@flax.struct.dataclass
class State:
  """The state of the search: unfinished continuations, whose newest token is not in the cache yet, and ended ones."""
  cache: Cache
  step: jax.Array             # int32, tokens generated so far
  open_B: jax.Array           # bool, whether an unfinished continuation may still beat the ended ones
  tokens_BWN: jax.Array       # int32
  log_probs_BW: jax.Array     # float32, the sum over the tokens; NEVER for no continuation
  ended_BWN: jax.Array        # int32
  ended_scores_BW: jax.Array  # float32; NEVER for none
  lengths_BW: jax.Array       # int32, of the ended continuations; 0 for none


@functools.partial(jax.jit, static_argnames=('program', 'rule', 'max_new'))
def search(program: Program, rule: Rule, params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, limit: jax.Array,
           max_new: int) -> State:
  """The whole search.

  limit: the most tokens of a continuation.   max_new: how many tokens the arrays hold, at least `limit`.
  """
  B, W = len(prompts_BP), rule.num_beams
  x_BD, cache = read_prompts(program, params, prompts_BP, lengths_B, max_new)
  logits_BV = program.logits(params, x_BD[:, None])[:, 0]
  nothing_BWN = jnp.zeros((B, W, max_new), jnp.int32)
  never_BW = jnp.full((B, W), NEVER)
  state = State(cache.select(jnp.repeat(jnp.arange(B), W)), jnp.int32(0), jnp.ones(B, bool), nothing_BWN,
                never_BW.at[:, 0].set(0.0), nothing_BWN, never_BW, jnp.zeros((B, W), jnp.int32))
  first_positions = jnp.repeat(lengths_B, W)

  def step(state: State) -> State:
    newest_BW1 = jax.lax.dynamic_slice_in_dim(state.tokens_BWN, state.step - 1, 1, axis=2)
    positions = (first_positions + state.step - 1)[:, None]
    x, cache = program.features(params, newest_BW1.reshape(-1, 1), positions, None, state.cache)
    logits_BWV = program.logits(params, x).reshape(B, W, -1)
    return extend(program, rule, dataclasses.replace(state, cache=cache), logits_BWV, limit)

  state = extend(program, rule, state, jnp.repeat(logits_BV[:, None], W, axis=1), limit)
  return jax.lax.while_loop(lambda state: (state.step < limit) & state.open_B.any(), step, state)


def extend(program: Program, rule: Rule, state: State, logits_BWV: jax.Array, limit: jax.Array) -> State:
  """Extends every continuation by every token, and keeps the best; those with a stop token end."""
  B, W, V = logits_BWV.shape
  log_probs_BWV = state.log_probs_BW[..., None] + jax.nn.log_softmax(logits_BWV, axis=-1)
  # Enough candidates that W of them do not end, even if all stop tokens of all continuations are among them.
  count = max(2, 1 + len(program.stop_tokens)) * W
  log_probs_BY, index_BY = jax.lax.top_k(log_probs_BWV.reshape(B, -1), count)
  parents_BY, newest_BY = index_BY // V, index_BY % V
  tokens_BYN = jnp.take_along_axis(state.tokens_BWN, parents_BY[..., None], axis=1)
  tokens_BYN = jax.lax.dynamic_update_slice_in_dim(tokens_BYN, newest_BY[..., None], state.step, axis=2)
  length = state.step + 1
  ends_BY = jnp.isin(newest_BY, jnp.array(program.stop_tokens, jnp.int32)) | (length == limit)

  # Of the best W candidates, those that end join the ended continuations, unless their prompt is done. The other
  # candidates only replace them among the unfinished ones.
  joins_BY = ends_BY & (jnp.arange(count) < W) & (log_probs_BY > NEVER / 2) & state.open_B[:, None]
  scores = jnp.concatenate([state.ended_scores_BW,
                            jnp.where(joins_BY, rule.score(log_probs_BY, length), NEVER)], axis=1)
  ended_scores_BW, best_BW = jax.lax.top_k(scores, W)
  pick = lambda old, new: jnp.take_along_axis(jnp.concatenate([old, new], axis=1), best_BW, axis=1)
  ended_BWN = jnp.take_along_axis(jnp.concatenate([state.ended_BWN, tokens_BYN], axis=1), best_BW[..., None], axis=1)
  lengths_BW = pick(state.lengths_BW, jnp.where(joins_BY, length, 0))

  log_probs_BW, best_BW = jax.lax.top_k(jnp.where(ends_BY, NEVER, log_probs_BY), W)
  rows_BW = jnp.arange(B)[:, None] * W + jnp.take_along_axis(parents_BY, best_BW, axis=1)
  full_B = (lengths_BW > 0).all(axis=1)
  if rule.early_stopping is True:
    open_B = ~full_B
  else:
    furthest = limit if rule.early_stopping == 'never' and rule.length_penalty > 0 else length
    hope_B = rule.score(log_probs_BW[:, 0], jnp.asarray(furthest))
    open_B = state.open_B & (~full_B | (hope_B > ended_scores_BW.min(axis=1)))
  return State(state.cache.select(rows_BW.reshape(-1)), length, open_B,
               jnp.take_along_axis(tokens_BYN, best_BW[..., None], axis=1), log_probs_BW,
               ended_BWN, ended_scores_BW, lengths_BW)

