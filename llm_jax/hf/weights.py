"""Tensors of Hugging Face checkpoints to our parameters, and back, one tensor at a time."""
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np

from llm_jax import paths
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import Architecture
from llm_jax.hf.families import family_of
from llm_jax.hf.family import Entry, Family, entries
from llm_jax.hf.finite import check_cast
from llm_jax.hf.layouts import Index, Shape, copy, parse, their_shape, to_ours, to_theirs
from llm_jax.hf.mxfp4 import PackedTensor, Tensor
from llm_jax.hf.placement import HostLeaves, Leaves, MeshLeaves, Store
from llm_jax.modules.parameters import parameter_shapes

FLOATS = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))


def params_from_state_dict(config: Architecture, state_dict: Mapping[str, Tensor],
                           mesh: jax.sharding.Mesh | None = None, dtype: Any = 'float32', *,
                           family: Family | None = None, done: Callable[[str], None] = lambda name: None,
                           store: Store | None = None) -> dict[str, Any]:
  """Our parameters: a nested dict, the pattern's blocks stacked along a leading axis.

  Args:
    state_dict: tensors by their names in files of `transformers`, float32, float16 or bfloat16. Names of the decoder
      alone (`h.0.ln_1.weight`) are accepted too.
    mesh: None makes NumPy arrays; else each device of the mesh gets its shard of the tensors.
    dtype: of the parameters. Those that the family never rounds are float32 whatever it says.
    family: whose names these are; None means that of `family_of`.
    done: called with the name of every tensor that will not be read again.
    store: makes of a parameter what is kept of it, such as a quantised weight; only with a mesh.

  Raises:
    ConfigError: lists every tensor that is missing, not known, or of a wrong shape; or names one with numbers that are
      NaN, infinite, or beyond the dtype.
  """
  family = family or family_of(config)
  table, shapes, given = _matched(config, state_dict, family)
  dtypes = {path: np.dtype(dtype) for path in shapes}
  for entry in table:
    if any(family.float32.search(name) for name in entry.names):
      dtypes |= dict.fromkeys(entry.paths, np.dtype(np.float32))
  leaves: Leaves = HostLeaves(shapes, dtypes) if mesh is None else MeshLeaves(shapes, dtypes, mesh, store)
  for entry in table:
    if not entry.copy:
      sizes = entry.shapes(shapes)
      for part, path in enumerate(entry.paths):
        leaves.fill(path, entry.layer, functools.partial(_read, state_dict, given, entry, sizes, part))
    for name in entry.names:
      if name in given:
        done(given[name])
  return flax.traverse_util.unflatten_dict(leaves.finish(), sep='/')


def check_state_dict(config: Architecture, state_dict: Mapping[str, Tensor], family: Family | None = None) -> None:
  """Refuses tensors as `params_from_state_dict` does. It reads values only of tensors that must equal others."""
  _matched(config, state_dict, family)


def state_dict_from_params(config: Architecture, params: Any, *, family: Family | None = None) -> dict[str, np.ndarray]:
  """The inverse: tensors by their names in files of `transformers`, in the parameters' dtype.

  It accepts anything with the shapes of the parameters, such as their gradient.
  """
  return dict(tensors_from_params(config, params, family or family_of(config)))


