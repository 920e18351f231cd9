"""Tensors of Hugging Face checkpoints to our parameters, and back."""
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from llm_jax import paths
from llm_jax.config.architecture import Architecture
from llm_jax.config.errors import ConfigError, require
from llm_jax.hf.tables import Entry, Family, entries, family_of
from llm_jax.modules.transformer import Transformer

HEAD = 'lm_head.weight'
FLOATS = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))


def params_from_state_dict(config: Architecture, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Our parameters: a nested dict of float32 NumPy arrays, the pattern's blocks stacked along a leading axis.

  Args:
    state_dict: tensors by their names in `transformers`, float32, float16 or bfloat16; names of the bare decoder
      (`h.0.ln_1.weight`) are understood too.

  Raises:
    ConfigError: listing every missing, extra and misshapen tensor.
  """
  family, shapes = family_of(config), parameter_shapes(config)
  table = _table(config, family, shapes)
  needed = _needed(table, shapes)
  given = _full_names(family, needed, state_dict)
  if config.tied_head and np.array_equal(given.get(HEAD), given.get(family.model[0][1])):
    given.pop(HEAD, None)  # some files repeat the embedding
  _check(given, needed)
  params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
  for entry in table:
    parts = [params[path] if entry.layer is None else params[path][entry.layer] for path in entry.paths]
    widths = [_their_shape(entry.layout, part.shape)[-1] for part in parts]
    for part, tensor in zip(parts, np.split(given[entry.name], np.cumsum(widths[:-1]), axis=-1), strict=True):
      part[...] = _to_ours(tensor, entry.layout, part.shape)
  return flax.traverse_util.unflatten_dict(params, sep='/')


def state_dict_from_params(config: Architecture, params: Any) -> dict[str, np.ndarray]:
  """The inverse: tensors by their names in `transformers`, of the parameters' dtype.

  Serves anything shaped like the parameters, such as their gradient.
  """
  leaves = {path: np.asarray(leaf) for path, leaf in paths.leaves(params)}
  shapes = parameter_shapes(config)
  wrong = [path for path in sorted(leaves.keys() | shapes.keys())
           if path not in leaves or leaves[path].shape != shapes.get(path)]
  if wrong:
    raise ConfigError('params', wrong, 'these parameters do not belong to the architecture or differ from it in shape')
  state_dict = {}
  for entry in _table(config, family_of(config), shapes):
    parts = [leaves[path] if entry.layer is None else leaves[path][entry.layer] for path in entry.paths]
    joined = np.concatenate([_to_theirs(part, entry.layout) for part in parts], axis=-1)
    state_dict[entry.name] = np.ascontiguousarray(joined)
  return state_dict


@functools.cache  # architectures are frozen, tracing one takes a moment
def parameter_shapes(config: Architecture) -> dict[str, tuple[int, ...]]:
  """Shapes by path, without making anything."""
  abstract = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  return {path: leaf.shape for path, leaf in paths.leaves(abstract['params'])}


def _table(config: Architecture, family: Family, shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
  table = list(entries(config, family, shapes))
  uncovered = sorted(shapes.keys() - {path for entry in table for path in entry.paths})
  if uncovered:
    raise ConfigError('model', uncovered, f'no tensor of a {family.model_type} model holds these parameters')
  return table


def _full_names(family: Family, names: Iterable[str], state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """`state_dict` without the family's buffers, its names completed with the base prefix where they lack it."""
  bare = {name.removeprefix(family.base) for name in names if name.startswith(family.base)}
  full = {}
  for name, tensor in state_dict.items():
    key = family.base + name if name in bare else name
    require(key not in full, 'tensors', name, f'given twice, with and without {family.base}')
    if not family.ignored.search(name):
      full[key] = tensor
  return full


def _needed(table: list[Entry], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
  """Shapes of their tensors by name."""
  needed = {}
  for entry in table:
    parts = [shapes[path] if entry.layer is None else shapes[path][1:] for path in entry.paths]
    parts = [_their_shape(entry.layout, part) for part in parts]
    needed[entry.name] = (*parts[0][:-1], sum(part[-1] for part in parts))
  return needed


def _check(given: Mapping[str, np.ndarray], needed: Mapping[str, tuple[int, ...]]) -> None:
  problems = [f'missing {name} {list(shape)}' for name, shape in needed.items() if name not in given]
  for name, tensor in given.items():
    if name not in needed:
      problems.append(f'extra {name} {list(tensor.shape)}')
    elif tensor.shape != needed[name]:
      problems.append(f'{name} is {list(tensor.shape)}, the architecture needs {list(needed[name])}')
    elif tensor.dtype not in FLOATS:
      problems.append(f'{name} is {tensor.dtype}, use float32, float16 or bfloat16')
  if problems:
    raise ConfigError('tensors', f'{len(problems)} do not fit', '; '.join(problems))


# ------------------------------------------------------------------------------------------------ layouts
def _parse(layout: str) -> tuple[list[int], list[list[int]]]:
  """Our axes' indices in the order of theirs, and the same grouped as their axes."""
  ours, _, theirs = layout.partition(' -> ')
  axes, groups, group = ours.split(), [], None
  for word in (theirs or ours).replace('(', '( ').replace(')', ' )').split():
    if word == '(':
      group = []
    elif word == ')':
      groups, group = [*groups, group], None
    elif group is None:
      groups.append([axes.index(word)])
    else:
      group.append(axes.index(word))
  return [axis for group in groups for axis in group], groups


def _their_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(math.prod(shape[axis] for axis in group) for group in _parse(layout)[1])


def _to_theirs(ours: np.ndarray, layout: str) -> np.ndarray:
  return ours.transpose(_parse(layout)[0]).reshape(_their_shape(layout, ours.shape))


def _to_ours(theirs: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray:
  order = _parse(layout)[0]
  return theirs.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
