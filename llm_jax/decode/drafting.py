"""The two drafters of speculative decoding: a small model, and the model's own multi-token heads.

Both have `read` (the prompts), `draft` (Z tokens) and `accept` (m of the drafted tokens and one more were accepted). In
comments n is the position of the newest token, which no cache holds yet.

Shapes: B batch, T time, D model width, V vocabulary, L chunk of time, P prompt time, Z drafted tokens.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.decode.program import Program, in_pieces, read_prompts
from llm_jax.decode.sampling import mark_seen
from llm_jax.modules.cache import Cache, init_cache
from llm_jax.modules.multi_token import init_draft_cache

# From logits [B, V], the tokens seen so far and the number of the draft to tokens [B] and their distribution [B, V].
Pick = Callable[[jax.Array, jax.Array | None, jax.Array | int], tuple[jax.Array, jax.Array]]


class Drafts(NamedTuple):
  """Drafted tokens, the distributions from which they were drawn, and which tokens had been seen before each draft and
  after the last (T = Z + 1)."""
  tokens_ZB: jax.Array
  q_ZBV: jax.Array
  seen_TBV: jax.Array | None


class Drafter(Protocol):
  """Drafts tokens. Each kind has its own state, a pytree that only its own methods use."""

  @property
  def count(self) -> int:
    """Z, the number of drafted tokens."""
    ...

  def read(self, program: Program, params: Any, draft_params: Any, prompts_BP: jax.Array, lengths_B: jax.Array,
           max_new: int) -> tuple[jax.Array, Cache, Any]:
    """`read_prompts` of the main model, and the drafter's state after the same prompts."""
    ...

  def draft(self, params: Any, state: Any, /, newest_B: jax.Array, positions_B: jax.Array, seen_BV: jax.Array | None,
            pick: Pick) -> tuple[Any, Drafts]:
    """Drafts the Z tokens after the newest one, whose positions are positions_B."""
    ...

  def accept(self, state: Any, /, x_BTD: jax.Array, new_BT: jax.Array, m: jax.Array) -> Any:
    """The state after m drafted tokens and one more were accepted. x_BTD: the main model's features of the drafts."""
    ...


@dataclasses.dataclass(frozen=True)
class ModelDraft:
  """A second model drafts `count` tokens one after the other. Its state is its cache."""
  program: Program
  count: int

  def read(self, program: Program, params: Any, draft_params: Any, prompts_BP: jax.Array, lengths_B: jax.Array,
           max_new: int) -> tuple[jax.Array, Cache, Cache]:
    """`read_prompts` of the main model, and the state of the drafting model after the same prompts."""
    x_BD, cache = read_prompts(program, params, prompts_BP, lengths_B, max_new)
    _, draft_cache = read_prompts(self.program, draft_params, prompts_BP, lengths_B, max_new)
    return x_BD, cache, draft_cache

  def draft(self, params: Any, cache: Cache, newest_B: jax.Array, positions_B: jax.Array, seen_BV: jax.Array | None,
            pick: Pick) -> tuple[Cache, Drafts]:
    def step(carry, i):
      cache, token_B, seen_BV = carry
      logits_B1V, cache = forward(self.program, params, token_B[:, None], positions_B[:, None] + i, cache)[1:]
      token_B, q_BV = pick(logits_B1V[:, 0], seen_BV, i)
      return (cache, token_B, mark_seen(seen_BV, token_B)), (token_B, q_BV, seen_BV)

    # The last step only puts the last draft into the cache; the token that it predicts is not used.
    (cache, *_), (tokens, q, seen) = jax.lax.scan(step, (cache, newest_B, seen_BV), jnp.arange(self.count + 1))
    return cache, Drafts(tokens[:-1], q[:-1], seen)

  def accept(self, cache: Cache, x_BTD: jax.Array, new_BT: jax.Array, m: jax.Array) -> Cache:
    return cache.rewind(self.count - m)


@flax.struct.dataclass
class HeadsState:
  """The main model's features at the last L positions, n - L to n - 1, and the tokens that follow these positions.

  The heads read all L positions in every round, because they have read the last few with drafts in place of the tokens
  that followed.
  """
  caches: tuple[Cache, ...]  # of each head, up to the position before the L
  x_BLD: jax.Array
  tokens_BL: jax.Array       # without the newest token between rounds: L - 1 tokens before `draft`, L after it