def tensors_from_params(config: Architecture, params: Any, family: Family) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor) one by one, in the family's order.

  Raises: ConfigError if the parameters are not those of the architecture, before the first tensor.
  """
  leaves, shapes = dict(paths.leaves(params)), parameter_shapes(config)
  wrong = [path for path in sorted(leaves.keys() | shapes.keys())
           if path not in leaves or leaves[path].shape != shapes.get(path)]
  if wrong:
    raise ConfigError('params', wrong, 'these parameters do not belong to the architecture or differ from it in shape')
  for entry in _table(config, family, shapes):
    if entry.written:
      yield from _write(entry, [_layer(leaves[path], entry.layer) for path in entry.paths])


def described_tensors(config: Architecture, family: Family) -> dict[str, Shape]:
  """Names and shapes of the tensors of `tensors_from_params`, in the same order."""
  shapes = parameter_shapes(config)
  described = {}
  for entry in _table(config, family, shapes):
    if entry.written:
      shape = their_shape(entry.layout, entry.shapes(shapes))
      described |= {name: shape for name in entry.names}
  return described


def _table(config: Architecture, family: Family, shapes: Mapping[str, Shape]) -> list[Entry]:
  table = list(entries(config, family, shapes))
  uncovered = sorted(shapes.keys() - {path for entry in table for path in entry.paths})
  if uncovered:
    raise ConfigError('model', uncovered, f'no tensor of a {family.model_type} model holds these parameters')
  return table


# ------------------------------------------------------------------------------------------------ one entry
def _read(tensors: Mapping[str, Tensor], given: Mapping[str, str], entry: Entry, sizes: list[Shape], part: int,
          index: Index, target: np.ndarray) -> None:
  """Fills `target` with the slice `index` of one parameter (of one layer)."""
  numbered = parse(entry.layout).numbered
  if numbered is None:
    _fill(target, tensors, given[entry.names[0]], entry, sizes, part, index)
    return
  within = index[:numbered] + index[numbered + 1:]
  for place, name in enumerate(entry.names[index[numbered]]):
    at = (slice(None),) * numbered + (place,)
    _fill(target[at], tensors, given[name], entry, sizes, part, within)


def _fill(target: np.ndarray, tensors: Mapping[str, Tensor], name: str, entry: Entry, sizes: list[Shape], part: int,
          index: Index) -> None:
  """Fills `target` with the slice `index` of one parameter in the tensor called `name`."""
  tensor = tensors[name]
  if isinstance(tensor, PackedTensor):
    _unpack(target, tensor, name, entry, sizes, part, index)
    return
  tensor = np.asarray(tensor)
  with np.errstate(over='ignore'):
    copy(target, to_ours(tensor, entry.layout, sizes, part, entry.rotary, index))
  check_cast(name, tensor, target)


def _unpack(target: np.ndarray, tensor: PackedTensor, name: str, entry: Entry, sizes: list[Shape], part: int,
            index: Index) -> None:
  """As `_fill`, one number of the first axis (an expert) at a time, so that host memory holds the floats of one."""
  one = [(1, *size[1:]) for size in sizes]
  experts = range(*index[0].indices(tensor.shape[0]))
  for place, expert in enumerate(experts):
    floats, own = tensor.part(expert, expert + 1), target[place:place + 1]
    with np.errstate(over='ignore'):
      copy(own, to_ours(floats, entry.layout, one, part, entry.rotary, (slice(None), *index[1:])))
    check_cast(name, floats, own)


def _write(entry: Entry, parts: list[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  numbered = parse(entry.layout).numbered
  for expert, name in enumerate(entry.names):
    own = parts if numbered is None else [part.take(expert, numbered) for part in parts]
    yield name, to_theirs(own, entry.layout, entry.rotary)


def _layer(leaf: Any, layer: int | None) -> np.ndarray:
  """One layer of a stacked parameter, in host memory; the other layers are not copied."""
  if layer is not None:
    leaf = leaf[layer] if isinstance(leaf, np.ndarray) else _take(leaf, layer)
  return np.asarray(leaf)


_take = jax.jit(lambda leaf, layer: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False))


# ------------------------------------------------------------------------------------------------ checks
def _full_names(family: Family, table: list[Entry], names: Mapping[str, Any]) -> dict[str, str]:
  """Full name -> given name, which may lack the `base_model_prefix`; without the family's buffers."""
  known = (name for entry in table for name in entry.names)
  prefix = family.base_model_prefix
  bare = {name.removeprefix(prefix) for name in known if name.startswith(prefix)} if prefix else set()
  full: dict[str, str] = {}
  for name in names:
    key = prefix + name if name in bare else name
    require(key not in full, 'tensors', name, f'given twice, with and without {prefix}')
    if not family.ignored.search(name):
      full[key] = name
  return full


def _matched(config: Architecture, tensors: Mapping[str, Tensor], family: Family | None
             ) -> tuple[list[Entry], Mapping[str, Shape], dict[str, str]]:
  """Checks that the tensors are the architecture's. Returns the table, our shapes, and full name -> given name."""
  family = family or family_of(config)
  shapes = parameter_shapes(config)
  table = _table(config, family, shapes)
  given = _full_names(family, table, tensors)
  _check(tensors, given, table, shapes)
  return table, shapes, given


