"""What generation runs on the device: a prefill over the prompts, then a loop that makes a token of every row.

Shapes: B batch, T time, D model width, V vocabulary, P prompt time, N new tokens.
"""
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.sampling import Greedy, Sampling, choose, init_seen, mark_seen
from llm_jax.modules.cache import Cache, init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer

PREFILL_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Program:
  """Everything that a compiled program depends on.   lookahead: see `init_cache`."""
  config: Architecture
  execution: Execution
  sampling: Greedy | Sampling
  stop_tokens: tuple[int, ...]
  log_probs: bool = False
  prefill_chunk: int = PREFILL_CHUNK
  lookahead: int = 0
  log_prob_temperature: float = 1.0

  @property
  def model(self) -> Transformer:
    return Transformer(self.config, self.execution)

  def features(self, params: Any, tokens_BT: jax.Array, positions_BT: jax.Array, segment_ids_BT: jax.Array | None,
               cache: Cache) -> tuple[jax.Array, Cache]:
    """The input of the head for each token, [batch, time, d_model], and the cache with these tokens."""
    x_BTD, cache, _ = self.apply(params, tokens_BT, positions_BT, segment_ids_BT, cache, method='forward')
    return x_BTD, cache

  def logits(self, params: Any, x_BTD: jax.Array) -> jax.Array:
    """float32 [batch, time, vocab]."""
    return self.apply(params, x_BTD, method='logits')

  def apply(self, params: Any, *args: Any, method: str) -> Any:
    """Calls a method of the model. Flax cannot know the type of its result, so the callers state it."""
    return self.model.apply({'params': params}, *args, method=method)


@flax.struct.dataclass
class State:
  """The state of generation. The newest token is in `tokens_BN` but not in the cache yet.

  A row that is done generates on with the others; only its first `lengths_B` tokens count.
  """
  cache: Cache
  step: jax.Array              # int32, tokens generated so far in the longest row
  rows_B: jax.Array            # int32, the number of each row, which its draws depend on
  positions_B: jax.Array       # int32, of the newest token
  done_B: jax.Array            # bool
  lengths_B: jax.Array         # int32, tokens generated so far
  tokens_BN: jax.Array         # int32
  log_probs_BN: jax.Array | None
  seen_BV: jax.Array | None    # bool, tokens in the prompt or generated; None without a penalty


@functools.partial(jax.jit, static_argnames=('program', 'max_new', 'samples'))
def prefill(program: Program, params: Any, rng: jax.Array, prompts_BP: jax.Array, lengths_B: jax.Array, max_new: int,
            samples: int = 1, first_row: int = 0, prefix: tuple[jax.Array, jax.Array] | None = None) -> State:
  """Reads the prompts, padded on the left, and generates the first token of each of their samples.

  max_new: the most new tokens per row.   first_row: the number of the first row.
  prefix: what stands before every prompt, int32 [1, prompt time] padded on the left, and its length, int32 [1].
  """
  cache = None
  start = jnp.int32(0)
  if prefix is not None:
    room = length_in_pieces(program, prompts_BP.shape[1]) + max_new
    _, cache = read_prompts(program, params, *prefix, room)
    cache = cache.select(jnp.zeros(len(prompts_BP), jnp.int32))
    start = prefix[1][0]
  x_BD, cache = read_prompts(program, params, prompts_BP, lengths_B, max_new, cache, start)
  if samples > 1:
    prompt_of_B = jnp.repeat(jnp.arange(len(prompts_BP)), samples)
    cache = cache.select(prompt_of_B)
    x_BD, prompts_BP, lengths_B = x_BD[prompt_of_B], prompts_BP[prompt_of_B], lengths_B[prompt_of_B]
  B, P = prompts_BP.shape
  logits_BV = program.logits(params, x_BD[:, None])[:, 0]
  seen_BV = init_seen(program.sampling, prompts_BP, jnp.arange(P) >= P - lengths_B[:, None], program.config.vocab_size)
  log_probs_BN = jnp.zeros((B, max_new), jnp.float32) if program.log_probs else None
  state = State(cache, jnp.int32(0), first_row + jnp.arange(B), start + lengths_B - 1, jnp.zeros(B, bool),
                jnp.zeros(B, jnp.int32), jnp.zeros((B, max_new), jnp.int32), log_probs_BN, seen_BV)
  return advance(program, rng, state, cache, logits_BV)


