"""Unrolls the layers of a decoder, for a loop that runs them many times."""
import dataclasses
import functools
import itertools
from typing import Any

import jax

from llm_jax.config.model.architecture import Architecture
from llm_jax.config.model.count import blocks


def unroll_config(config: Architecture) -> Architecture:
  """The same decoder with all its blocks in `prefix`, so that each layer has its own parameters and its own cache.

  XLA on CPU copies a slice of a stacked array, in every step of the loop.
  """
  return dataclasses.replace(config, prefix=blocks(config))


def unroll_params(config: Architecture, params: Any) -> Any:
  """The parameters of `config`, named as in `unroll_config(config)`. Those outside of the pattern (embedding, head) are
  shared, not copied."""
  rest = {name: tree for name, tree in params.items() if name != 'blocks'}
  return rest | _layers(config, params.get('blocks', {}))


@functools.partial(jax.jit, static_argnames='config')
def _layers(config, stacked):
  # Only the stacked parameters go through this compiled function, because it would copy all others.
  repeated = itertools.product(range(config.repeats), range(len(config.pattern)))
  return {f'prefix_{layer}': jax.tree.map(lambda w, r=repeat: w[r], stacked[f'block_{i}'])
          for layer, (repeat, i) in enumerate(repeated, len(config.prefix))}
