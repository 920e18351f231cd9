"""KV-cached generation: a prefill over the prompts, then a loop on the device (`program.py`).

Prompts of different lengths are padded on the left, so that padding never overwrites a token in a rolling cache. The
lengths of the prompts and the number of new tokens are rounded up to buckets, so that a new length seldom compiles a
new program. A new batch size or sampling does.

Shapes: B batch, P prompt time, N new tokens.
"""
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.parts import Rows
from llm_jax.decode.program import PREFILL_CHUNK, Program, State, decode, length_in_pieces, prefill
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
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling
from llm_jax.modules.execution import Execution

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
