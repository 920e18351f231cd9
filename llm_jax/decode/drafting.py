"""Who drafts the tokens that speculative decoding checks: a small model, or the model's own multi-token heads.

Both have `read` (the prompts), `guess` (K tokens) and `settle` (m of them and one more were taken). In comments n is
the position of the newest token; it has not been read yet.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.decode.generate import Run, in_pieces, read_prompts
from llm_jax.decode.sampling import mark_seen
from llm_jax.modules.cache import Cache, init_cache
from llm_jax.modules.multi_token import init_draft_cache

# From logits [B, V], the tokens seen and the number of the guess: tokens [B], and the distribution they are drawn from.
Pick = Callable[[jax.Array, jax.Array | None, jax.Array | int], tuple[jax.Array, jax.Array]]


class Guesses(NamedTuple):
  """K drafted tokens, the distributions [K, B, V] they were drawn from, and the tokens seen before each and after."""
  tokens_KB: jax.Array
  q_KBV: jax.Array
  seen_TBV: jax.Array | None


class Drafter(Protocol):
  """Drafts tokens. Each kind has a state of its own, a pytree that only its own methods look into."""

  @property
  def count(self) -> int:
    """K, the tokens of a draft."""
    ...

  def read(self, run: Run, params: Any, draft_params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, room: int
           ) -> tuple[jax.Array, Cache, Any]:
    """As `read_prompts` by the model that checks, and the drafter's state."""
    ...

  def guess(self, params: Any, state: Any, /, newest_B: jax.Array, positions_B: jax.Array, seen_BV: jax.Array | None,
            pick: Pick) -> tuple[Any, Guesses]:
    """The next K tokens after the newest, which stands at positions_B."""
    ...

  def settle(self, state: Any, /, x_BTD: jax.Array, new_BT: jax.Array, m: jax.Array) -> Any:
    """The state once m drafted tokens and one more were taken. x_BTD: what the head that checked them read."""
    ...


@dataclasses.dataclass(frozen=True)
class ModelDraft:
  """Another model drafts `count` tokens, one after the other. Its state is its cache."""
  run: Run
  count: int

  def read(self, run: Run, params: Any, draft_params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, room: int
           ) -> tuple[jax.Array, Cache, Cache]:
    """As `read_prompts` by the model that checks, and the state of the one that drafts."""
    x_BD, cache = read_prompts(run, params, prompts_BP, lengths_B, room)
    return x_BD, cache, read_prompts(self.run, draft_params, prompts_BP, lengths_B, room)[1]

  def guess(self, params: Any, cache: Cache, newest_B: jax.Array, positions_B: jax.Array, seen_BV: jax.Array | None,
            pick: Pick) -> tuple[Cache, Guesses]:
    def step(carry, i):
      cache, token_B, seen_BV = carry
      logits_B1V, cache = forward(self.run, params, token_B[:, None], positions_B[:, None] + i, cache)[1:]
      token_B, q_BV = pick(logits_B1V[:, 0], seen_BV, i)
      return (cache, token_B, mark_seen(seen_BV, token_B)), (token_B, q_BV, seen_BV)

    # The last step only puts the last of the K tokens into the cache; what it guesses is not looked at.
    (cache, *_), (tokens, q, seen) = jax.lax.scan(step, (cache, newest_B, seen_BV), jnp.arange(self.count + 1))
    return cache, Guesses(tokens[:-1], q[:-1], seen)

  def settle(self, cache: Cache, x_BTD: jax.Array, new_BT: jax.Array, m: jax.Array) -> Cache:
    return cache.rewind(self.count - m)


@flax.struct.dataclass
class HeadsState:
  """Of the last L positions, n - L to n - 1: what the main model's head read, and the tokens after all but the last.

  The heads read these L positions in every round: the last few they had read with drafts for the tokens that follow.
  """
  caches: tuple[Cache, ...]  # of each head; they hold the positions before the L
  x_BLD: jax.Array
  tokens_BL: jax.Array       # L - 1 tokens before `guess`, L after it


