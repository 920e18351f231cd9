"""Checks that a mesh fits the devices, the model and the batch: arithmetic over the configuration, without jax."""
import math
from collections.abc import Mapping

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import Architecture, LatentAttention, MixtureOfExperts
from llm_jax.config.run import Mesh


def mesh_sizes(mesh: Mesh, num_devices: int) -> dict[str, int]:
  """The number of devices along each mesh axis, in the mesh's order. An axis of -1 gets all devices that are left.

  Raises: ConfigError if the axes do not multiply to `num_devices`.
  """
  sizes = mesh.sizes
  free_axis = next((axis for axis, size in sizes.items() if size == -1), None)
  product = math.prod(size for size in sizes.values() if size != -1)
  fits = num_devices % product == 0 if free_axis else num_devices == product
  if not fits:
    # Most likely the wrong one; of equal sizes the one that stands first in the configuration.
    largest = max((axis for axis in sizes if axis != free_axis), key=lambda axis: (sizes[axis], axis != 'pipeline'))
    given = ' x '.join(f'{name}={size}' for name, size in sizes.items() if size > 1) or 'a mesh of 1'
    must = 'must multiply to' if free_axis is None else f'and with {free_axis}=-1 must divide'
    raise ConfigError(f'mesh.{largest}', sizes[largest], f'{given} {must} the number of devices, {num_devices}')
  return sizes if free_axis is None else {**sizes, free_axis: num_devices // product}


def sums_apart(sizes: Mapping[str, int]) -> bool:
  """Whether replicas of the parameters may sum the gradients of several microbatches apart, before they are reduced.

  Beside axes that split more than rows and parameters, XLA's partitioner ends the process where some axes are manual,
  with "Check failed: partition_group_list".
  """
  return all(sizes.get(axis, 1) == 1 for axis in ('tensor', 'context', 'expert'))


def row_shards(architecture: Architecture, mesh: Mesh, num_devices: int | None = None) -> int:
  """How many devices share the sequences of a batch. num_devices: see `check_divides`."""
  sizes = _sizes(mesh, num_devices)
  return math.prod(sizes[axis] for axis in _row_axes(architecture))


def check_divides(architecture: Architecture, mesh: Mesh, batch_size: int, seq_len: int,
                  num_devices: int | None = None, microbatches: int = 1, stage: str | None = None) -> None:
  """Refuses a mesh whose axes do not divide the sizes that `rules.STRATEGIES` splits over them.

  Key/value heads are exempt. Where `tensor` does not divide them (two key/value heads over tensor=4), every device
  keeps all of them. That costs little, because grouped-query attention has few.

  Args:
    batch_size: sequences per step over all devices; each of the `microbatches` must split over data x fsdp x expert x
      pipeline.
    seq_len: tokens per sequence; each device on the context axis holds two chunks of it (`context_split.py`).
    num_devices: over all processes. None means not known yet; an axis of -1 is then not checked.
    stage: the name of the stage that has this batch, for the message.

  Raises: ConfigError that names the mesh axis, its size and the size that it does not divide.
  """
  sizes = _sizes(mesh, num_devices)
  _check_model(architecture, sizes)
  _check_sequence(seq_len, sizes, stage)
  _check_batch(architecture, batch_size, microbatches, sizes)
  if mesh.pipeline > 1:
    _check_pipeline(architecture, mesh, batch_size // microbatches, sizes)


def _check_model(architecture: Architecture, sizes: dict[str, int]) -> None:
  for axis, what, size in _split_sizes(architecture):
    require(size % sizes[axis] == 0, f'mesh.{axis}', sizes[axis],
            f'mesh {axis}={sizes[axis]} does not divide {what}={size}, use a divisor, such as '
            f'{math.gcd(size, sizes[axis])}, or {what}={math.ceil(size / sizes[axis]) * sizes[axis]}')


def _split_sizes(architecture: Architecture) -> list[tuple[str, str, int]]:
  """(mesh axis, field, size) of everything in the model that a mesh axis must divide."""
  split = [('fsdp', 'd_model', architecture.d_model), ('tensor', 'vocab_size', architecture.vocab_size),
           ('pipeline', 'the repeats of the layers', architecture.repeats)]
  for block in (*architecture.prefix, *architecture.pattern, *architecture.multi_token):
    attention, layer = block.attention, block.feed_forward
    split.append(('tensor', 'num_heads', attention.num_heads))
    if isinstance(attention, LatentAttention):
      split += [('fsdp', 'kv_rank', attention.kv_rank), ('fsdp', 'q_rank', attention.q_rank or 0)]
    if isinstance(layer, MixtureOfExperts):
      split.append(('expert', 'num_experts', layer.num_experts))
      dense = [layer.expert] if layer.shared is None else [layer.expert, layer.shared]
    else:
      dense = [layer]
    split += [('tensor', 'd_ff', feed_forward.width(architecture.d_model)) for feed_forward in dense]
  return split


def _check_sequence(seq_len: int, sizes: dict[str, int], stage: str | None) -> None:
  chunks = 2 * sizes['context'] if sizes['context'] > 1 else 1
  of_stage = '' if stage is None else f' of stage {stage!r}'
  require(seq_len % chunks == 0, 'mesh.context', sizes['context'],
          f'mesh context={sizes["context"]} cuts every sequence into {chunks} chunks, which do not divide '
          f'seq_len={seq_len}{of_stage}, use seq_len={math.ceil(seq_len / chunks) * chunks}, or another mesh')


def _check_batch(architecture: Architecture, batch_size: int, microbatches: int, sizes: dict[str, int]) -> None:
  axes = _row_axes(architecture)
  require('expert' in axes or sizes['expert'] == 1, 'mesh.expert', sizes['expert'],
          'the model has no experts to split, use 1')
  copies = math.prod(sizes[axis] for axis in axes)
  rows = batch_size // microbatches
  axis = next((axis for axis in axes if sizes[axis] > 1), 'data')
  named = ' x '.join(axis for axis in axes if axis != 'pipeline' or sizes[axis] > 1)
  require(rows % copies == 0, f'mesh.{axis}', sizes[axis],
          f'{named} = {copies} does not divide the {rows} sequences of a microbatch '
          f'(batch_size={batch_size}, microbatches={microbatches}), use '
          f'batch_size={math.ceil(rows / copies) * copies * microbatches}')


def _check_pipeline(architecture: Architecture, mesh: Mesh, rows: int, sizes: dict[str, int]) -> None:
  """rows: of a microbatch of the step, which is cut into the pieces of the pipeline."""
  require(architecture.repeats > 0, 'mesh.pipeline', mesh.pipeline, 'the model has no repeated layers to split, use 1')
  require(architecture.dropout == 0, 'mesh.pipeline', mesh.pipeline,
          f'the stages of a pipeline draw no dropout, and the model has dropout={architecture.dropout}: use 1, or no '
          'dropout')
  require(not architecture.depends_on_microbatches, 'mesh.pipeline', mesh.pipeline,
          'a router of the model balances the experts over a microbatch by itself, which the pieces of a pipeline '
          "would change: use 1, or balance_over='step'")
  shards = math.prod(sizes[axis] for axis in _row_axes(architecture) if axis != 'pipeline')
  require(rows % (shards * mesh.pieces) == 0, 'mesh.pipeline_microbatches', mesh.pieces,
          f'{mesh.pieces} pieces on each of {shards} groups of devices do not divide the {rows} sequences of a '
          f'microbatch: use {math.ceil(rows / shards / mesh.pieces) * shards * mesh.pieces} sequences, or fewer pieces')


def _sizes(mesh: Mesh, num_devices: int | None) -> dict[str, int]:
  if num_devices is None:
    return {axis: max(size, 1) for axis, size in mesh.sizes.items()}
  return mesh_sizes(mesh, num_devices)


def _row_axes(architecture: Architecture) -> tuple[str, ...]:
  """The mesh axes over which the sequences of a batch are split."""
  blocks = (*architecture.prefix, *architecture.pattern, *architecture.multi_token)
  routed = any(isinstance(block.feed_forward, MixtureOfExperts) for block in blocks)
  return ('data', 'fsdp', 'expert', 'pipeline') if routed else ('data', 'fsdp', 'pipeline')
