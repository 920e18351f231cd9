"""KV-cached generation: a prefill over the prompts, then a loop on the device.

Prompts of different lengths are padded on the left, so that a cache that rolls never gives a token's slot to padding.
Their lengths, and the number of new tokens, are rounded up to buckets, so a new length seldom compiles a new program;
the batch size and the sampling are part of a program.
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
from llm_jax.decode.request import bucket, fetch, make_choice, make_request, mesh_of
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling, choose, init_seen, mark_seen
from llm_jax.modules.cache import Cache, init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer

PREFILL_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Generated:
  """The new tokens of each prompt, a stop token included where one ended the row.

  log_probs: of each new token under the model itself (temperature 1, nothing cut), float32; None unless asked for.
  """
  tokens: list[list[int]]
  log_probs: list[list[float]] | None = None

  @property
  def lengths(self) -> list[int]:
    return [len(row) for row in self.tokens]


def generate(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
             sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *, stop_tokens: Sequence[int] = (),
             execution: Execution | None = None, log_probs: bool = False, prefill_chunk: int = PREFILL_CHUNK
             ) -> Generated:
  """Continues every prompt until a stop token or `max_new_tokens`.

  Args:
    config: the decoder.
    params: its parameters, as `Transformer.init` makes them. Sharded over a mesh, generation runs on that mesh; with
      several processes all of them call this with the same arguments, and all get the result.
    prompts: token ids, at least one a prompt; lengths may differ.
    max_new_tokens: new tokens a prompt, at most.
    sampling: `Greedy()` or `Sampling(temperature, top_k, top_p)`.
    rng: random key; None means `jax.random.key(0)`. A row's draws depend on the key, the row's number and the
      position, not on the other rows.
    stop_tokens: ids that end a row.
    execution: dtype and kernels; None means float32 on the backend's own kernels.
    log_probs: return the log-probability of every new token.
    prefill_chunk: most tokens of a prompt read at a time; bounds the memory that long prompts take beside the cache.

  Raises:
    ConfigError: an empty prompt, a token outside the vocabulary, more tokens than the learned positions hold,
      parameters of another model, or an argument of the wrong kind.
  """
  rng, stop_tokens = make_choice(sampling, rng, stop_tokens)
  with mesh_of(params):
    run, params, state = _start(config, params, prompts, max_new_tokens, sampling, rng, stop_tokens, execution,
                                log_probs, prefill_chunk)
    state = decode(run, params, rng, state, max_new_tokens)
    return _collect(state, 0)


def stream(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
           sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *, stop_tokens: Sequence[int] = (),
           execution: Execution | None = None, chunk: int = 4, prefill_chunk: int = PREFILL_CHUNK
           ) -> Iterator[list[list[int]]]:
  """`generate` a few tokens at a time: yields every row's next tokens, up to `chunk`, until all rows have ended."""
  rng, stop_tokens = make_choice(sampling, rng, stop_tokens)
  with mesh_of(params):
    run, params, state = _start(config, params, prompts, max_new_tokens, sampling, rng, stop_tokens, execution, False,
                                prefill_chunk)
  seen = 0
  while True:
    new = _collect(state, seen).tokens
    yield new
    seen += max(map(len, new), default=0)
    if seen >= max_new_tokens or bool(fetch(state.done_B).all()):
      return
    with mesh_of(params):
      state = decode(run, params, rng, state, min(seen + chunk, max_new_tokens))


# ------------------------------------------------------------------------------------------- on the device
@dataclasses.dataclass(frozen=True)
class Run:
  """What a compiled program depends on.   lookahead: as `init_cache` has it."""
  config: Architecture
  execution: Execution
  sampling: Greedy | Sampling
  stop_tokens: tuple[int, ...]
  log_probs: bool = False
  prefill_chunk: int = PREFILL_CHUNK
  lookahead: int = 0

  @property
  def model(self) -> Transformer:
    return Transformer(self.config, self.execution)

  def features(self, params: Any, tokens_BT: jax.Array, positions_BT: jax.Array, segment_ids_BT: jax.Array | None,
               cache: Cache) -> tuple[jax.Array, Cache]:
    """What the head reads of each token, [batch, time, d_model], and the cache with these tokens."""
    x_BTD, cache, _ = self.apply(params, tokens_BT, positions_BT, segment_ids_BT, cache, method='run')
    return x_BTD, cache

  def logits(self, params: Any, x_BTD: jax.Array) -> jax.Array:
    """float32 [batch, time, vocab]."""
    return self.apply(params, x_BTD, method='logits')

  def apply(self, params: Any, *args: Any, method: str) -> Any:
    """Calls a method of the model, whose type flax cannot know from its name."""
    return self.model.apply({'params': params}, *args, method=method)


@flax.struct.dataclass
class State:
  """Where generation stands. `tokens_BN` holds what was generated; the newest token is not in the cache yet.

  A row that is done goes on generating with the others; `lengths_B` tells what counts.
  """
  cache: Cache
  step: jax.Array              # int32, tokens generated so far in the longest row
  positions_B: jax.Array       # int32, where the newest token stands
  done_B: jax.Array            # bool
  lengths_B: jax.Array         # int32, tokens generated so far
  tokens_BN: jax.Array         # int32
  log_probs_BN: jax.Array | None
  seen_BV: jax.Array | None    # bool, the tokens of the prompt and of what was generated; None where nothing asks


