"""Models whose weights are stored in fewer bits, and what that does to their loss."""
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.convert_source import Model
from launch.convert_target import read_tokenizer
from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers.base import opened
from llm_jax.modules.transformer import Transformer
from llm_jax.modules.weight_storage import stored
from llm_jax.objectives.log_probs import sequence_log_probs

SCORED_LENGTH = 512  # tokens a row, or what the model is meant for where that is less
ROWS = 4  # scored at a time


def quantize(model: Model, kind: str) -> Model:
  """The model with the matrices of its blocks as `kind` says: 'int8', 'int4' or 'nf4'; on the host."""
  made = {}
  for path, leaf in paths.flat(model.params).items():
    made[path] = jax.device_get(stored(path, jnp.asarray(leaf, jnp.float32), kind))
  return dataclasses.replace(model, params=paths.nest(made))


def table(models: Mapping[str, Model], text: pathlib.Path | None) -> str:
  """A line for each model: its bytes, and its loss on the text where one is given.

  Raises:
    ConfigError: the text has no token to predict, or the model brings no tokenizer.
  """
  lines = [f'{"weights":10}{"bytes":>16}{"nats a token":>16}{"bits a byte":>14}']
  for name, model in models.items():
    line = f'{name:10}{num_bytes(model.params):>16,}'
    if text is not None:
      score = score_text(model, text)
      line += f'{score.nats_per_token:>16.4f}{score.bits_per_byte:>14.4f}'
    lines.append(line)
  return '\n'.join(lines if text is not None else [line[:26] for line in lines])


def num_bytes(params: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True)
class Score:
  nats_per_token: float
  bits_per_byte: float


def score_text(model: Model, path: pathlib.Path) -> Score:
  """The mean loss of a text, read in rows that do not see each other."""
  tokenizer = read_tokenizer(model)
  if tokenizer is None:
    raise ConfigError('--score', str(path), 'the model brings no tokenizer to read it with: leave --score out')
  text = path.read_text(encoding='utf-8')
  tokens = np.asarray(opened(tokenizer, tokenizer.encode(text)), np.int32)
  batches = rows_of(tokens, min(SCORED_LENGTH, model.config.meant_length or SCORED_LENGTH))
  num_targets = sum(batch.weights.sum() for batch in batches)
  if not num_targets:
    raise ConfigError('--score', str(path), 'has fewer than 2 tokens: name a longer text')
  transformer = Transformer(model.config)
  log_prob = jax.jit(lambda params, batch: sequence_log_probs(transformer, params, batch).sum())
  params = jax.device_put(model.params)
  nats = -sum(float(log_prob(params, batch)) for batch in batches)
  return Score(nats / num_targets, nats / math.log(2) / len(text.encode()))


def rows_of(tokens: np.ndarray, length: int) -> list[LanguageModelBatch]:
  """Batches of rows of at most `length` tokens; the last ones are padded."""
  num_rows = -(-(len(tokens) - 1) // length)
  num_rows += -num_rows % ROWS
  padded = np.zeros(num_rows * length + 1, np.int32)
  padded[:len(tokens)] = tokens
  is_target = np.arange(num_rows * length) < len(tokens) - 1
  positions = np.tile(np.arange(length, dtype=np.int32), (ROWS, 1))
  batches = []
  for first in range(0, num_rows, ROWS):
    part = slice(first * length, (first + ROWS) * length)
    inputs, targets, counts = (each[part].reshape(ROWS, length) for each in (padded[:-1], padded[1:], is_target))
    batches.append(LanguageModelBatch(
      tokens=inputs, targets=targets, weights=counts.astype(np.float32), positions=positions,
      segment_ids=counts.astype(np.int32)))
  return batches