def _check(tensors: Mapping[str, Tensor], given: Mapping[str, str], table: list[Entry], shapes: Mapping[str, Shape]
           ) -> None:
  needed, copies = {}, {}
  holders = {entry.paths: entry.names[0] for entry in table if not entry.copy}
  for entry in table:
    shape = their_shape(entry.layout, entry.shapes(shapes))
    needed |= {name: shape for name in entry.names}
    if entry.copy:
      copies[entry.names[0]] = holders[entry.paths]
  _refuse_wrapped(needed, given, copies)
  problems = [f'missing {name} {list(shape)}' for name, shape in needed.items()
              if name not in given and name not in copies]
  for full, name in given.items():
    tensor = tensors[name]
    if full not in needed:
      problems.append(f'extra {name} {list(tensor.shape)}')
    elif tensor.shape != needed[full]:
      hint = ': transposed?' if tensor.shape == needed[full][::-1] else ''
      problems.append(f'{name} is {list(tensor.shape)}, the architecture needs {list(needed[full])}{hint}')
    elif tensor.dtype not in FLOATS:
      problems.append(f'{name} is {tensor.dtype}, use float32, float16 or bfloat16')
    elif full in copies and copies[full] in given and not np.array_equal(tensor, tensors[given[copies[full]]]):
      problems.append(f'{name} differs from {given[copies[full]]}, whose copy it must be')
  if problems:
    raise ConfigError('tensors', f'{len(problems)} do not fit', '; '.join(problems))


# ------------------------------------------------------------------------------------------------ wrappers
LANGUAGE_MODEL = 'from a model of several parts: save its language model and head as a folder of their own'
# What the names of a model have in them that was saved inside of something else, and what to save instead.
WRAPPERS = {
  'module.': 'from DistributedDataParallel: save model.module',
  '_orig_mod.': 'from torch.compile: save model._orig_mod, or the model before it was compiled',
  '_fsdp_wrapped_module.': "from FSDP: save a full state dict, which has the model's own names",
  '_checkpoint_wrapped_module.': 'from activation checkpointing: save the model inside',
  'base_model.model.': 'from PEFT: merge the adapter, model.merge_and_unload().save_pretrained(new)',
  'language_model.': LANGUAGE_MODEL,
  'text_model.': LANGUAGE_MODEL,
}
ADAPTER = re.compile(r'\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer|modules_to_save)\b')


def _refuse_wrapped(needed: Mapping[str, Shape], given: Mapping[str, str], copies: Mapping[str, str]) -> None:
  """Names the wrapper that a model was saved in, where its names say so, instead of every tensor that is not found."""
  missing = {name for name in needed if name not in given and name not in copies}
  adapted = [name for name in given.values() if ADAPTER.search(name)]
  if adapted:
    raise ConfigError('tensors', adapted[0], 'belongs to an adapter of PEFT: merge it into the model first, '
                      'model.merge_and_unload().save_pretrained(new)')
  if not missing:
    return
  found = _wrapper(missing, needed, given)
  if found is None:
    return
  prefix, example = found
  known = [name for name in WRAPPERS if name in prefix]
  hint = WRAPPERS[max(known, key=len)] if known else 'from something that the model was saved in: save the model itself'
  raise ConfigError('tensors', example, f'{prefix!r} in its name is not of the model, but {hint}')


def _wrapper(missing: set[str], needed: Mapping[str, Shape], given: Mapping[str, str]) -> tuple[str, str] | None:
  """What most names of the files have that the missing ones lack, and one of these names; None: nothing.

  It stands in front, or within, as in `model.language_model.layers.0...` of a part and `layers.0._orig_mod...`.
  """
  extra = [name for full, name in given.items() if full not in needed]
  for prefix in WRAPPERS:
    stripped = {name.replace(prefix, ''): name for name in extra if prefix in name}
    matching = [name for bare, name in stripped.items()
                if missing & {bare, f'model.{bare}', f'transformer.{bare}'}]
    if 2 * len(matching) > len(missing):
      return prefix, matching[0]
  some = next(iter(sorted(missing, key=len, reverse=True)))
  for name in extra:
    prefix = name.removesuffix(some)
    wrapped = [each for each in missing if prefix + each in given]
    if prefix != name and 2 * len(wrapped) > len(missing):
      return prefix, name
  return None
