"""KV-cached generation: a prefill over the prompts, then a loop on the device.

Prompts of different lengths are padded on the left, so that padding never overwrites a token in a rolling cache. The
lengths of the prompts and the number of new tokens are rounded up to buckets, so that a new length seldom compiles a
new program. A new batch size or sampling does.

Shapes: B batch, T time, D model width, V vocabulary, P prompt time, N new tokens.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.parts import Rows
from llm_jax.decode.request import (
  bucket,
  check_config,
  check_count,
  check_prompts,
  common_beginning,
  fetch,
  make_choice,
  make_request,
  mesh_of,
)
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling, choose, init_seen, mark_seen
from llm_jax.modules.cache import Cache, init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer

PREFILL_CHUNK = 512
LEAST_SHARED = 32  # tokens that prompts have in common, for which a pass of its own pays
ENDS_CHUNK = 16  # tokens between two questions whether rows have ended
Ends = Callable[[int, list[int]], bool]


@dataclasses.dataclass(frozen=True)
class Generated:
  """The new tokens of each prompt, a stop token included where one ended the row.

  log_probs: float32, of each new token under the model itself (temperature 1, no cuts); None unless requested.
  """
  tokens: list[list[int]]
  log_probs: list[list[float]] | None = None

  @property
  def lengths(self) -> list[int]:
    return [len(row) for row in self.tokens]


def generate(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
             sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *, stop_tokens: Sequence[int] = (),
             execution: Execution | None = None, log_probs: bool = False, prefill_chunk: int = PREFILL_CHUNK,
             samples: int = 1, share_prefix: bool = False, ends: Ends | None = None, log_prob_temperature: float = 1.0,
             first_row: int = 0) -> Generated:
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
    prefill_chunk: the most tokens of a prompt read at a time; bounds the memory of long prompts, the cache aside.
    samples: continuations of each prompt, which is read once for all of them; those of one prompt stand side by side
      in the result. They are what as many equal prompts get.
    share_prefix: read what all prompts begin with, such as the same examples, once; it changes results by rounding.
    ends: (number of the row, its new tokens) -> whether it has ended, such as by the text of a stop sequence. Asked
      every few tokens, so a row may be that much longer.
    log_prob_temperature: log-probabilities are those under softmax(logits / it).
    first_row: the number of the first row, so that a batch draws the same in one call and in several.

  Raises:
    ConfigError: an empty prompt, a token outside the vocabulary, more tokens than the learned positions hold,
      parameters of another model, or an argument of the wrong kind.
  """
  rng, stop_tokens = make_choice(sampling, rng, stop_tokens)

  def run(config: Architecture, prompts: Sequence[Sequence[int]], max_new_tokens: int, samples: int) -> Generated:
    with mesh_of(params):
      program, placed, state = _start(config, params, prompts, max_new_tokens, sampling, rng, stop_tokens, execution,
                                      log_probs, prefill_chunk, samples, log_prob_temperature, first_row, share_prefix)
      if ends is None:
        return _collect(decode(program, placed, rng, state, max_new_tokens), 0)
      return _decode_until(program, placed, rng, state, max_new_tokens, ends)

  check_config(config)
  check_count('samples', samples)
  if not config.switch_lengths:
    return run(config, prompts, max_new_tokens, samples)
  require(ends is None, 'ends', ends, 'a model with LongRoPEScaling reads its texts in parts: cut what it writes')
  require(first_row == 0, 'first_row', first_row, 'a model with LongRoPEScaling reads its texts in parts: use one call')
  checked = check_prompts(config, prompts, max_new_tokens)
  repeated = [prompt for prompt in checked for _ in range(samples)]
  rows = Rows(config, repeated, max_new_tokens, stop_tokens)
  for part in rows.parts():
    found = run(part.config, part.prompts, part.max_new_tokens, 1)
    rows.add(part, found.tokens, found.log_probs)
  return Generated(rows.tokens, rows.log_probs if log_probs else None)


