"""The sharding of every array, as two tables: parameter path -> logical axes, and logical axis -> mesh axis.

No module names a mesh axis. To change a strategy, change its row of `STRATEGIES`; a new parameter needs a row of
`PARAMETER_AXES`.
"""
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax import paths
from llm_jax.blockwise import num_leading
from llm_jax.config.errors import ConfigError
from llm_jax.matrices import matrix_of
from llm_jax.sharding.check import sums_apart

# Table 1: parameter path (regular expression) -> logical axes, without the leading axis `layers` of `blocks/`, which
# `parameter_axes` adds. Biases and norms of size d_model are `vector`, which no strategy splits: they are too small.
PARAMETER_AXES = (
  (r'^embedding/w$',                       ('vocab', 'embed')),
  (r'^positions/w$',                       ('position', 'embed')),
  (r'^head/w$',                            ('vocab', 'embed')),
  (r'^(classifier|reward|value_head)/w$',  ('embed', 'scores')),
  (r'(^|[/_])norm/(scale|bias)$',          ('vector',)),
  (r'/attention/query/w$',                 ('embed', 'heads', 'head_dim')),
  (r'/attention/query/b$',                 ('heads', 'head_dim')),
  (r'/attention/(key|value)/w$',           ('embed', 'kv_heads', 'head_dim')),
  (r'/attention/(key|value)/b$',           ('kv_heads', 'head_dim')),
  (r'/attention/out/w$',                   ('heads', 'head_dim', 'embed')),
  (r'/attention/out/b$',                   ('vector',)),
  (r'/attention/sinks/logit$',             ('heads',)),
  (r'/attention/(query|kv)_down/w$',       ('embed', 'rank')),
  (r'/attention/key_rotary/w$',            ('embed', 'head_dim')),
  (r'/attention/(query|key|value)_up/w$',  ('latent', 'heads', 'head_dim')),
  (r'/feed_forward/router/w$',             ('embed', 'scores')),
  (r'/feed_forward/router/b$',             ('scores',)),
  (r'/feed_forward/balance/bias$',         ('scores',)),
  (r'/feed_forward/experts/(gate|up)/w$',  ('experts', 'embed', 'mlp')),
  (r'/feed_forward/experts/(gate|up)/b$',  ('experts', 'mlp')),
  (r'/feed_forward/experts/down/w$',       ('experts', 'mlp', 'embed')),
  (r'/feed_forward/experts/down/b$',       ('experts', 'vector')),
  (r'^multi_token_\d+/project/w$',         ('embed', 'vector')),
  (r'/feed_forward/(shared/)?(gate|up)/w$', ('embed', 'mlp')),
  (r'/feed_forward/(shared/)?(gate|up)/b$', ('mlp',)),
  (r'/feed_forward/(shared/)?down/w$',     ('mlp', 'embed')),
  (r'/feed_forward/(shared/)?down/b$',     ('vector',)),
)


class Strategy(NamedTuple):
  """The logical axes that one mesh axis splits."""
  parameters: tuple[str, ...]
  activations: tuple[str, ...]


# Table 2: mesh axis -> the logical axes that it splits. Strategies combine: the batch is split over pipeline, data,
# fsdp and expert together, so that devices with different experts or layers do not repeat the rest of the model (see
# `experts.py` and `modules/pipeline.py`).
STRATEGIES = {
  #                    parameters                              activations
  'pipeline': Strategy(('layers',),                            ('batch',)),
  'data':     Strategy((),                                     ('batch',)),
  'fsdp':     Strategy(('embed', 'latent', 'weight_blocks'),   ('batch',)),
  'tensor':   Strategy(('vocab', 'heads', 'kv_heads', 'mlp'),  ('vocab', 'heads', 'kv_heads', 'mlp')),
  'context':  Strategy((),                                     ('seq',)),
  'expert':   Strategy(('experts',),                           ('batch',)),
}

LOGICAL_AXES = ('batch', 'seq', 'layers', 'vocab', 'position', 'embed', 'vector', 'heads', 'kv_heads', 'head_dim',
                'mlp', 'experts', 'scores', 'rank', 'latent', 'weight_blocks')
MAY_BE_WHOLE = ('kv_heads', 'weight_blocks')  # replicated where the mesh axis does not divide them
HOST = 'pinned_host'  # the memory of the host that devices read directly
EIGHT_BITS = ('codes', 'maxima')  # the arrays of a moment in 8 bits
TABLE = 'PARAMETER_AXES in llm_jax/sharding/rules.py'


