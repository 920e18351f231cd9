"""Speculative decoding: a small model drafts a few tokens, the large one checks them all in one pass.

What comes out is distributed exactly as what the large model alone would draw (Leviathan et al. 2023, section 2.3 and
appendix A.1; Chen et al. 2023, algorithm 2): a drafted token x ~ q is kept with probability min(1, p(x) / q(x)), and
where it is not, another is drawn from max(0, p - q), normalised. Here p and q are the distributions after temperature,
cuts and penalty, and Greedy is the case where both are on one token.

The rows of a batch go on together, by the smallest number of tokens kept in any row, and one. A row in which more were
kept takes one of them as its last, and forgets the rest. That is exact too: whether a row goes on past a token depends
only on what was drawn for this token and those before it, and what is forgotten has had no influence on anything, so
whatever comes next is drawn given the tokens before it alone. So all rows fill the same slots of the caches, and a
round is taken back by one number.
"""
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.architecture import Architecture
from llm_jax.config.errors import require
from llm_jax.decode.generate import Run, read_prompts
from llm_jax.decode.request import bucket, fetch, make_request, mesh_of
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling, distribution, init_seen, mark_seen
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
              sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *, draft: tuple[Architecture, Any],
              draft_tokens: int = 4, stop_tokens: Sequence[int] = (), execution: Execution | None = None
              ) -> Speculated:
  """`generate` with fewer passes through the model, as far as `draft` guesses what it would say.

  Args:
    draft: the configuration and the parameters of the model that drafts, with the same vocabulary.
    draft_tokens: how many tokens are drafted before the model checks them.
    The others are as in `generate`. With Greedy the tokens are the same; with Sampling they are other draws from the
    same distribution, and a row's draws depend on the other rows.

  Raises:
    ConfigError: as `generate`, for either of the two models; or their vocabularies differ.
  """
  *_, state = _rounds(config, params, prompts, max_new_tokens, sampling, rng, draft, draft_tokens, stop_tokens,
                      execution, chunk=max_new_tokens)
  rate = int(state.kept) / max(1, int(state.drafted))
  return Speculated(_collect(state, 0, max_new_tokens), rate)


def stream_speculated(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
                      sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *,
                      draft: tuple[Architecture, Any], draft_tokens: int = 4, stop_tokens: Sequence[int] = (),
                      execution: Execution | None = None, chunk: int = 4) -> Iterator[list[list[int]]]:
  """`speculate` a few tokens at a time: yields every row's next tokens, `chunk` or some more, until all have ended."""
  seen = 0
  for state in _rounds(config, params, prompts, max_new_tokens, sampling, rng, draft, draft_tokens, stop_tokens,
                       execution, chunk):
    new = _collect(state, seen, max_new_tokens)
    yield new
    seen += max(map(len, new))


# ------------------------------------------------------------------------------------------- on the device
@dataclasses.dataclass(frozen=True)
class Pair:
  """What the compiled programs depend on."""
  model: Run
  draft: Run
  draft_tokens: int


@flax.struct.dataclass
class State:
  """Where generation stands, as in `generate.State`: the newest token is in neither of the caches yet."""
  cache: Cache
  draft_cache: Cache
  step: jax.Array            # int32, tokens generated so far in the longest row
  positions_B: jax.Array     # int32, where the newest token stands
  done_B: jax.Array          # bool
  lengths_B: jax.Array       # int32, tokens generated so far
  tokens_BN: jax.Array       # int32
  seen_BV: jax.Array | None  # bool, for the repetition penalty
  drafted: jax.Array         # int32, tokens drafted for rows that had not ended
  kept: jax.Array            # int32, those of them that became part of the text


