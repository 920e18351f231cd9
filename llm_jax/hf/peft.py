"""Adapters as PEFT has them: `adapter_config.json` and `adapter_model.safetensors`.

A pair of ours, A [*inputs, rank] and B [rank, *outputs], is a pair of PyTorch's linear layers there: lora_A.weight
[rank, inputs] and lora_B.weight [outputs, rank]. Their names are those of the weights beside which they stand.
"""
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from llm_jax import paths
from llm_jax.config.adapters import LoRA
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import Architecture
from llm_jax.hf.families import family_of
from llm_jax.hf.family import Entry, entries
from llm_jax.hf.files import float_type, read_json
from llm_jax.hf.layouts import Shape, parse, to_ours, to_theirs
from llm_jax.hf.tensor_file import TensorFiles
from llm_jax.matrices import matrix_of, split_shape
from llm_jax.modules.low_rank import MAGNITUDE, A, B
from llm_jax.modules.parameters import parameter_shapes

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
PREFIX = 'base_model.model.'  # of PEFT's names, before those of the model
# What an adapter's configuration may say beside what is read, by name: values that change nothing here.
UNUSED: dict[str, tuple[Any, ...]] = {
  'bias': ('none',), 'modules_to_save': (None, []), 'rank_pattern': (None, {}), 'alpha_pattern': (None, {}),
  'layers_to_transform': (None, []), 'layer_replication': (None, []), 'target_parameters': (None, []),
  'trainable_token_indices': (None, []), 'lora_bias': (None, False), 'use_qalora': (None, False),
  'init_lora_weights': (None, True, False, 'gaussian'), 'exclude_modules': (None, []), 'megatron_config': (None,),
  'peft_type': ('LORA',), 'arrow_config': (None,), 'corda_config': (None,), 'eva_config': (None,),
  'use_bdlora': (None, False), 'alora_invocation_tokens': (None,),
}


class Pair(NamedTuple):
  """One adapted weight of one layer.

  name: of its module in files of `transformers`.   path: of our weight.   layer: its number in a stack, or None.
  entry: its row of the family's table.
  """
  name: str
  path: str
  layer: int | None
  entry: Entry


def read_adapter(directory: str | os.PathLike, config: Architecture) -> tuple[LoRA, dict[str, Any]]:
  """An adapter of PEFT for the model of `config`.

  Returns:
    What it is, and its trained arrays, float32 NumPy: `query: {lora_a, lora_b}` beside each adapted weight.

  Raises:
    ConfigError: names the option that is not supported, or the tensors that do not fit the model.
  """
  folder = pathlib.Path(directory)
  values = read_json(folder, CONFIG)
  for name, allowed in UNUSED.items():
    value = values.get(name)
    is_allowed = name not in values or any(value is each or value == each for each in allowed)
    require(is_allowed, f'{folder / CONFIG}: {name}', value,
            f'is not supported: merge the adapter with PEFT, or use {allowed[-1]!r}')
  tensors = TensorFiles([folder / WEIGHTS]) if (folder / WEIGHTS).is_file() else None
  if tensors is None:
    raise ConfigError(str(folder), WEIGHTS, 'is missing: save the adapter with safetensors')
  found = {name.removeprefix(PREFIX).replace('.default.', '.') for name in tensors}
  pairs = [pair for pair in all_pairs(config) if f'{pair.name}.lora_A.weight' in found]
  adapted = {pair.path for pair in pairs}
  pairs = [pair for pair in all_pairs(config) if pair.path in adapted]
  lora = LoRA(rank=values['r'], alpha=float(values['lora_alpha']), dropout=0.0, base='float32',
              targets='|'.join(f'^{re.escape(path)}$' for path in sorted(adapted)),
              rslora=bool(values.get('use_rslora')), dora=bool(values.get('use_dora')))
  needed = dict(tensor for pair in pairs for tensor in described(pair, config, lora))
  given = {name.removeprefix(PREFIX): np.asarray(tensors[name]) for name in tensors}
  problems = [f'missing {name} {list(shape)}' for name, shape in needed.items() if name not in given]
  problems += [f'extra {name} {list(tensor.shape)}' for name, tensor in given.items() if name not in needed]
  problems += [f'{name} is {list(given[name].shape)}, the model needs {list(shape)}'
               for name, shape in needed.items() if name in given and given[name].shape != shape]
  if problems:
    raise ConfigError(str(folder / WEIGHTS), f'{len(problems)} tensors do not fit', '; '.join(problems[:8]))
  return lora, _stack(config, lora, pairs, given)