def read_prompts(program: Program, params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, max_new: int,
                 cache: Cache | None = None, start: jax.Array | int = 0) -> tuple[jax.Array, Cache]:
  """The features of each prompt's last token, [batch, d_model], and the cache, with free slots for `max_new` tokens.

  The prompts are read in pieces of equal size, at most `program.prefill_chunk` tokens, by one program. With a `cache`
  they stand behind the `start` tokens in it.
  """
  B, P = prompts_BP.shape
  places_BP = jnp.arange(P) - (P - lengths_B[:, None])
  positions = in_pieces(program, jnp.where(places_BP < 0, -1, start + places_BP), fill=-1)  # negative in padding

  def read(cache: Cache, piece: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
    tokens, positions = piece
    segment_ids = (positions >= 0).astype(jnp.int32)
    x_BTD, cache = program.features(params, tokens, jnp.maximum(positions, 0), segment_ids, cache)
    return cache, x_BTD[:, -1]

  if cache is None:
    length = length_in_pieces(program, P) + max_new
    cache = init_cache(program.config, B, length, program.execution.compute_dtype, program.lookahead)
  cache, last = jax.lax.scan(read, cache, (in_pieces(program, prompts_BP), positions))
  return last[-1], cache


def in_pieces(program: Program, x_BP: jax.Array, fill: int = 0) -> jax.Array:
  """[batch, P] as [pieces, batch, size], padded with `fill` on the left."""
  B, P = x_BP.shape
  count = _count_pieces(program, P)
  size = length_in_pieces(program, P) // count
  x_BP = jnp.pad(x_BP, ((0, 0), (count * size - P, 0)), constant_values=fill)
  return x_BP.reshape(B, count, size).swapaxes(0, 1)


def length_in_pieces(program: Program, length: int) -> int:
  """How many slots of a cache `length` tokens take that are read in pieces of equal size."""
  count = _count_pieces(program, length)
  return count * -(-length // count)


def _count_pieces(program: Program, length: int) -> int:
  return -(-length // program.prefill_chunk)


@functools.partial(jax.jit, static_argnames=('program',), donate_argnames=('state',))
def decode(program: Program, params: Any, rng: jax.Array, state: State, until: jax.Array) -> State:
  """Generates until every row has ended or the longest has `until` tokens."""
  def step(state: State) -> State:
    tokens_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BN, state.step - 1, 1, axis=1)
    x_B1D, cache = program.features(params, tokens_B1, state.positions_B[:, None], None, state.cache)
    return advance(program, rng, state, cache, program.logits(params, x_B1D)[:, 0])

  return jax.lax.while_loop(lambda state: (state.step < until) & ~state.done_B.all(), step, state)


def advance(program: Program, rng: jax.Array, state: State, cache: Cache, logits_BV: jax.Array) -> State:
  """Chooses the next token of every row that has not ended."""
  positions_B = state.positions_B + 1
  key_of = lambda row, position: jax.random.fold_in(jax.random.fold_in(rng, row), position)
  keys_B = jax.vmap(key_of)(state.rows_B, positions_B)
  tokens_B = choose(logits_BV, program.sampling, keys_B, state.seen_BV)
  put = lambda array_BN, new_B: jax.lax.dynamic_update_slice_in_dim(array_BN, new_B[:, None], state.step, axis=1)
  log_probs_BN = state.log_probs_BN
  if program.log_probs:
    scaled_BV = logits_BV / program.log_prob_temperature
    chosen_B1 = jnp.take_along_axis(scaled_BV, tokens_B[:, None], axis=-1)
    log_probs_BN = put(log_probs_BN, chosen_B1[:, 0] - jax.nn.logsumexp(scaled_BV, axis=-1))
  stops_B = jnp.isin(tokens_B, jnp.array(program.stop_tokens, jnp.int32))
  return State(cache, state.step + 1, state.rows_B, positions_B, state.done_B | stops_B,
               state.lengths_B + ~state.done_B, put(state.tokens_BN, tokens_B), log_probs_BN,
               mark_seen(state.seen_BV, tokens_B))