def stream(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
           sampling: Greedy | Sampling = GREEDY, rng: jax.Array | None = None, *, stop_tokens: Sequence[int] = (),
           execution: Execution | None = None, chunk: int = 4, prefill_chunk: int = PREFILL_CHUNK
           ) -> Iterator[list[list[int]]]:
  """`generate` a few tokens at a time: yields every row's next tokens, up to `chunk`, until all rows have ended."""
  rng, stop_tokens = make_choice(sampling, rng, stop_tokens)

  def run(config: Architecture, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[list[int]]]:
    with mesh_of(params):
      program, placed, state = _start(config, params, prompts, max_new_tokens, sampling, rng, stop_tokens, execution,
                                      False, prefill_chunk)
    seen = 0
    while True:
      new = _collect(state, seen).tokens
      yield new
      seen += max(map(len, new), default=0)
      if seen >= max_new_tokens or bool(fetch(state.done_B).all()):
        return
      with mesh_of(params):
        state = decode(program, placed, rng, state, min(seen + chunk, max_new_tokens))

  check_config(config)
  if not config.switch_lengths:
    yield from run(config, prompts, max_new_tokens)
    return
  rows = Rows(config, check_prompts(config, prompts, max_new_tokens), max_new_tokens, stop_tokens)
  for part in rows.parts():
    for new in run(part.config, part.prompts, part.max_new_tokens):
      yield rows.add(part, new)


# ------------------------------------------------------------------------------------------- on the device
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


# ------------------------------------------------------------------------------------------- on the host
def _start(config, params, prompts, max_new_tokens, sampling, rng, stop_tokens, execution, log_probs, prefill_chunk,
           samples=1, log_prob_temperature=1.0, first_row=0, share_prefix=False):
  """Checks the request and reads the prompts."""
  require(prefill_chunk >= 1, 'prefill_chunk', prefill_chunk, f'use 1 or more, such as {PREFILL_CHUNK}')
  request = make_request(config, params, prompts, max_new_tokens, execution)
  program = Program(request.config, request.execution, sampling, stop_tokens, log_probs, prefill_chunk,
                    log_prob_temperature=log_prob_temperature)
  prompts_BP, lengths_B, prefix = request.prompts_BP, request.lengths_B, None
  if share_prefix and sampling.repetition_penalty == 1:  # which looks at all of a prompt
    prompts_BP, lengths_B, prefix = _without_prefix(prompts_BP, lengths_B)
  if prefix is not None:  # rolling caches keep the prefix while padding is read behind it
    program = dataclasses.replace(program, lookahead=length_in_pieces(program, prompts_BP.shape[1]))
  return program, request.params, prefill(program, request.params, rng, prompts_BP, lengths_B, bucket(max_new_tokens),
                                          samples, first_row, prefix)


def _without_prefix(prompts_BP: np.ndarray, lengths_B: np.ndarray
                    ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
  """Prompts padded on the left without what all of them begin with, their lengths, and that beginning, likewise padded;
  None where they have too little in common. Each keeps its last token, which the first new one follows."""
  P = prompts_BP.shape[1]
  rows = [tuple(row[P - length:-1].tolist()) for row, length in zip(prompts_BP, lengths_B, strict=True)]
  beginning = common_beginning(rows)
  if len(rows) == 1 or len(beginning) < LEAST_SHARED:
    return prompts_BP, lengths_B, None
  padded = np.zeros((1, bucket(len(beginning))), np.int32)
  padded[0, -len(beginning):] = beginning
  rest_B = lengths_B - np.int32(len(beginning))
  # What is left of the longest sets the width; before a shorter one stands some of its beginning, which is padding now.
  return prompts_BP[:, -bucket(int(rest_B.max())):], rest_B, (padded, np.array([len(beginning)], np.int32))


def _decode_until(program: Program, params: Any, rng: jax.Array, state: State, max_new_tokens: int, ends: Ends
                  ) -> Generated:
  """`decode`, which rows leave that `ends` says have ended."""
  until = 1
  while True:
    new = _collect(state, 0)
    done_B = fetch(state.done_B) | np.array([ends(row, tokens) for row, tokens in enumerate(new.tokens)])
    if until >= max_new_tokens or done_B.all():
      return new
    until = min(until + ENDS_CHUNK, max_new_tokens)
    # As NumPy has it: one process's own array would be no part of the others'.
    state = decode(program, params, rng, dataclasses.replace(state, done_B=done_B), until)


def _collect(state: State, start: int) -> Generated:
  """The generated tokens from index `start` on."""
  lengths, tokens = fetch(state.lengths_B), fetch(state.tokens_BN)
  log_probs = None if state.log_probs_BN is None else fetch(state.log_probs_BN)
  trim = lambda rows: [row[start:max(start, length)].tolist() for row, length in zip(rows, lengths, strict=True)]
  return Generated(trim(tokens), None if log_probs is None else trim(log_probs))
