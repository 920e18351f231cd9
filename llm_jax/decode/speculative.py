"""Speculative decoding: a small model, or heads of the model itself, draft a few tokens; the model verifies all of them
in one pass.

The result has exactly the distribution of the large model alone (Leviathan et al. 2023, section 2.3 and appendix A.1;
Chen et al. 2023, algorithm 2): a drafted token x ~ q is accepted with probability min(1, p(x) / q(x)); if it is
rejected, another is drawn from max(0, p - q), normalised. Here p and q are the distributions after temperature, cuts
and penalty; Greedy is the case in which both have probability 1 on one token.

All rows of a batch advance by the same number of tokens: the smallest number accepted in any row, plus one. A row that
accepted more takes one of its drafts as its last token and forgets the rest. This is exact too: whether a row goes past
a token depends only on the draws for this token and the ones before it, and the forgotten drafts have influenced
nothing, so the next tokens are drawn given only the tokens before them. As a consequence all rows use the same slots of
the caches, and one number rewinds a round.

Shapes: B batch, T time, D model width, V vocabulary, P prompt time, N new tokens, Z drafted tokens.
"""
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.drafting import Drafter, HeadsDraft, ModelDraft, forward
from llm_jax.decode.program import Program
from llm_jax.decode.request import bucket, check_count, fetch, make_choice, make_request, mesh_of
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling, distribution, draw_rows, init_seen, mark_seen
from llm_jax.modules.cache import Cache
from llm_jax.modules.execution import Execution


@dataclasses.dataclass(frozen=True)
class Speculated:
  """The new tokens of each prompt, a stop token included where one ended the row.

  acceptance_rate: the share of the drafted tokens that became part of the text.
  """
  tokens: list[list[int]]
  acceptance_rate: float


def speculate(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
              sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *,
              draft: tuple[Architecture, Any] | None = None,
              draft_tokens: int | None = None, stop_tokens: Sequence[int] = (), execution: Execution | None = None
              ) -> Speculated:
  """`generate` with fewer passes through the model: one pass verifies all tokens that the drafter has predicted.

  Args:
    draft: the configuration and the parameters of the drafting model, with the same vocabulary; None means the model's
      own multi-token heads (`config.multi_token`).
    draft_tokens: how many tokens are drafted before the model verifies them; None means 4, or one per head.
    The others are as in `generate`. With Greedy the tokens are the same as there; with Sampling they are other draws
    from the same distribution, and a row's draws depend on the other rows.

  Raises:
    ConfigError: as `generate`, for either of the two models; or their vocabularies differ; or there are fewer heads.
  """
  *_, state = _rounds(config, params, prompts, max_new_tokens, sampling, rng, draft, draft_tokens, stop_tokens,
                      execution, chunk=max_new_tokens)
  rate = int(state.accepted) / max(1, int(state.drafted))
  return Speculated(_collect(state, 0, max_new_tokens), rate)


def stream_speculated(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
                      sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *,
                      draft: tuple[Architecture, Any] | None = None, draft_tokens: int | None = None,
                      stop_tokens: Sequence[int] = (), execution: Execution | None = None, chunk: int = 4
                      ) -> Iterator[list[list[int]]]:
  """`speculate` a few tokens at a time: yields every row's next tokens, `chunk` or a few more, until all rows have
  ended."""
  seen = 0
  for state in _rounds(config, params, prompts, max_new_tokens, sampling, rng, draft, draft_tokens, stop_tokens,
                       execution, chunk):
    new = _collect(state, seen, max_new_tokens)
    yield new
    seen += max(map(len, new))


# ------------------------------------------------------------------------------------------- on the device
@flax.struct.dataclass
class State:
  """The state of generation, as in `program.State`. The newest token is in neither the model's nor the drafter's cache
  yet."""
  cache: Cache
  drafter_state: Any                # its type depends on the drafter
  step: jax.Array            # int32, tokens generated so far in the longest row
  positions_B: jax.Array     # int32, of the newest token
  done_B: jax.Array          # bool
  lengths_B: jax.Array       # int32, tokens generated so far
  tokens_BN: jax.Array       # int32
  seen_BV: jax.Array | None  # bool, for the repetition penalty
  drafted: jax.Array         # int32, tokens drafted for rows that had not ended
  accepted: jax.Array            # int32, how many of them became part of the text


