"""Sparse mixture of experts."""
import flax.linen as nn
import flax.struct
import jax

from llm_jax.config import architecture as config
from llm_jax.modules.execution import Execution


@flax.struct.dataclass
class Routing:
  """What a router did with a batch."""
  loss: jax.Array    # float32 scalar: the router's weighted auxiliary losses, a mean over tokens
  load_E: jax.Array  # float32: how many tokens chose each expert


class MixtureOfExperts(nn.Module):
  """A router and its experts."""
  config: config.MixtureOfExperts
  execution: Execution
  std: float
  residual_std: float
