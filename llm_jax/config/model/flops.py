"""What a token costs to train and to remember, by arithmetic over an `Architecture`."""
from llm_jax.config.model.architecture import AnyAttention, Architecture, Attention, LatentAttention
from llm_jax.config.model.count import blocks, count_matmul_parameters


def training_flops_per_token(architecture: Architecture, seq_len: int) -> float:
  """FLOPs that one token costs forward and backward: 6 N + 12 sum over layers of H K T (Chowdhery et al. 2022, PaLM,
  appendix B).

  N counts parameters that multiply a token (`count_matmul_parameters`), H query heads, K head size, T the sequence
  length, or a layer's window where that is shorter. As in the paper, attention counts the whole T x T square although
  a causal model needs half of it, and recomputation (remat) does not count: so the figure compares with published ones,
  and skipping the masked half raises MFU. In latent attention K is the mean of what scores and values contract.
  """
  layers = blocks(architecture) + architecture.multi_token
  attention = sum(_attention_size(block.attention, architecture.d_model, seq_len) for block in layers)
  return 6.0 * count_matmul_parameters(architecture) + 12.0 * attention


def _attention_size(attention: AnyAttention, d_model: int, seq_len: int) -> float:
  """H K T of one layer."""
  if isinstance(attention, LatentAttention):
    mean_size = (attention.nope_dim + attention.rope_dim + attention.v_dim) / 2
    return attention.num_heads * mean_size * seq_len
  length = min(seq_len, attention.window or seq_len)
  return attention.num_heads * attention.head_size(d_model) * length


def cache_bytes_per_token(architecture: Architecture, itemsize: int = 2) -> int:
  """Bytes of the key/value cache for one token: keys and values of all layers, or what latent attention keeps in their
  place. Windowed layers need no more than their window.   itemsize: of a number; 2 is bfloat16."""
  return sum(_cached(block.attention, architecture.d_model) for block in blocks(architecture)) * itemsize


def _cached(attention: AnyAttention, d_model: int) -> int:
  """Numbers of one token in one layer."""
  match attention:
    case Attention():
      return 2 * attention.kv_heads * attention.head_size(d_model)
    case LatentAttention():
      return attention.kv_rank + attention.rope_dim