@functools.partial(jax.jit, static_argnames=('pair', 'room'))
def begin(pair: Pair, params: Any, draft_params: Any, rng: jax.Array, prompts_BP: jax.Array, lengths_B: jax.Array,
          room: int) -> State:
  """Both models read the prompts, padded on the left; the first token is drawn. room: the most tokens to come."""
  B, P = prompts_BP.shape
  run, room = pair.model, room + pair.draft_tokens  # the last round may overshoot
  x_BD, cache = read_prompts(run, params, prompts_BP, lengths_B, room)
  _, draft_cache = read_prompts(pair.draft, draft_params, prompts_BP, lengths_B, room)
  seen_BV = init_seen(run.sampling, prompts_BP, jnp.arange(P) >= P - lengths_B[:, None], run.config.vocab_size)
  logits_BV = run.model.apply({'params': params}, x_BD[:, None], method='logits')[:, 0]
  tokens_B = _draw(distribution(logits_BV, run.sampling, seen_BV), _keys(rng, lengths_B - 1))
  tokens_BN = jnp.zeros((B, room), jnp.int32).at[:, 0].set(tokens_B)
  return State(cache, draft_cache, jnp.int32(1), lengths_B, jnp.isin(tokens_B, _stops(run)), jnp.ones(B, jnp.int32),
               tokens_BN, mark_seen(seen_BV, tokens_B), jnp.int32(0), jnp.int32(0))


@functools.partial(jax.jit, static_argnames=('pair',), donate_argnames=('state',))
def proceed(pair: Pair, params: Any, draft_params: Any, rng: jax.Array, state: State, until: jax.Array) -> State:
  """Rounds of drafting and checking, until every row has ended or the longest has `until` tokens."""
  advance = functools.partial(play_round, pair, params, draft_params, rng)
  return jax.lax.while_loop(lambda state: (state.step < until) & ~state.done_B.all(), advance, state)


def play_round(pair: Pair, params: Any, draft_params: Any, rng: jax.Array, state: State) -> State:
  """Drafts K tokens, keeps m of them in every row, and adds one more. T = K + 1 below."""
  K, run = pair.draft_tokens, pair.model
  B, V = len(state.positions_B), run.config.vocab_size
  newest_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BN, state.step - 1, 1, axis=1)
  keys_B = _keys(rng, state.positions_B)
  key_of = lambda number: jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)

  def draft(carry, i):
    cache, token_B, seen_BV = carry
    logits_B1V, cache = _forward(pair.draft, draft_params, token_B[:, None], state.positions_B[:, None] + i, cache)
    q_BV = distribution(logits_B1V[:, 0], run.sampling, seen_BV)
    token_B = _draw(q_BV, key_of(i))
    return (cache, token_B, mark_seen(seen_BV, token_B)), (token_B, q_BV, seen_BV)

  # The last step only puts the last of the K tokens into the cache; it guesses one token more, which nobody looks at.
  start = state.draft_cache, newest_B1[:, 0], state.seen_BV
  (draft_cache, *_), (drafts_TB, q_TBV, seen_TBV) = jax.lax.scan(draft, start, jnp.arange(K + 1))
  drafts_BK, q_BTV = drafts_TB[:K].T, q_TBV.swapaxes(0, 1)

  positions_BT = state.positions_B[:, None] + jnp.arange(K + 1)
  logits_BTV, cache = _forward(run, params, jnp.concatenate([newest_B1, drafts_BK], axis=1), positions_BT, state.cache)
  seen = None if seen_TBV is None else seen_TBV.swapaxes(0, 1).reshape(-1, V)
  p_BTV = distribution(logits_BTV.reshape(-1, V), run.sampling, seen).reshape(B, K + 1, V)

  of_drafts = lambda x_BTV: jnp.take_along_axis(x_BTV[:, :K], drafts_BK[..., None], axis=-1)[..., 0]
  chance_BK = jax.vmap(lambda key: jax.random.uniform(key, K))(key_of(K + 1))
  keep_BK = chance_BK * of_drafts(q_BTV) < of_drafts(p_BTV)
  kept_B = jnp.cumprod(keep_BK.astype(jnp.int32), axis=1).sum(axis=1)
  kept_B = jnp.where(state.done_B, K, kept_B)  # a row that has ended holds nobody up
  m = kept_B.min()

  p_BV, q_BV = p_BTV[:, m], jnp.where(m < K, q_BTV[:, m], 0)  # after K kept tokens nothing was drafted: one from p
  rest_BV = jnp.maximum(p_BV - q_BV, 0)
  rest_BV = jnp.where(rest_BV.sum(axis=-1, keepdims=True) > 0, rest_BV, p_BV)  # p = q but for rounding
  last_B = jnp.where(kept_B > m, drafts_TB[m], _draw(rest_BV, key_of(K + 2)))
  new_BT = drafts_TB.T.at[:, m].set(last_B)

  stops_BT = jnp.isin(new_BT, _stops(run)) & (jnp.arange(K + 1) <= m)
  added_B = jnp.where(stops_BT.any(axis=1), jnp.argmax(stops_BT, axis=1) + 1, m + 1)
  live = (~state.done_B).sum()
  return State(
      cache.rewind(K - m), draft_cache.rewind(K - m), state.step + m + 1, state.positions_B + m + 1,
      state.done_B | stops_BT.any(axis=1), state.lengths_B + jnp.where(state.done_B, 0, added_B),
      jax.lax.dynamic_update_slice_in_dim(state.tokens_BN, new_BT, state.step, axis=1),
      None if seen_TBV is None else mark_seen(seen_TBV[m], last_B), state.drafted + K * live, state.kept + m * live)