def parameter_axes(path: str, ndim: int) -> tuple[str, ...]:
  """The logical axes of the parameter at `path`.   Raises: ConfigError if no row covers it."""
  path = path.removeprefix('critic/')  # a decoder of its own, beside the policy's
  axes = _stored_axes(path)
  if axes is None:
    axes = paths.first_match(PARAMETER_AXES, path)
  if axes is None:
    raise ConfigError(path, 'no sharding rule', f'add a row for this parameter to {TABLE}')
  axes = ('layers', *axes) if path.startswith('blocks/') else axes
  if len(axes) != ndim:
    raise ConfigError(path, f'{ndim} dimensions', f'its row of {TABLE} names {len(axes)}: {axes}, make them agree')
  return axes


def _stored_axes(path: str) -> tuple[str, ...] | None:
  """The axes of what an adapter or quantisation stores for a matrix; None for a parameter as it is."""
  layer, _, name = path.rpartition('/')
  weight = layer if layer.endswith('/w') else f'{layer}/w'
  matrix = matrix_of(weight)
  if matrix is None or name in ('w', 'b'):
    return None
  axes = paths.first_match(PARAMETER_AXES, weight) or ()
  num_outputs = len(matrix.outputs)
  inputs, outputs = axes[-num_outputs - len(matrix.inputs):-num_outputs], axes[-num_outputs:]
  experts = axes[:-num_outputs - len(matrix.inputs)]
  # Groups of inputs are split as the inputs would be, unless the outputs are split over the same devices.
  is_split = set(outputs) & set(STRATEGIES['fsdp'].parameters)
  groups = 'vector' if is_split else 'weight_blocks'
  return {
    'lora_a': (*experts, *inputs, 'rank'),
    'lora_b': (*experts, 'rank', *outputs),
    'lora_magnitude': (*experts, *outputs),
    'values': axes,  # of int8
    'scales': (*experts, *('vector' for _ in inputs), *outputs),
    'codes': (*experts, groups, 'vector', *outputs),  # of int4 and nf4
    'group_scales': (*experts, groups, *outputs),  # of int4
    'scale_codes': ('weight_blocks',),  # of nf4
    'scale_maxima': ('vector',),
    'scale_mean': (),
  }.get(name)


def axis_sizes() -> dict[str, int]:
  """The mesh axes of `jax.set_mesh` with their sizes, {} without a mesh. An axis along which `shard_map` already runs
  the code apart splits nothing any more: its size is 1."""
  mesh = jax.sharding.get_abstract_mesh()
  return {axis: 1 if axis in mesh.manual_axes else size for axis, size in mesh.shape.items()}