def write_adapter(directory: str | os.PathLike, config: Architecture, lora: LoRA, trained: Mapping[str, Any], *,
                  base: str = '', dtype: Any = 'float32') -> None:
  """Writes adapters as PEFT does; `peft.PeftModel.from_pretrained(model, directory)` loads them.

  trained: as `read_adapter` returns.   base: name or folder of the model, for whoever loads them.

  Raises:
    ConfigError: adapters of weights that PEFT has in one tensor with others, such as experts.
  """
  import safetensors.numpy
  leaves = paths.flat(trained)
  adapted = {path.removesuffix(A) + 'w' for path in leaves if path.endswith(f'/{A}')}
  pairs = [pair for pair in all_pairs(config) if pair.path in adapted]
  lacking = sorted(adapted - {pair.path for pair in pairs})
  require(not lacking, 'adapters', lacking, 'PEFT has these weights in one tensor with others: merge the adapters, '
          'launch.convert --merge')
  tensors = {}
  for pair in pairs:
    for name, tensor in _written(pair, leaves):
      tensors[PREFIX + name] = np.ascontiguousarray(tensor.astype(float_type(dtype)))
  folder = pathlib.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
  (folder / CONFIG).write_text(json.dumps(peft_config(config, lora, pairs, base), indent=2, sort_keys=True) + '\n')


def peft_config(config: Architecture, lora: LoRA, pairs: list[Pair], base: str) -> dict[str, Any]:
  """The entries of `adapter_config.json`."""
  is_transposed = any(_is_transposed(pair.entry) for pair in pairs)
  return {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base, 'r': lora.rank,
    'lora_alpha': int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha, 'lora_dropout': lora.dropout,
    'target_modules': target_modules(config, pairs), 'use_rslora': lora.rslora, 'use_dora': lora.dora, 'bias': 'none',
    'fan_in_fan_out': is_transposed, 'inference_mode': True, 'init_lora_weights': True, 'modules_to_save': None}


def target_modules(config: Architecture, pairs: list[Pair]) -> list[str]:
  """The last names of the adapted modules; where some modules of such a name are not adapted, the whole names."""
  last = lambda pair: pair.name.rpartition('.')[2]
  adapted = {pair.name for pair in pairs}
  names = {last(pair) for pair in pairs}
  others = {last(pair) for pair in all_pairs(config) if pair.name not in adapted}
  return sorted(names if not names & others else adapted)


# ---------------------------------------------------------------------------------------------- tensors
def all_pairs(config: Architecture) -> Iterator[Pair]:
  """Every matrix that has a tensor of its own in files of `transformers`."""
  shapes = parameter_shapes(config)
  for entry in entries(config, family_of(config), shapes):
    layout = parse(entry.layout)
    is_alone = len(entry.paths) == 1 and layout.numbered is None and '^' not in layout.order
    if is_alone and matrix_of(entry.paths[0]) is not None and entry.names[0].endswith('.weight'):
      yield Pair(entry.names[0].removesuffix('.weight'), entry.paths[0], entry.layer, entry)


def _is_transposed(entry: Entry) -> bool:
  """Whether their weight has the inputs first, as GPT-2's Conv1D."""
  return parse(entry.layout).pieces[0][0] == 0