def _forward(run: Run, params: Any, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache
             ) -> tuple[jax.Array, Cache]:
  """Logits after each token. Where a round overshoots the learned positions, the last one stands in for more."""
  if run.config.max_length is not None:
    positions_BT = jnp.minimum(positions_BT, run.config.max_length - 1)
  return run.model.apply({'params': params}, tokens_BT, positions_BT, None, cache)


def _draw(p_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
  """A token of each row, int32, with probabilities in proportion to p_BV."""
  return jax.vmap(jax.random.categorical)(keys_B, jnp.log(p_BV)).astype(jnp.int32)


def _keys(rng: jax.Array, positions_B: jax.Array) -> jax.Array:
  """A key for each row's position, those of padding-free rows as in `generate`."""
  key_of = lambda row, position: jax.random.fold_in(jax.random.fold_in(rng, row), position)
  return jax.vmap(key_of)(jnp.arange(len(positions_B)), positions_B)


def _stops(run: Run) -> jax.Array:
  return jnp.array(run.stop_tokens, jnp.int32)


# ------------------------------------------------------------------------------------------- on the host
def _rounds(config, params, prompts, max_new_tokens, sampling, rng, draft, draft_tokens, stop_tokens, execution, chunk
            ) -> Iterator[State]:
  """Where generation stands after the first token, and then after every `chunk` more."""
  draft_config, draft_params = draft
  require(draft_tokens >= 1, 'draft_tokens', draft_tokens, 'use 1 or more')
  require(draft_config.vocab_size == config.vocab_size, 'draft.vocab_size', draft_config.vocab_size,
          f'use a model with the same tokenizer, whose vocabulary has {config.vocab_size}')
  rng = jax.random.key(0) if rng is None else rng
  with mesh_of(params):
    draft_request = make_request(draft_config, draft_params, prompts, max_new_tokens, execution)
    request = make_request(config, params, prompts, max_new_tokens, execution)
    both = request.params, draft_request.params
    make = lambda request: Run(request.config, request.execution, sampling, tuple(stop_tokens), lookahead=draft_tokens)
    pair = Pair(make(request), make(draft_request), draft_tokens)
    state = begin(pair, *both, rng, request.prompts_BP, request.lengths_B, bucket(max_new_tokens))
  yield state
  while int(state.step) < max_new_tokens and not fetch(state.done_B).all():
    with mesh_of(params):
      until = min(int(state.step) + chunk, max_new_tokens)
      state = proceed(pair, *both, rng, state, until)
    yield state


def _collect(state: State, start: int, limit: int) -> list[list[int]]:
  """Every row's tokens from `start` on, `limit` in all at most."""
  lengths, tokens = fetch(state.lengths_B), fetch(state.tokens_BN)
  return [row[start:min(max(start, length), limit)].tolist() for row, length in zip(tokens, lengths, strict=True)]
