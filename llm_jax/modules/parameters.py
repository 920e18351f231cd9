"""The parameters that a decoder has, and the check that given ones are its own."""
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.modules.low_rank import Adapter
from llm_jax.modules.quantized import is_quantized
from llm_jax.modules.transformer import Transformer
from llm_jax.modules.weight_storage import full_shape

MAIN = re.compile(r'(embedding|positions|prefix_\d+|blocks|final_norm|head)/')  # the parameters that the logits read


@functools.cache  # architectures are frozen, and tracing one takes about a second
def parameter_shapes(config: Architecture) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter by its path; no array is made."""
  abstract = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  return {path: leaf.shape for path, leaf in paths.leaves(abstract['params'])}


def check_params(config: Architecture, params: Mapping[str, Any]) -> None:
  """Refuses parameters of another decoder.

  Matrices may be quantised, and have adapters. There may be more parameters that the decoder's logits do not read: a
  classifier's head, or multi-token blocks.

  Raises:
    ConfigError: names the first parameter that is missing, unknown, of another shape, or not a floating-point array.
  """
  require(isinstance(params, Mapping), 'params', type(params).__name__,
          'give the parameters, a nested dict of arrays as Transformer.init makes it')
  require(set(params) != {'params'}, 'params', ['params'], "give what stands below it: params['params']")
  shapes, found = parameter_shapes(config), paths.flat(params)
  found = {path: leaf for path, leaf in found.items() if not isinstance(leaf, Adapter)}
  for path, shape in shapes.items():
    leaf = found.get(path)
    hint = f'the configuration has {shape} here: give the configuration and the parameters of one model'
    if leaf is None:
      require(not MAIN.match(path), f'params/{path}', 'missing', hint)
      continue
    given = full_shape(leaf, path) if hasattr(leaf, 'shape') else leaf
    require(given == shape, f'params/{path}', given, hint)
    is_float = is_quantized(leaf) or jnp.issubdtype(leaf.dtype, jnp.floating)
    require(is_float, f'params/{path}', '' if is_quantized(leaf) else str(leaf.dtype), 'use floating-point numbers')
  for path in found:
    require(path in shapes or not MAIN.match(path), f'params/{path}', getattr(found[path], 'shape', None),
            'the configuration has no such parameter: give the configuration and the parameters of one model')