def replica_axes(sizes: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes along which replicas may sum apart: they split rows and no parameter. See `check.sums_apart`."""
  if not sums_apart(sizes):
    return ()
  return tuple(axis for axis in mesh_axes('batch', 'activations', sizes) if not STRATEGIES[axis].parameters)


def mesh_axes(logical: str, kind: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes of more than one device that split `logical`. kind: 'parameters' or 'activations'."""
  return tuple(axis for axis, strategy in STRATEGIES.items()
               if logical in getattr(strategy, kind) and sizes.get(axis, 1) > 1)


def parameter_spec(logical: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
  """The mesh axis of each dimension of a parameter, None where none splits it or where it does not divide it."""
  spec = []
  for name, size in zip(logical, shape, strict=True):
    axis = next(iter(mesh_axes(name, 'parameters', sizes)), None)
    spec.append(axis if axis is not None and size % sizes[axis] == 0 else None)
  return PartitionSpec(*spec)


def param_shardings(params: Any, mesh: jax.sharding.Mesh) -> Any:
  """A NamedSharding for every leaf of `params` (arrays or shapes).

  Key/value heads and blocks of quantised weights that their mesh axis does not divide are replicated on every device.

  Raises: ConfigError if no row covers a parameter, or a mesh axis does not divide it (`check.check_divides` detects
    that earlier, from the configuration).
  """
  def place(path: str, leaf: Any) -> NamedSharding:
    logical = parameter_axes(path, leaf.ndim)
    spec = parameter_spec(logical, leaf.shape, mesh.shape)
    for name, size, placed in zip(logical, leaf.shape, spec, strict=True):
      axis = next(iter(mesh_axes(name, 'parameters', mesh.shape)), None)
      if axis != placed and name not in MAY_BE_WHOLE:
        raise ConfigError(f'mesh.{axis}', mesh.shape[axis], f'does not divide {name}={size} of {path}')
    return NamedSharding(mesh, spec)

  return paths.map_named(place, params)


def state_shardings(state: Any, params: Any, mesh: jax.sharding.Mesh) -> Any:
  """A NamedSharding for every leaf of `state`: an optimizer's state, or a whole train state.

  A leaf whose path ends in a parameter's path and which has its shape (a moment, an average, the parameter itself) has
  the parameter's sharding, and so have the codes of a moment in 8 bits. The maxima of its blocks have it on the axes
  that they share. Everything else (counters, coefficients) is replicated.
  """
  shapes = {path: leaf.shape for path, leaf in paths.leaves(params)}
  shardings = dict(paths.leaves(param_shardings(params, mesh)))

  def place(path: str, leaf: Any) -> NamedSharding:
    *parts, last = path.split('/')
    parts = parts if last in EIGHT_BITS else [*parts, last]
    for i in range(len(parts)):
      suffix = '/'.join(parts[i:])  # the longest first
      if shapes.get(suffix) == leaf.shape:
        return shardings[suffix]
      if suffix in shapes and last == 'maxima':
        return _shared_axes(shardings[suffix], num_leading(shapes[suffix]))
    return replicated(mesh)

  return paths.map_named(place, state)


def in_host_memory(shardings: Any) -> Any:
  """The same shardings, of arrays in the host's memory."""
  return jax.tree.map(lambda sharding: sharding.with_memory_kind(HOST), shardings)


def has_host_memory(device: Any) -> bool:
  """Whether the device computes with arrays that are kept in the host's memory. A CPU does, and has no other."""
  return HOST in [memory.kind for memory in device.addressable_memories()]


def _shared_axes(sharding: NamedSharding, count: int) -> NamedSharding:
  """The sharding of an array that has the first `count` axes in common with another one."""
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:count]))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """For [batch, time] arrays: sequences over pipeline, data, fsdp and expert, time over context."""
  return NamedSharding(mesh, PartitionSpec(*(mesh_axes(axis, 'activations', mesh.shape) or None
                                             for axis in ('batch', 'seq'))))


def placed(batch: Any, sharding: jax.sharding.Sharding) -> Any:
  """NumPy arrays that every process has whole, on the devices of the sharding."""
  def put(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
  return jax.tree.map(put, batch)


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """States the sharding of an activation: `constrain(x_BTD, 'batch', 'seq', 'embed')`, a name or None per dimension.

  The mesh is that of `jax.set_mesh`. Without a mesh, or on a single device, this returns x itself. A dimension that its
  mesh axes do not divide (one token while decoding, few key/value heads) is not split. Sharding never changes values.
  """
  if len(logical) != x.ndim or not set(logical) <= {None, *LOGICAL_AXES}:
    raise ValueError(f'constrain: {logical} does not name the {x.ndim} dimensions of {x.shape}, use {LOGICAL_AXES}')
  sizes = axis_sizes()
  if math.prod(sizes.values()) == 1:
    return x
  return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, logical, sizes))


def split_counts(shape: tuple[int, ...], *logical: str | None) -> tuple[int, ...]:
  """Over how many devices `constrain` splits each dimension of an array of this shape."""
  sizes = axis_sizes()
  return tuple(math.prod(sizes[axis] for axis in axes) for axes in dividing_axes(shape, logical, sizes))


def activation_spec(shape: tuple[int, ...], logical: tuple[str | None, ...], sizes: Mapping[str, int]) -> PartitionSpec:
  """The mesh axes of each dimension, without those that do not divide it."""
  return PartitionSpec(*(axes or None for axes in dividing_axes(shape, logical, sizes)))


def dividing_axes(shape: tuple[int, ...], logical: tuple[str | None, ...], sizes: Mapping[str, int]
                  ) -> list[tuple[str, ...]]:
  """For each dimension the mesh axes that split it, as many as divide its size."""
  found = []
  for name, size in zip(logical, shape, strict=True):
    candidates = mesh_axes(name, 'activations', sizes) if name else ()
    axes = []
    for axis in candidates:
      if size % sizes[axis] == 0:
        axes.append(axis)
        size //= sizes[axis]
    found.append(tuple(axes))
  return found
