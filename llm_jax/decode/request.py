"""Requests to a decoder: checks and padding on the host, and fetching of the result.

Shapes: B batch, P prompt time.
"""
import contextlib
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.sampling import Greedy, Sampling
from llm_jax.decode.unroll import unroll_config, unroll_params
from llm_jax.modules.execution import Execution
from llm_jax.modules.parameters import check_params

Ids = tuple[int, ...]


class Request(NamedTuple):
  """Prompts, and the decoder as it runs: with its layers unrolled if `execution` says so.

  prompts_BP: int32, padded on the left to a bucket.   lengths_B: int32, how many tokens each prompt has.
  """
  config: Architecture
  params: Any
  execution: Execution
  prompts_BP: np.ndarray
  lengths_B: np.ndarray


def make_request(config: Architecture, params: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int,
                 execution: Execution | None) -> Request:
  """Checks the arguments and pads the prompts.

  Raises:
    ConfigError: prompts that are not lists of token ids, an empty prompt, a token outside the vocabulary, more tokens
      than there are learned positions, texts that grow beyond a length where positions turn otherwise, or parameters of
      another model.
  """
  check_config(config)
  rows = check_prompts(config, prompts, max_new_tokens)
  lengths = np.array([len(prompt) for prompt in rows], np.int32)
  config = _at_length(config, int(lengths.min()), int(lengths.max()) + max_new_tokens - 1)
  decoder = ready(config, params, execution)
  padded = np.zeros((len(rows), bucket(int(lengths.max()))), np.int32)
  for row, prompt in zip(padded, rows, strict=True):
    row[len(row) - len(prompt):] = prompt
  return Request(*decoder, padded, lengths)


class Decoder(NamedTuple):
  """A decoder as it runs, its parameters on the device."""
  config: Architecture
  params: Any
  execution: Execution


def ready(config: Architecture, params: Any, execution: Execution | None) -> Decoder:
  """The decoder with its layers unrolled if `execution` says so.

  Raises:
    ConfigError: parameters of another model, or an `execution` that is none.
  """
  require(execution is None or isinstance(execution, Execution), 'execution', execution,
          "give an Execution, such as Execution(dtype='bfloat16')")
  check_params(config, params)
  params = jax.tree.map(jnp.asarray, params)  # every compiled call would copy NumPy arrays to the device again
  execution = execution or Execution()
  if execution.unrolled:
    config, params = unroll_config(config), unroll_params(config, params)
  return Decoder(config, params, execution)


def check_config(config: Architecture) -> None:
  require(isinstance(config, Architecture), 'config', type(config).__name__,
          'give an Architecture, such as presets.llama(...), or the config of a Transformer')


def check_prompts(config: Architecture, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[np.ndarray]:
  """The prompts as integers, each [tokens]. Raises as `make_request`."""
  check_count('max_new_tokens', max_new_tokens)
  require(np.iterable(prompts), 'prompts', prompts, 'give a list of lists of token ids')
  prompts = prompts if hasattr(prompts, '__len__') else list(prompts)
  require(len(prompts) > 0, 'prompts', prompts, 'give at least one prompt')
  rows = [token_ids(f'prompts[{i}]', prompt) for i, prompt in enumerate(prompts)]
  for i, prompt in enumerate(rows):
    require(len(prompt) > 0, f'prompts[{i}]', [], "give at least one token, such as the tokenizer's end of text")
    for token in (prompt.min(), prompt.max()):
      require(0 <= token < config.vocab_size, f'prompts[{i}]', int(token),
              f'not a token of this model: use 0 to vocab_size - 1 = {config.vocab_size - 1}')
    limit = config.max_length
    require(limit is None or len(prompt) + max_new_tokens <= limit, f'prompts[{i}]', f'{len(prompt)} tokens',
            f'with max_new_tokens={max_new_tokens} it passes the {limit} learned positions: shorten the prompt, or ask '
            'for fewer tokens')
  return rows


def _at_length(config: Architecture, shortest: int, longest: int) -> Architecture:
  """The decoder of texts that are read from `shortest` to `longest` tokens on."""
  crossed = [length for length in config.switch_lengths if shortest <= length < longest]
  require(not crossed, 'max_new_tokens', f'texts of {shortest} to {longest} tokens',
          f'beyond {crossed} tokens LongRoPEScaling turns all of a text otherwise, which generate and stream follow, '
          'and beams and speculation do not: ask for fewer tokens, or give longer prompts')
  return config.at_length(longest)


def check_count(field: str, count: int) -> None:
  require(isinstance(count, numbers.Integral) and count >= 1, field, count, 'use a whole number of 1 or more')


def make_choice(sampling: Greedy | Sampling, rng: jax.Array | None, stop_tokens: Sequence[int]
                ) -> tuple[jax.Array, tuple[int, ...]]:
  """The random key, by default `jax.random.key(0)`, and the stop tokens as plain numbers.

  Raises:
    ConfigError: one of the three has the wrong type.
  """
  require(isinstance(sampling, Greedy | Sampling), 'sampling', sampling,
          'give Greedy() or Sampling(temperature, top_k, top_p, min_p)')
  rng = jax.random.key(0) if rng is None else rng
  dtype, ndim = getattr(rng, 'dtype', None), getattr(rng, 'ndim', None)
  typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  require(ndim == 0 if typed else dtype == np.uint32 and ndim == 1, 'rng', rng,
          'give one random key, such as jax.random.key(0)')
  stop_tokens = list(stop_tokens) if np.iterable(stop_tokens) else stop_tokens  # a set becomes a list
  return rng, tuple(token_ids('stop_tokens', stop_tokens, 'give a list of token ids').tolist())


def token_ids(field: str, prompt: Sequence[int], hint: str = 'give a list of lists of token ids') -> np.ndarray:
  """A prompt as integers [tokens].

  Raises:
    ConfigError: names `field` if the prompt is anything else: text, fractions, one number, a list of lists.
  """
  try:
    ids = np.asarray(prompt)
  except ValueError:  # rows of different lengths
    ids = np.zeros((0, 0))
  require(ids.ndim == 1 and (len(ids) == 0 or np.issubdtype(ids.dtype, np.integer)), field, prompt,
          hint)
  return ids


def common_beginning(texts: Sequence[Ids]) -> Ids:
  """What all texts begin with: what the first and the last of them in order have in common."""
  first, last = min(texts), max(texts)
  length = 0
  while length < min(len(first), len(last)) and first[length] == last[length]:
    length += 1
  return first[:length]


def bucket(length: int) -> int:
  """`length` rounded up: to multiples of 16 up to 64, then to a quarter of the power of two below it."""
  length = int(length)
  step = max(16, 2 ** ((length - 1).bit_length() - 3))
  return -(-length // step) * step


def fetch(x: jax.Array) -> np.ndarray:
  """The whole array; the rows of other processes are gathered first."""
  if not x.is_fully_addressable:
    assert isinstance(x.sharding, jax.sharding.NamedSharding), x.sharding
    whole = jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())
    x = jax.jit(lambda x: x, out_shardings=whole)(x)
  return np.asarray(x)


def mesh_of(params: Any) -> contextlib.AbstractContextManager:
  """A context in which the mesh of the parameters is set, as `constrain` needs it."""
  sharding = getattr(next(iter(jax.tree.leaves(params)), None), 'sharding', None)
  if isinstance(sharding, jax.sharding.NamedSharding):
    assert isinstance(sharding.mesh, jax.sharding.Mesh), sharding.mesh  # of arrays, whose devices are known
    return jax.set_mesh(sharding.mesh)
  return contextlib.nullcontext()