@dataclasses.dataclass(frozen=True)
class HeadsDraft:
  """The first `count` multi-token heads draft one token each: head k drafts the token k + 1 positions after the last
  one that the main model has read (DeepSeek-V3, sections 2.2 and 5.4.3). Their parameters are part of the model's."""
  program: Program
  count: int

  @property
  def window(self) -> int:
    """L: a round adds up to count + 1 positions, and head k reads k older positions again."""
    return 2 * self.count

  def read(self, program: Program, params: Any, draft_params: Any, prompts_BP: jax.Array, lengths_B: jax.Array,
           max_new: int) -> tuple[jax.Array, Cache, HeadsState]:
    """`read_prompts`, with the heads reading each piece after the main model."""
    L = self.window
    prompts_BP = jnp.pad(prompts_BP, ((0, 0), (max(0, L - prompts_BP.shape[1]), 0)))
    B, P = prompts_BP.shape
    # The tokens that wrap around at the end are wrong, but these positions are rewound below and read again.
    following = [jnp.roll(prompts_BP, -k - 1, axis=1) for k in range(self.count)]
    pieces = jax.tree.map(functools.partial(in_pieces, program), (prompts_BP, *following))
    positions = in_pieces(program, jnp.arange(P) - (P - lengths_B[:, None]), fill=-1)
    length, dtype = positions.shape[0] * positions.shape[2] + max_new, program.execution.compute_dtype
    start = (init_cache(program.config, B, length, dtype, program.lookahead),
             tuple(init_draft_cache(program.config, B, length, dtype, L, k) for k in range(self.count)))

    def read_piece(carry, piece):
      (cache, caches), ((tokens, *following), positions) = carry, piece
      where = jnp.maximum(positions, 0), (positions >= 0).astype(jnp.int32)
      x_BTD, cache = program.features(params, tokens, *where, cache)
      _, caches = self._heads(params, x_BTD, following, caches, *where)
      return (cache, caches), x_BTD[:, -L:]

    (cache, caches), x = jax.lax.scan(read_piece, start, (pieces, positions))
    state = HeadsState(tuple(cache.rewind(L) for cache in caches), x[-1], prompts_BP[:, P - L + 1:])
    return x[-1, :, -1], cache, state

  def draft(self, params: Any, state: HeadsState, newest_B: jax.Array, positions_B: jax.Array,
            seen_BV: jax.Array | None, pick: Pick) -> tuple[HeadsState, Drafts]:
    positions_BL = positions_B[:, None] + jnp.arange(-self.window, 0)
    where = jnp.maximum(positions_BL, 0), (positions_BL >= 0).astype(jnp.int32)
    known_BL = tokens_BL = jnp.concatenate([state.tokens_BL, newest_B[:, None]], axis=1)
    x_BLD, caches, drawn, seen = state.x_BLD, [], [], [seen_BV]
    for k, cache in enumerate(state.caches):
      logits_BLV, x_BLD, cache = self._head(params, x_BLD, tokens_BL, cache, *where, k)
      token_B, q_BV = pick(logits_BLV[:, -1], seen[-1], k)
      tokens_BL = jnp.concatenate([tokens_BL[:, 1:], token_B[:, None]], axis=1)
      caches.append(cache)
      drawn.append((token_B, q_BV))
      seen.append(mark_seen(seen[-1], token_B))
    tokens, q = map(jnp.stack, zip(*drawn, strict=True))
    seen_TBV = None if seen_BV is None else jnp.stack([each_BV for each_BV in seen if each_BV is not None])
    return HeadsState(tuple(caches), state.x_BLD, known_BL), Drafts(tokens, q, seen_TBV)

  def accept(self, state: HeadsState, x_BTD: jax.Array, new_BT: jax.Array, m: jax.Array) -> HeadsState:
    """Moves the window forward by m + 1 positions."""
    L = self.window

    def move(old: jax.Array, new: jax.Array, size: int) -> jax.Array:
      return jax.lax.dynamic_slice_in_dim(jnp.concatenate([old, new], axis=1), m + 1, size, axis=1)

    caches = tuple(cache.rewind(L - m - 1) for cache in state.caches)
    return HeadsState(caches, move(state.x_BLD, x_BTD, L), move(state.tokens_BL, new_BT, L - 1))

  def _heads(self, params, x_BTD, following, caches, positions_BT, real_BT):
    """Runs all heads one after the other on a piece of a prompt. Returns the last head's output and all caches."""
    read = []
    for k, (next_BT, cache) in enumerate(zip(following, caches, strict=True)):
      _, x_BTD, cache = self._head(params, x_BTD, next_BT, cache, positions_BT, real_BT, k)
      read.append(cache)
    return x_BTD, tuple(read)

  def _head(self, params, x_BTD, next_BT, cache, positions_BT, real_BT, k):
    return self.program.apply(params, x_BTD, next_BT, cache, positions_BT, real_BT, k, method='draft')


def forward(program: Program, params: Any, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache
            ) -> tuple[jax.Array, jax.Array, Cache]:
  """The features, the logits and the cache. A position after the last learned one (in the last round) becomes that."""
  if program.config.max_length is not None:
    positions_BT = jnp.minimum(positions_BT, program.config.max_length - 1)
  x_BTD, cache = program.features(params, tokens_BT, positions_BT, None, cache)
  return x_BTD, program.logits(params, x_BTD), cache
