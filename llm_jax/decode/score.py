"""Log-probabilities of given continuations: what multiple-choice questions and perplexities are made of.

Shapes: B batch, T time, D model width, V vocabulary, P prompt time, N new tokens, L chunk of time.
"""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.program import Program, in_pieces, length_in_pieces, read_prompts
from llm_jax.decode.request import Ids, bucket, check_config, check_count, fetch, mesh_of, ready, token_ids
from llm_jax.decode.sampling import GREEDY
from llm_jax.decode.score_plan import Batch, make_batches, make_rows
from llm_jax.modules.cache import Cache, init_cache
from llm_jax.modules.execution import Execution
from llm_jax.runtime.processes import agree

BATCH_SIZE = 16
LOGITS_BYTES = 2**26  # of float32 logits that exist at once
LEAST = 8  # the smallest bucket of scored tokens


@dataclasses.dataclass(frozen=True)
class Scored:
  """A continuation behind its context.

  log_probs: of each of its tokens, in nats.
  is_largest: whether the model finds no other token likelier in its place.
  """
  log_probs: tuple[float, ...]
  is_largest: tuple[bool, ...]

  @property
  def total(self) -> float:
    """The log-probability of the whole continuation."""
    return float(np.sum(self.log_probs))

  @property
  def is_greedy(self) -> bool:
    """Whether greedy decoding writes it."""
    return all(self.is_largest)


def score(config: Architecture, params: Any, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]],
          *, execution: Execution | None = None, batch_size: int = BATCH_SIZE, share_prefixes: bool = True,
          heartbeat: Callable[[], None] = lambda: None) -> list[Scored]:
  """Scores every continuation behind its context.

  Texts that are equal but for their last token are read once. What the texts of a batch have in common, such as the
  examples before every question, is read once too, and the rest of each behind it, out of the cache.

  Args:
    config, params, execution: as in `generate`.
    contexts: token ids, at least one each.
    continuations: one for each context, at least one token each.
    batch_size: texts that are read at a time. It changes results only by rounding.
    share_prefixes: whether common beginnings are read once.
    heartbeat: called before every batch.

  Raises:
    ConfigError: names a request that is empty, has a token outside the vocabulary, or is longer than the learned
      positions; or, with several processes, requests that are not the same on all of them.
  """
  check_config(config)
  check_count('batch_size', batch_size)
  before, behind = check_requests(config, contexts, continuations)
  if not before:
    return []
  if jax.process_count() > 1:
    agree('contexts', repr((before, behind)))
  plan = list(make_batches(config, make_rows(before, behind), batch_size, share_prefixes))
  found: dict[int, Scored] = {}
  with mesh_of(params):
    prepared = ready(config, params, execution)
    for batch in plan:
      heartbeat()
      size = batch_size if len(plan) > 1 else len(batch.rows)
      longest = max(len(row.ids) for row in batch.rows)
      program = Program(prepared.config.at_length(longest), prepared.execution, GREEDY, ())
      found |= score_batch(program, prepared.params, batch, size)
  return [found[i] for i in range(len(before))]


def check_requests(config: Architecture, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
                   ) -> tuple[list[Ids], list[Ids]]:
  """Contexts and continuations as plain numbers. Raises as `score`."""
  require(len(contexts) == len(continuations), 'continuations', len(continuations),
          f'give one for each of the {len(contexts)} contexts')
  before = [_checked(config, f'contexts[{i}]', ids) for i, ids in enumerate(contexts)]
  behind = [_checked(config, f'continuations[{i}]', ids) for i, ids in enumerate(continuations)]
  limit = config.max_length
  for i, (context, continuation) in enumerate(zip(before, behind, strict=True)):
    length = len(context) + len(continuation) - 1
    require(limit is None or length <= limit, f'contexts[{i}]', f'{length} tokens with the continuation',
            f'the model has {limit} learned positions: shorten it')
  return before, behind


def _checked(config: Architecture, name: str, ids: Sequence[int]) -> Ids:
  row = token_ids(name, ids, 'give a list of token ids')
  require(len(row) > 0, name, [], 'give at least one token')
  for token in (row.min(), row.max()):
    require(0 <= token < config.vocab_size, name, int(token),
            f'not a token of this model: use 0 to vocab_size - 1 = {config.vocab_size - 1}')
  return tuple(row.tolist())


# ------------------------------------------------------------------------------------------- one batch
def score_batch(program: Program, params: Any, batch: Batch, size: int) -> dict[int, Scored]:
  """The results of a batch by request. size: rows of its arrays, those that it lacks are padding."""
  width = bucket_of_scored(max(row.count for row in batch.rows))
  tokens = np.zeros((size, batch.suffix_length), np.int32)
  lengths = np.ones(size, np.int32)  # a row of padding has one token
  starts = np.zeros(size, np.int32)
  prefix_of = np.zeros(size, np.int32)
  places = np.zeros((size, width), np.int32)
  targets = np.zeros((size, width), np.int32)
  for i, row in enumerate(batch.rows):
    start = batch.start(i)
    rest = row.ids[start:]
    padding = batch.suffix_length - len(rest)
    tokens[i, padding:] = rest
    lengths[i], starts[i] = len(rest), start
    prefix_of[i] = batch.prefix_of[i] if batch.prefixes else 0
    wanted = [(place, target) for one in row.wanted for place, target in enumerate(one.targets, one.first)]
    places[i, :len(wanted)] = [padding + place - start for place, _ in wanted]
    targets[i, :len(wanted)] = [target for _, target in wanted]
  cache = None
  is_in_pieces = batch.suffix_length > program.prefill_chunk
  if batch.prefixes and is_in_pieces:  # rolling caches keep the prefix while pieces of padding are read behind it
    program = dataclasses.replace(program, lookahead=length_in_pieces(program, batch.suffix_length))
  if batch.prefixes:
    cache = read_prefixes(program, params, *_padded(batch), prefix_of, batch.suffix_length)
  result = _scored(program, params, cache, tokens, lengths, starts, places, targets)
  return _by_request(batch, *map(fetch, result))