@functools.partial(jax.jit, static_argnames=('run', 'room'))
def prefill(run: Run, params: Any, rng: jax.Array, prompts_BP: jax.Array, lengths_B: jax.Array, room: int) -> State:
  """Reads the prompts, padded on the left, and generates the first token. room: the most tokens to be generated."""
  B, P = prompts_BP.shape
  x_BD, cache = read_prompts(run, params, prompts_BP, lengths_B, room)
  logits_BV = run.logits(params, x_BD[:, None])[:, 0]
  seen_BV = init_seen(run.sampling, prompts_BP, jnp.arange(P) >= P - lengths_B[:, None], run.config.vocab_size)
  log_probs_BN = jnp.zeros((B, room), jnp.float32) if run.log_probs else None
  state = State(cache, jnp.int32(0), lengths_B - 1, jnp.zeros(B, bool), jnp.zeros(B, jnp.int32),
                jnp.zeros((B, room), jnp.int32), log_probs_BN, seen_BV)
  return advance(run, rng, state, cache, logits_BV)


def read_prompts(run: Run, params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, room: int
                 ) -> tuple[jax.Array, Cache]:
  """What the head reads of each prompt's last token, [batch, d_model], and the cache, with room for `room` more.

  The prompts are read in pieces of equal size, at most `run.prefill_chunk` tokens, by one program.
  """
  B, P = prompts_BP.shape
  positions = in_pieces(run, jnp.arange(P) - (P - lengths_B[:, None]), fill=-1)  # below 0 in padding

  def read(cache: Cache, piece: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
    tokens, positions = piece
    segment_ids = (positions >= 0).astype(jnp.int32)
    x_BTD, cache = run.features(params, tokens, jnp.maximum(positions, 0), segment_ids, cache)
    return cache, x_BTD[:, -1]

  length = positions.shape[0] * positions.shape[2] + room
  cache = init_cache(run.config, B, length, run.execution.compute_dtype, run.lookahead)
  cache, last = jax.lax.scan(read, cache, (in_pieces(run, prompts_BP), positions))
  return last[-1], cache


def in_pieces(run: Run, x_BP: jax.Array, fill: int = 0) -> jax.Array:
  """[batch, P] as [pieces, batch, size], with `fill` on the left where P is no multiple of the size."""
  B, P = x_BP.shape
  count = -(-P // run.prefill_chunk)
  size = -(-P // count)
  x_BP = jnp.pad(x_BP, ((0, 0), (count * size - P, 0)), constant_values=fill)
  return x_BP.reshape(B, count, size).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnames=('run',), donate_argnames=('state',))
def decode(run: Run, params: Any, rng: jax.Array, state: State, until: jax.Array) -> State:
  """Generates until every row has ended or the longest has `until` tokens."""
  def step(state: State) -> State:
    tokens_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BN, state.step - 1, 1, axis=1)
    x_B1D, cache = run.features(params, tokens_B1, state.positions_B[:, None], None, state.cache)
    return advance(run, rng, state, cache, run.logits(params, x_B1D)[:, 0])

  return jax.lax.while_loop(lambda state: (state.step < until) & ~state.done_B.all(), step, state)


def advance(run: Run, rng: jax.Array, state: State, cache: Cache, logits_BV: jax.Array) -> State:
  """Chooses the next token of every row that has not ended."""
  positions_B = state.positions_B + 1
  key_of = lambda row, position: jax.random.fold_in(jax.random.fold_in(rng, row), position)
  keys_B = jax.vmap(key_of)(jnp.arange(len(positions_B)), positions_B)
  tokens_B = choose(logits_BV, run.sampling, keys_B, state.seen_BV)
  put = lambda array_BN, new_B: jax.lax.dynamic_update_slice_in_dim(array_BN, new_B[:, None], state.step, axis=1)
  log_probs_BN = state.log_probs_BN
  if run.log_probs:
    chosen_B1 = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)
    log_probs_BN = put(log_probs_BN, chosen_B1[:, 0] - jax.nn.logsumexp(logits_BV, axis=-1))
  stops_B = jnp.isin(tokens_B, jnp.array(run.stop_tokens, jnp.int32))
  return State(cache, state.step + 1, positions_B, state.done_B | stops_B, state.lengths_B + ~state.done_B,
               put(state.tokens_BN, tokens_B), log_probs_BN, mark_seen(state.seen_BV, tokens_B))


# ------------------------------------------------------------------------------------------- on the host
def _start(config, params, prompts, max_new_tokens, sampling, rng, stop_tokens, execution, log_probs, prefill_chunk):
  """Checks the request and reads the prompts."""
  require(prefill_chunk >= 1, 'prefill_chunk', prefill_chunk, f'use 1 or more, such as {PREFILL_CHUNK}')
  request = make_request(config, params, prompts, max_new_tokens, execution)
  run = Run(request.config, request.execution, sampling, stop_tokens, log_probs, prefill_chunk)
  return run, request.params, prefill(run, request.params, rng, request.prompts_BP, request.lengths_B,
                                      bucket(max_new_tokens))


def _collect(state: State, start: int) -> Generated:
  """What was generated from token `start` on."""
  lengths, tokens = fetch(state.lengths_B), fetch(state.tokens_BN)
  log_probs = None if state.log_probs_BN is None else fetch(state.log_probs_BN)
  trim = lambda rows: [row[start:max(start, length)].tolist() for row, length in zip(rows, lengths, strict=True)]
  return Generated(trim(tokens), None if log_probs is None else trim(log_probs))