@functools.partial(jax.jit, static_argnames=('program', 'drafter', 'max_new'))
def prefill(program: Program, drafter: Drafter, params: Any, draft_params: Any, rng: jax.Array, prompts_BP: jax.Array,
          lengths_B: jax.Array, max_new: int) -> State:
  """The model and the drafter read the prompts, padded on the left; the first token is drawn.

  max_new: the most new tokens per row.
  """
  B, P = prompts_BP.shape
  max_new += drafter.count  # the last round may generate more tokens than requested
  x_BD, cache, drafter_state = drafter.read(program, params, draft_params, prompts_BP, lengths_B, max_new)
  seen_BV = init_seen(program.sampling, prompts_BP, jnp.arange(P) >= P - lengths_B[:, None], program.config.vocab_size)
  logits_BV = program.logits(params, x_BD[:, None])[:, 0]
  tokens_B = draw_rows(distribution(logits_BV, program.sampling, seen_BV), _keys(rng, lengths_B))
  tokens_BN = jnp.zeros((B, max_new), jnp.int32).at[:, 0].set(tokens_B)
  return State(cache, drafter_state, jnp.int32(1), lengths_B, jnp.isin(tokens_B, _stops(program)),
               jnp.ones(B, jnp.int32), tokens_BN, mark_seen(seen_BV, tokens_B), jnp.int32(0), jnp.int32(0))


@functools.partial(jax.jit, static_argnames=('program', 'drafter'), donate_argnames=('state',))
def decode(program: Program, drafter: Drafter, params: Any, draft_params: Any, rng: jax.Array, state: State,
            until: jax.Array) -> State:
  """Rounds of drafting and verifying, until every row has ended or the longest has `until` tokens."""
  advance = functools.partial(draft_and_verify, program, drafter, params, draft_params, rng)
  return jax.lax.while_loop(lambda state: (state.step < until) & ~state.done_B.all(), advance, state)


def draft_and_verify(program: Program, drafter: Drafter, params: Any, draft_params: Any, rng: jax.Array, state: State
                     ) -> State:
  """Drafts Z tokens, accepts m of them in every row, and adds one more. T = Z + 1 below."""
  B, Z, V = len(state.positions_B), drafter.count, program.config.vocab_size
  keys_B = _keys(rng, state.positions_B + 1)
  key_of = lambda number: jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)

  def pick(logits_BV, seen_BV, number):
    q_BV = distribution(logits_BV, program.sampling, seen_BV)
    return draw_rows(q_BV, key_of(number)), q_BV

  newest_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BN, state.step - 1, 1, axis=1)
  drafter_state, (drafts_ZB, q_ZBV, seen_TBV) = drafter.draft(
      draft_params, state.drafter_state, newest_B1[:, 0], state.positions_B, state.seen_BV, pick)
  positions_BT = state.positions_B[:, None] + jnp.arange(Z + 1)
  x_BTD, logits_BTV, cache = forward(program, params, jnp.concatenate([newest_B1, drafts_ZB.T], axis=1), positions_BT,
                                     state.cache)
  seen = None if seen_TBV is None else seen_TBV.reshape(-1, V)
  p_TBV = distribution(logits_BTV.swapaxes(0, 1).reshape(-1, V), program.sampling, seen).reshape(Z + 1, B, V)

  of_drafts = lambda x_ZBV: jnp.take_along_axis(x_ZBV, drafts_ZB[..., None], axis=-1)[..., 0]
  chance_ZB = jax.vmap(lambda key: jax.random.uniform(key, (Z,)))(key_of(Z + 1)).T
  keep_ZB = chance_ZB * of_drafts(q_ZBV) < of_drafts(p_TBV[:Z])
  accepted_B = jnp.cumprod(keep_ZB.astype(jnp.int32), axis=0).sum(axis=0)
  accepted_B = jnp.where(state.done_B, Z, accepted_B)  # rows that have ended do not limit the others
  m = accepted_B.min()

  p_BV = p_TBV[m]
  q_BV = jnp.where(m < Z, q_ZBV[m], 0)  # if all Z drafts are accepted, the next token is drawn from p alone
  rest_BV = jnp.maximum(p_BV - q_BV, 0)
  rest_BV = jnp.where(rest_BV.sum(axis=-1, keepdims=True) > 0, rest_BV, p_BV)  # if p = q up to rounding
  last_B = jnp.where(accepted_B > m, drafts_ZB[m], draw_rows(rest_BV, key_of(Z + 2)))
  new_BT = jnp.concatenate([drafts_ZB.T, last_B[:, None]], axis=1).at[:, m].set(last_B)

  stops_BT = jnp.isin(new_BT, _stops(program)) & (jnp.arange(Z + 1) <= m)
  added_B = jnp.where(stops_BT.any(axis=1), jnp.argmax(stops_BT, axis=1) + 1, m + 1)
  live = (~state.done_B).sum()
  return State(
      cache.rewind(Z - m), drafter.accept(drafter_state, x_BTD, new_BT, m), state.step + m + 1,
      state.positions_B + m + 1,
      state.done_B | stops_BT.any(axis=1), state.lengths_B + jnp.where(state.done_B, 0, added_B),
      jax.lax.dynamic_update_slice_in_dim(state.tokens_BN, new_BT, state.step, axis=1),
      None if seen_TBV is None else mark_seen(seen_TBV[m], last_B), state.drafted + Z * live, state.accepted + m * live)