def bucket_of_scored(count: int) -> int:
  """The number of scored tokens rounded up: most choices are shorter than the smallest bucket of texts."""
  return LEAST if count <= LEAST else bucket(count)


def _padded(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
  """The prefixes padded on the left, and their lengths."""
  padded = np.zeros((len(batch.prefixes), batch.prefix_length), np.int32)
  for row, prefix in zip(padded, batch.prefixes, strict=True):
    row[len(row) - len(prefix):] = prefix
  return padded, np.array([len(prefix) for prefix in batch.prefixes], np.int32)


def _by_request(batch: Batch, log_probs_BN: np.ndarray, is_largest_BN: np.ndarray) -> dict[int, Scored]:
  found = {}
  for row, log_probs, is_largest in zip(batch.rows, log_probs_BN, is_largest_BN, strict=False):  # then padding
    at = 0
    for wanted in row.wanted:
      part = slice(at, at + len(wanted.targets))
      found[wanted.request] = Scored(tuple(log_probs[part].tolist()), tuple(is_largest[part].tolist()))
      at = part.stop
  return found


# ------------------------------------------------------------------------------------------- on the device
@functools.partial(jax.jit, static_argnames=('program', 'suffix_length'))
def read_prefixes(program: Program, params: Any, prefixes_BP: jax.Array, lengths_B: jax.Array, prefix_of: jax.Array,
                  suffix_length: int) -> Cache:
  """The cache of rows that go on from the prefixes, with free slots for `suffix_length` tokens.

  prefix_of: int32, for each row its prefix.
  """
  _, cache = read_prompts(program, params, prefixes_BP, lengths_B, length_in_pieces(program, suffix_length))
  return cache.select(prefix_of)


@functools.partial(jax.jit, static_argnames=('program',))
def _scored(program: Program, params: Any, cache: Cache | None, tokens_BT: jax.Array, lengths_B: jax.Array,
            starts_B: jax.Array, places_BN: jax.Array, targets_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
  """float32 log-probability of each target, and whether its logit is the largest, both [batch, new].

  tokens_BT: padded on the left; lengths_B of them count, of which the first is at position starts_B.
  places_BN: indices of the tokens that the targets follow.
  """
  B, T = tokens_BT.shape
  places_BT = jnp.arange(T) - (T - lengths_B[:, None])
  positions_BT = jnp.where(places_BT < 0, -1, starts_B[:, None] + places_BT)
  if cache is None:
    cache = init_cache(program.config, B, length_in_pieces(program, T), program.execution.compute_dtype)
  x_BTD = _features(program, params, cache, tokens_BT, positions_BT)
  x_BND = jnp.take_along_axis(x_BTD, places_BN[..., None], axis=1)
  return _log_probs(program, params, x_BND, targets_BN)


def _log_probs(program: Program, params: Any, x_BND: jax.Array, targets_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
  """As `_scored`, a chunk of the targets at a time, so that the logits of all of them never exist."""
  B, N = targets_BN.shape
  chunk = min(N, max(1, LOGITS_BYTES // (4 * B * program.config.vocab_size)))
  count = -(-N // chunk)

  def cut(array: jax.Array) -> jax.Array:
    """[B, N, ...] -> [chunks, B, chunk, ...], padded with zeros."""
    padding = [(0, 0), (0, count * chunk - N), *[(0, 0)] * (array.ndim - 2)]
    return jnp.moveaxis(jnp.pad(array, padding).reshape(B, count, chunk, *array.shape[2:]), 1, 0)

  def join(array: jax.Array) -> jax.Array:
    return jnp.moveaxis(array, 0, 1).reshape(B, -1)[:, :N]

  def of_chunk(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    x_BLD, targets_BL = inputs
    logits_BLV = program.logits(params, x_BLD)
    chosen_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
    return chosen_BL - jax.nn.logsumexp(logits_BLV, axis=-1), chosen_BL >= logits_BLV.max(-1)

  log_probs, is_largest = jax.lax.map(of_chunk, (cut(x_BND), cut(targets_BN)))
  return join(log_probs), join(is_largest)


def _features(program: Program, params: Any, cache: Cache, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
  """The input of the head for every token, read in pieces."""
  def read(cache: Cache, piece: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
    tokens, positions = piece
    is_token = (positions >= 0).astype(jnp.int32)
    x_BTD, cache = program.features(params, tokens, jnp.maximum(positions, 0), is_token, cache)
    return cache, x_BTD

  B, T = tokens_BT.shape
  inputs = in_pieces(program, tokens_BT), in_pieces(program, positions_BT, fill=-1)
  _, pieces = jax.lax.scan(read, cache, inputs)
  return pieces.swapaxes(0, 1).reshape(B, -1, pieces.shape[-1])[:, -T:]
