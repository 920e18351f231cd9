"""What every layer of one forward pass gets beside the residual stream.

Shapes: B batch, T time.
"""
import flax.struct
import jax

from llm_jax.config.model.architecture import NoPositions, RoPE
from llm_jax.modules.cache import KVCache, Slots
from llm_jax.modules.positions import Rotation
from llm_jax.sharding.context_split import WHOLE, ContextSplit

LayerPositions = RoPE | NoPositions | None  # None: the model's


@flax.struct.dataclass
class LayerInputs:
  """The same for all layers.

  rotations: cosines and sines, one for each entry of `rotated`.
  rotated: (positions of a layer's configuration, size of the vectors that are turned).
  positions_BT: int32.
  segment_ids_BT: int32, the document of each position, 0 for padding; None means one document per row.
  slots: by capacity, where the caches store the new tokens and which entries their queries read; None without a cache.
  split: how rows are split over devices; every array here with a time axis is in the order of `split.arrange`.
  """
  rotations: tuple[Rotation, ...]
  positions_BT: jax.Array
  segment_ids_BT: jax.Array | None
  slots: dict[int, Slots] | None
  rotated: tuple[tuple[LayerPositions, int], ...] = flax.struct.field(pytree_node=False, default=())
  split: ContextSplit = flax.struct.field(pytree_node=False, default=WHOLE)

  def rotation_of(self, positions: LayerPositions, size: int) -> Rotation | None:
    """Cosines and sines for vectors of this size in a layer with these positions; None where nothing turns them."""
    if (positions, size) not in self.rotated:
      return None
    return self.rotations[self.rotated.index((positions, size))]

  def slots_of(self, cache: KVCache) -> Slots:
    """Where the new tokens go in a block's cache."""
    assert self.slots is not None, 'a forward pass with a cache has the slots that Cache.append returns'
    return self.slots[cache.capacity]