def _keys(rng: jax.Array, positions_B: jax.Array) -> jax.Array:
  """A key for the token of each row that comes to stand at a position."""
  key_of = lambda row, position: jax.random.fold_in(jax.random.fold_in(rng, row), position)
  return jax.vmap(key_of)(jnp.arange(len(positions_B)), positions_B)


def _stops(program: Program) -> jax.Array:
  return jnp.array(program.stop_tokens, jnp.int32)


# ------------------------------------------------------------------------------------------- on the host
def _rounds(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
            sampling: Greedy | Sampling, rng: jax.Array | None, draft: tuple[Architecture, Any] | None,
            draft_tokens: int | None, stop_tokens: Sequence[int], execution: Execution | None, chunk: int
            ) -> Iterator[State]:
  """The state of generation after the first token, and then after every `chunk` more."""
  rng, stop_tokens = make_choice(sampling, rng, stop_tokens)
  check_count('draft_tokens', 1 if draft_tokens is None else draft_tokens)
  heads = len(config.multi_token)
  if draft is None:
    require(heads > 0, 'draft', None, 'this model has no multi-token heads: give a model that drafts')
    count = heads if draft_tokens is None else draft_tokens
    require(1 <= count <= heads, 'draft_tokens', count, f'use 1 to {heads}, the number of multi-token heads')
  else:
    count = 4 if draft_tokens is None else draft_tokens
    pair = isinstance(draft, tuple) and len(draft) == 2 and isinstance(draft[0], Architecture)
    require(pair, 'draft', type(draft).__name__, 'give (configuration, parameters) of a model that drafts')
    require(draft[0].vocab_size == config.vocab_size, 'draft.vocab_size', draft[0].vocab_size,
            f'use a model with the same tokenizer, whose vocabulary has {config.vocab_size}')
  with mesh_of(params):
    draft_request = None if draft is None else make_request(*draft, prompts, max_new_tokens, execution)
    request = make_request(config, params, prompts, max_new_tokens, execution)
    program = Program(request.config, request.execution, sampling, stop_tokens, lookahead=count)
    if draft_request is None:
      drafter = HeadsDraft(program, count)
      draft_params = request.params
    else:
      drafter = ModelDraft(dataclasses.replace(program, config=draft_request.config), count)
      draft_params = draft_request.params
    state = prefill(program, drafter, request.params, draft_params, rng, request.prompts_BP, request.lengths_B,
                    bucket(max_new_tokens))
  yield state
  while int(state.step) < max_new_tokens and not fetch(state.done_B).all():
    with mesh_of(params):
      until = min(int(state.step) + chunk, max_new_tokens)
      state = decode(program, drafter, request.params, draft_params, rng, state, until)
    yield state


def _collect(state: State, start: int, limit: int) -> list[list[int]]:
  """Every row's tokens from index `start` on, up to index `limit`."""
  lengths, tokens = fetch(state.lengths_B), fetch(state.tokens_BN)
  return [row[start:min(max(start, length), limit)].tolist() for row, length in zip(tokens, lengths, strict=True)]
