"""The layers of a decoder written out, for a loop that runs them many times."""
import dataclasses
import functools
from typing import Any

import jax

from llm_jax.config.architecture import Architecture
from llm_jax.config.count import blocks


def unroll_config(config: Architecture) -> Architecture:
  """The same decoder with all its blocks in `prefix`, so that each layer has its own parameters and its own cache.

  A slice of a stacked array is a copy for XLA on CPU, made in every step of the loop.
  """
  return dataclasses.replace(config, prefix=blocks(config))


@functools.partial(jax.jit, static_argnames='config')
def unroll_params(config: Architecture, params: Any) -> Any:
  """The parameters of `config` as `unroll_config(config)` names them."""
  unrolled = {name: tree for name, tree in params.items() if name != 'blocks'}
  for repeat in range(config.repeats):
    for i in range(len(config.pattern)):
      layer = len(config.prefix) + repeat * len(config.pattern) + i
      unrolled[f'prefix_{layer}'] = jax.tree.map(lambda w, r=repeat: w[r], params['blocks'][f'block_{i}'])
  return unrolled
