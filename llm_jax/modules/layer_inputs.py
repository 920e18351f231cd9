"""What every layer of one forward pass shares."""
import flax.struct
import jax

from llm_jax.modules.cache import Slots
from llm_jax.modules.positions import Rotation
from llm_jax.sharding.context_split import WHOLE, ContextSplit


@flax.struct.dataclass
class LayerInputs:
  """angles: cosines and sines by the size of what they turn; empty without rotary positions.
  segment_ids_BT: the document of each position, 0 for padding; None means one document a row.
  slots: by capacity, where the new tokens go in a cache and what their queries read; None without a cache.
  split: how rows are cut over devices; everything with a time axis here is in the order of `split.arrange`.
  """
  angles: dict[int, Rotation]
  positions_BT: jax.Array
  segment_ids_BT: jax.Array | None
  slots: dict[int, Slots] | None
  split: ContextSplit = flax.struct.field(pytree_node=False, default=WHOLE)
