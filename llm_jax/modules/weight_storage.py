"""How the parameters of a model are stored that are read and not trained: in float32, in bfloat16, or quantised."""
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.matrices import matrix_of
from llm_jax.modules.quantized import Int4Weight, Int8Weight, NF4Weight, QuantizedWeight, is_quantized


def full_shape(w: Any, path: str) -> tuple[int, ...]:
  """The shape of a weight, with the axis of scanned layers where it has one."""
  match w:
    case NF4Weight() | Int4Weight():
      num_layer_axes = w.codes.ndim - len(w.shape) + len(w.matrix.inputs) - 2
      return (*w.codes.shape[:num_layer_axes], *w.shape)
    case _:
      return w.shape


def dense_layers(leaf: Any, path: str) -> jax.Array:
  """A parameter as a float32 array."""
  if not is_quantized(leaf):
    return leaf.astype(jnp.float32)
  if path.startswith('blocks/'):
    return jax.vmap(lambda layer: layer.dense(jnp.float32))(leaf)
  return leaf.dense(jnp.float32)


def stored(path: str, leaf: Any, kind: str) -> Any:
  """A parameter stored as `kind` says: matrices of the blocks quantised, other weights in bfloat16, norms, biases and
  routers in float32.

  leaf: float32, a whole parameter: with the axis of scanned layers where it has one.
  kind: 'float32', 'bfloat16', 'int8', 'int4' or 'nf4'.
  """
  is_weight = re.search(r'(^|/)w$', path) and not path.endswith('/router/w')
  if kind == 'float32' or not is_weight:
    return leaf
  matrix = matrix_of(path)
  if kind == 'bfloat16' or matrix is None:
    return leaf.astype(jnp.bfloat16)

  def quantize(w: jax.Array) -> QuantizedWeight:
    match kind:
      case 'int8':
        return Int8Weight.quantize(w, matrix)
      case 'int4':
        return Int4Weight.quantize(w, matrix)
      case 'nf4':
        return NF4Weight.quantize(w, matrix)
      case _:
        raise ValueError(f'no weight is stored as {kind}')
  return jax.vmap(quantize)(leaf) if path.startswith('blocks/') else quantize(leaf)


def assembled(params: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Parameters whose quantised weights were saved as the arrays that they are made of, as quantised weights again.

  params: a nested dict of arrays.   shapes: of the model's parameters, by path.
  """
  flat = paths.flat(params)
  whole = {path: leaf for path, leaf in flat.items() if path in shapes or not _is_part(path)}
  for path, shape in shapes.items():
    if path not in flat:
      parts = {name.removeprefix(f'{path}/'): leaf for name, leaf in flat.items() if name.startswith(f'{path}/')}
      if parts:
        whole[path] = _assembled(path, parts, shape)
  return paths.nest(whole)


def expanded(params: Mapping[str, Any]) -> dict[str, Any]:
  """All parameters as float32 arrays."""
  return paths.nest({path: dense_layers(leaf, path) for path, leaf in paths.flat(params).items()})


def _is_part(path: str) -> bool:
  return '/w/' in path


def _assembled(path: str, parts: Mapping[str, Any], shape: tuple[int, ...]) -> QuantizedWeight:
  matrix = matrix_of(path)
  assert matrix is not None
  of_layer = shape[1:] if path.startswith('blocks/') else shape
  if 'values' in parts:
    return Int8Weight(**parts)
  kind = Int4Weight if 'group_scales' in parts else NF4Weight
  return kind(**parts, shape=of_layer, matrix=matrix)


def is_stored_quantized(params: Mapping[str, Any]) -> bool:
  """Whether parameters as they were saved have quantised weights."""
  return any(_is_part(path) for path in paths.flat(params))