def _sizes(pair: Pair, config: Architecture) -> tuple[Shape, Shape]:
  """The sizes of the input and of the output axes of the weight."""
  matrix = matrix_of(pair.path)
  assert matrix is not None
  _, inputs, outputs = split_shape(parameter_shapes(config)[pair.path], matrix)
  return inputs, outputs


def described(pair: Pair, config: Architecture, lora: LoRA) -> Iterator[tuple[str, Shape]]:
  """Name and shape of the tensors of one adapted weight."""
  inputs, outputs = _sizes(pair, config)
  yield f'{pair.name}.lora_A.weight', (lora.rank, int(np.prod(inputs)))
  yield f'{pair.name}.lora_B.weight', (int(np.prod(outputs)), lora.rank)
  if lora.dora:
    yield f'{pair.name}.lora_magnitude_vector', (int(np.prod(outputs)),)


def _written(pair: Pair, leaves: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  place = pair.path.removesuffix('w')
  of_layer = lambda leaf: np.asarray(leaf if pair.layer is None else leaf[pair.layer])
  a, b = of_layer(leaves[place + A]), of_layer(leaves[place + B])
  yield f'{pair.name}.lora_A.weight', a.reshape(-1, a.shape[-1]).T
  yield f'{pair.name}.lora_B.weight', _outputs_to_theirs(pair.entry, b)
  if place + MAGNITUDE in leaves:
    magnitude = of_layer(leaves[place + MAGNITUDE])
    yield f'{pair.name}.lora_magnitude_vector', _outputs_to_theirs(pair.entry, magnitude[None])[:, 0]


def _outputs_to_theirs(entry: Entry, b: np.ndarray) -> np.ndarray:
  """[rank, *outputs] of ours as [outputs, rank]."""
  theirs = to_theirs([b.reshape(_like_weight(entry, b.shape))], entry.layout, entry.rotary)
  return theirs.T if _is_transposed(entry) else theirs


def _like_weight(entry: Entry, shape: Shape) -> Shape:
  """[rank, *outputs] as the shape of a weight whose inputs are the rank."""
  matrix = matrix_of(entry.paths[0])
  assert matrix is not None
  return (shape[0], *(1 for _ in matrix.inputs[1:]), *shape[1:])


def _stack(config: Architecture, lora: LoRA, pairs: list[Pair], given: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Our arrays, the layers of a stack along a leading axis."""
  layers: dict[str, list[np.ndarray]] = {}
  for pair in pairs:
    place = pair.path.removesuffix('w')
    inputs, outputs = _sizes(pair, config)
    tensor = lambda kind, pair=pair: given[f'{pair.name}.{kind}'].astype(np.float32)
    layers.setdefault(place + A, []).append(tensor('lora_A.weight').T.reshape(*inputs, lora.rank))
    layers.setdefault(place + B, []).append(_outputs_to_ours(pair.entry, tensor('lora_B.weight'), outputs))
    if lora.dora:
      magnitude = tensor('lora_magnitude_vector')[:, None]
      layers.setdefault(place + MAGNITUDE, []).append(_outputs_to_ours(pair.entry, magnitude, outputs)[0])
  stacked = {}
  for path, arrays in layers.items():
    stacked[path] = np.stack(arrays) if path.startswith('blocks/') else arrays[0]
  return paths.nest(stacked)


def _outputs_to_ours(entry: Entry, theirs: np.ndarray, outputs: Shape) -> np.ndarray:
  """[outputs, rank] of theirs as [rank, *outputs]."""
  shape = (theirs.shape[1], *outputs)
  as_weight = _like_weight(entry, shape)
  theirs = theirs.T if _is_transposed(entry) else theirs
  whole = (slice(None),) * len(as_weight)
  return np.array(to_ours(theirs, entry.layout, [as_weight], 0, entry.rotary, whole)).reshape(shape)
