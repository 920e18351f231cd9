"""Texts as vectors by a language model of ours: the mean of its last states.

Shapes: B batch, T time, D model width.
"""
import collections
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.model.architecture import Architecture
from llm_jax.data.tokenizers.base import Tokenizer, opened
from llm_jax.decode.request import bucket, fetch, mesh_of, ready
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer

FORMAT = 1  # raise it when other vectors come out of the same model
BATCH_SIZE = 16


class OwnStates:
  """The mean over a text's tokens of what the model's head reads.

  Args:
    weights: what tells the parameters from others, such as the checksum of their checkpoint.
    longest: tokens of a text that are read; the rest is left out.
  """
  name = 'states'

  def __init__(self, config: Architecture, params: Any, tokenizer: Tokenizer, weights: str, longest: int,
               execution: Execution | None = None, batch_size: int = BATCH_SIZE):
    self._config, self._params, self._execution = config, params, execution
    self._tokenizer, self._longest, self._batch_size = tokenizer, longest, batch_size
    self.fingerprint = states_fingerprint(weights, tokenizer, longest)

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, d_model]."""
    ids = [opened(self._tokenizer, self._tokenizer.encode(text))[:self._longest] or [self._tokenizer.eot]
           for text in texts]
    found = np.zeros((len(ids), self._config.d_model), np.float32)
    with mesh_of(self._params):
      decoder = ready(self._config, self._params, self._execution)
      for config, places in self._batches(decoder.config, [len(of_text) for of_text in ids]):
        model = Transformer(config, decoder.execution)
        found[places] = self._of_batch(model, decoder.params, [ids[place] for place in places])
    return found

  def _batches(self, config: Architecture, lengths: Sequence[int]) -> Iterator[tuple[Architecture, list[int]]]:
    """Texts of one decoder (`Architecture.at_length`), nearly equal lengths side by side, which takes less padding."""
    by_decoder: dict[Architecture, list[int]] = collections.defaultdict(list)
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
      by_decoder[config.at_length(lengths[place])].append(place)
    for of_decoder, places in by_decoder.items():
      for start in range(0, len(places), self._batch_size):
        yield of_decoder, places[start:start + self._batch_size]

  def _of_batch(self, model: Transformer, params: Any, ids: Sequence[Sequence[int]]) -> np.ndarray:
    tokens = np.zeros((self._batch_size, bucket(len(ids[-1]))), np.int32)
    lengths = np.ones(self._batch_size, np.int32)  # a row of padding has one token
    for row, of_text in enumerate(ids):
      tokens[row, :len(of_text)] = of_text
      lengths[row] = len(of_text)
    return fetch(mean_states(model, params, tokens, lengths))[:len(ids)]


def states_fingerprint(weights: str, tokenizer: Tokenizer, longest: int) -> str:
  """Of the vectors of `OwnStates` with these arguments."""
  return hashlib.sha256(f'states {FORMAT} {weights} {tokenizer.fingerprint} {longest}'.encode()).hexdigest()


@functools.partial(jax.jit, static_argnames=('model',))
def mean_states(model: Transformer, params: Any, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
  """float32 [batch, d_model], over the first `lengths_B` tokens of each row."""
  is_token_BT = jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]
  segment_ids_BT = is_token_BT.astype(jnp.int32)
  found: Any = model.apply({'params': params}, tokens_BT, None, segment_ids_BT, None, method='forward')
  x_BTD = found[0].astype(jnp.float32) * is_token_BT[..., None]
  return x_BTD.sum(1) / lengths_B[:, None]
