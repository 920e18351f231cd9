"""What flows from data to objectives: typed pytrees, never string keys."""
import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class LanguageModelBatch:
  """Packed sequences for next-token prediction. Every field is [batch, time].

  `segment_ids` numbers the documents of a row from 1 (0 is padding): attention stays inside a segment.
  `positions` restart at 0 with every segment. `weights` is 1 where `targets` counts and 0 on padding and
  where the target belongs to the next document.
  """
  tokens: Array       # int32
  targets: Array      # int32
  weights: Array      # float32
  positions: Array    # int32
  segment_ids: Array  # int32