@dataclasses.dataclass(frozen=True)
class HeadsDraft:
  """The first `count` multi-token heads draft a token each, the k-th the token k + 1 after what the main model has read
  (DeepSeek-V3, sections 2.2 and 5.4.3). Their parameters are the model's."""
  run: Run
  count: int

  @property
  def window(self) -> int:
    """L: up to count + 1 positions are new in a round, and head k reads k old ones again."""
    return 2 * self.count

  def read(self, run: Run, params: Any, draft_params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, room: int
           ) -> tuple[jax.Array, Cache, HeadsState]:
    """As `read_prompts`, the heads following piece by piece."""
    L = self.window
    prompts_BP = jnp.pad(prompts_BP, ((0, 0), (max(0, L - prompts_BP.shape[1]), 0)))
    B, P = prompts_BP.shape
    following = [jnp.roll(prompts_BP, -k - 1, axis=1) for k in range(self.count)]  # what wraps around is read again
    pieces = jax.tree.map(functools.partial(in_pieces, run), (prompts_BP, *following))
    positions = in_pieces(run, jnp.arange(P) - (P - lengths_B[:, None]), fill=-1)
    length, dtype = positions.shape[0] * positions.shape[2] + room, run.execution.compute_dtype
    start = (init_cache(run.config, B, length, dtype, run.lookahead),
             tuple(init_draft_cache(run.config, B, length, dtype, L, k) for k in range(self.count)))

    def read(carry, piece):
      (cache, caches), ((tokens, *following), positions) = carry, piece
      where = jnp.maximum(positions, 0), (positions >= 0).astype(jnp.int32)
      x_BTD, cache = run.features(params, tokens, *where, cache)
      _, caches = self._heads(params, x_BTD, following, caches, *where)
      return (cache, caches), x_BTD[:, -L:]

    (cache, caches), x = jax.lax.scan(read, start, (pieces, positions))
    state = HeadsState(tuple(cache.rewind(L) for cache in caches), x[-1], prompts_BP[:, P - L + 1:])
    return x[-1, :, -1], cache, state

  def guess(self, params: Any, state: HeadsState, newest_B: jax.Array, positions_B: jax.Array,
            seen_BV: jax.Array | None, pick: Pick) -> tuple[HeadsState, Guesses]:
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
    return HeadsState(tuple(caches), state.x_BLD, known_BL), Guesses(tokens, q, seen_TBV)

  def settle(self, state: HeadsState, x_BTD: jax.Array, new_BT: jax.Array, m: jax.Array) -> HeadsState:
    """Moves the window on by m + 1 positions."""
    L = self.window
    move = lambda old, new, size: jax.lax.dynamic_slice_in_dim(
        jnp.concatenate([old, new], axis=1), m + 1, size, axis=1)
    return HeadsState(tuple(cache.rewind(L - m - 1) for cache in state.caches), move(state.x_BLD, x_BTD, L),
                      move(state.tokens_BL, new_BT, L - 1))

  def _heads(self, params, x_BTD, following, caches, positions_BT, real_BT):
    """All heads in a row, where the tokens that follow are known."""
    done = []
    for k, (next_BT, cache) in enumerate(zip(following, caches, strict=True)):
      _, x_BTD, cache = self._head(params, x_BTD, next_BT, cache, positions_BT, real_BT, k)
      done.append(cache)
    return x_BTD, tuple(done)

  def _head(self, params, x_BTD, next_BT, cache, positions_BT, real_BT, k):
    return self.run.apply(params, x_BTD, next_BT, cache, positions_BT, real_BT, k, method='draft')


def forward(run: Run, params: Any, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache
            ) -> tuple[jax.Array, jax.Array, Cache]:
  """What the head reads, the logits, the cache. Where a round overshoots the learned positions, the last stands in."""
  if run.config.max_length is not None:
    positions_BT = jnp.minimum(positions_BT, run.config.max_length - 1)
  x_BTD, cache = run.features(params, tokens_BT, positions_BT, None, cache)
  return x_BTD, run.logits(params, x_BTD), cache
