"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1)."""
import flax.linen as nn

from llm_jax.config import architecture as config
from llm_jax.modules.execution import Execution


class LatentAttention(nn.Module):
  """Keys and values of all heads from one compressed vector, and one rotary key for all heads."""
  config: config.LatentAttention
  execution: Execution
  std: float
  residual_std: float
  dropout: float
