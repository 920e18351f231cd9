"""Whether a mesh fits the devices, the model and the batch: arithmetic over the configuration, free of jax."""
import dataclasses
import math

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import Architecture, LatentAttention, MixtureOfExperts
from llm_jax.config.run import Mesh


def mesh_sizes(mesh: Mesh, num_devices: int) -> dict[str, int]:
  """Devices along each mesh axis, in the mesh's order, with the -1 resolved to what is left of `num_devices`.

  Raises: ConfigError where the axes do not multiply to `num_devices`.
  """
  sizes = dataclasses.asdict(mesh)
  left = next((axis for axis, size in sizes.items() if size == -1), None)
  given = math.prod(size for size in sizes.values() if size != -1)
  if num_devices % given or (left is None and given != num_devices):
    axis = max((axis for axis in sizes if axis != left), key=sizes.__getitem__)  # the largest is the likely culprit
    product = ' x '.join(f'{name}={size}' for name, size in sizes.items() if size > 1) or 'a mesh of 1'
    hint = 'must multiply to' if left is None else f'and with {left}=-1 must divide'
    raise ConfigError(f'mesh.{axis}', sizes[axis], f'{product} {hint} the number of devices, {num_devices}')
  return sizes if left is None else {**sizes, left: num_devices // given}


def row_shards(architecture: Architecture, mesh: Mesh, num_devices: int | None = None) -> int:
  """How many devices share the sequences of a batch. num_devices: as `check_divides` has it."""
  sizes = _sizes(mesh, num_devices)
  return math.prod(sizes[axis] for axis in _row_axes(architecture))


def check_divides(architecture: Architecture, mesh: Mesh, batch_size: int, seq_len: int,
                  num_devices: int | None = None, microbatches: int = 1, stage: str | None = None) -> None:
  """Refuses a mesh whose axes do not divide what `rules.STRATEGIES` splits over them.

  Key/value heads are exempt: where `tensor` does not divide them they are kept whole on every device (two key/value
  heads over tensor=4), which costs little, because grouped-query attention made them few.

  Args:
    batch_size: sequences per step over all devices; each of the `microbatches` must split over data x fsdp x expert.
    seq_len: tokens per sequence; each device on the context axis holds two chunks of it (`context_split.py`).
    num_devices: over all processes. None: not known yet, so an axis of -1 is left unchecked.
    stage: whose batch it is, for the message.

  Raises: ConfigError naming the mesh axis, its size and what it does not divide.
  """
  sizes = _sizes(mesh, num_devices)
  split = [('fsdp', 'd_model', architecture.d_model), ('tensor', 'vocab_size', architecture.vocab_size)]
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
    split += [('tensor', 'd_ff', each.width(architecture.d_model)) for each in dense]
  for axis, what, size in split:
    require(size % sizes[axis] == 0, f'mesh.{axis}', sizes[axis],
            f'mesh {axis}={sizes[axis]} does not divide {what}={size}, use a divisor, such as '
            f'{math.gcd(size, sizes[axis])}, or {what}={math.ceil(size / sizes[axis]) * sizes[axis]}')

  chunks = 2 * sizes['context'] if sizes['context'] > 1 else 1
  of_stage = '' if stage is None else f' of stage {stage!r}'
  require(seq_len % chunks == 0, 'mesh.context', sizes['context'],
          f'mesh context={sizes["context"]} cuts every sequence into {chunks} chunks, which do not divide '
          f'seq_len={seq_len}{of_stage}, use seq_len={math.ceil(seq_len / chunks) * chunks}, or another mesh')

  axes = _row_axes(architecture)
  require('expert' in axes or sizes['expert'] == 1, 'mesh.expert', sizes['expert'],
          'the model has no experts to split, use 1')
  copies, rows = math.prod(sizes[axis] for axis in axes), batch_size // microbatches
  axis = next((axis for axis in axes if sizes[axis] > 1), 'data')
  require(rows % copies == 0, f'mesh.{axis}', sizes[axis],
          f'{" x ".join(axes)} = {copies} does not divide the {rows} sequences of a microbatch '
          f'(batch_size={batch_size}, microbatches={microbatches}), use '
          f'batch_size={math.ceil(rows / copies) * copies * microbatches}')


def _sizes(mesh: Mesh, num_devices: int | None) -> dict[str, int]:
  if num_devices is None:
    return {axis: max(size, 1) for axis, size in dataclasses.asdict(mesh).items()}
  return mesh_sizes(mesh, num_devices)


def _row_axes(architecture: Architecture) -> tuple[str, ...]:
  """The mesh axes over which the sequences of a batch are split."""
  blocks = (*architecture.prefix, *architecture.pattern, *architecture.multi_token)
  routed = any(isinstance(block.feed_forward, MixtureOfExperts) for block in blocks)
  return ('data', 'fsdp', 'expert') if routed else ('data', 'fsdp')
