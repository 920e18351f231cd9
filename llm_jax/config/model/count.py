"""Parameter counts by arithmetic over an `Architecture`, without making the modules."""
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  AnyAttention,
  AnyBlock,
  Architecture,
  Attention,
  ClampedGLU,
  FeedForward,
  LatentAttention,
  LayerNorm,
  LearnedPositions,
  MixtureOfExperts,
  Norm,
  SandwichBlock,
  SoftmaxRouter,
)
from llm_jax.config.model.attention import FullWidthNorm, PerHeadNorm


def count_parameters(architecture: Architecture) -> int:
  """All parameters of the main model, embeddings included; a tied head counts once.

  GPT-2 124M has 124,439,808 and Llama-3 8B 8,030,261,248, as their published checkpoints do. Multi-token blocks are not
  counted, as in DeepSeek-V3's 671B; see `count_multi_token`.
  """
  return _total(architecture, active=False)


def count_active_parameters(architecture: Architecture) -> int:
  """The parameters that one token uses: of each mixture the `top_k` experts and the shared one.

  Embeddings and head count completely, as in Mixtral's 12.9B. DeepSeek-V3 has 37.55B, and 36.6B without its input
  embeddings; its paper says 37B.
  """
  return _total(architecture, active=True)


def count_multi_token(architecture: Architecture) -> int:
  """The parameters of the multi-token blocks, with their norms and projections. They share the embeddings and the head
  of the main model (DeepSeek-V3, section 2.2)."""
  return _mtp(architecture, active=False)


def count_matmul_parameters(architecture: Architecture) -> int:
  """Parameters that multiply a token in training: the active ones without the look-up tables (learned positions, and
  the embedding unless it is also the head); and for each multi-token block its parameters and the head again.

  Norms and biases are included; they are far below 1 %.
  """
  table = architecture.vocab_size * architecture.d_model
  looked_up = count_positions(architecture) + (0 if architecture.tied_head else table)
  mtp = _mtp(architecture, active=True) + len(architecture.multi_token) * table
  return count_active_parameters(architecture) - looked_up + mtp


def count_parts(architecture: Architecture) -> dict[str, int]:
  """The parameters of each part of the model, multi-token blocks apart; they add up to `count_parameters`.

  'feed_forward' has routers and shared experts, 'experts' the routed ones, and a tied head counts as the embedding.
  """
  d_model = architecture.d_model
  table = architecture.vocab_size * d_model
  layers = blocks(architecture)
  experts = count_expert_parameters(architecture)
  feed_forward = sum(_feed_forward(block.feed_forward, d_model, active=False) for block in layers)
  return {
    'embedding': table,
    'head': 0 if architecture.tied_head else table,
    'positions': count_positions(architecture),
    'attention': sum(_attention(block.attention, d_model) for block in layers),
    'feed_forward': feed_forward - experts,
    'experts': experts,
    'norms': sum(_norms(block, d_model) for block in layers) + _norm(architecture.norm, d_model),
  }


def count_expert_parameters(architecture: Architecture) -> int:
  """The parameters of all routed experts, which the `expert` axis of a mesh shares out; routers and shared experts are
  not among them."""
  total = 0
  for block in blocks(architecture):
    if isinstance(block.feed_forward, MixtureOfExperts):
      one = _feed_forward(block.feed_forward.expert, architecture.d_model, active=False)
      total += block.feed_forward.num_experts * one
  return total


def count_positions(architecture: Architecture) -> int:
  positions = architecture.positions
  return positions.max_length * architecture.d_model if isinstance(positions, LearnedPositions) else 0


def blocks(architecture: Architecture) -> tuple[AnyBlock, ...]:
  """Every block in the order that it runs: `num_layers` of them."""
  return architecture.prefix + architecture.pattern * architecture.repeats


def _total(architecture: Architecture, active: bool) -> int:
  d_model = architecture.d_model
  tables = architecture.vocab_size * d_model * (1 if architecture.tied_head else 2) + count_positions(architecture)
  layers = sum(_block(block, d_model, active) for block in blocks(architecture))
  return tables + layers + _norm(architecture.norm, d_model)


def _mtp(architecture: Architecture, active: bool) -> int:
  d_model = architecture.d_model
  total = 0
  for block in architecture.multi_token:
    norms = 3 * _norm(block.norm, d_model)  # of the features, of the embeddings, and the last one
    projection = 2 * d_model * d_model
    total += norms + projection + _block(block, d_model, active)
  return total


def _norm(norm: Norm | None, size: int) -> int:
  if norm is None:
    return 0
  return 2 * size if isinstance(norm, LayerNorm) else size


def _norms(block: AnyBlock, d_model: int) -> int:
  return (4 if isinstance(block, SandwichBlock) else 2) * _norm(block.norm, d_model)


def _block(block: AnyBlock, d_model: int, active: bool) -> int:
  rest = _attention(block.attention, d_model) + _feed_forward(block.feed_forward, d_model, active)
  return _norms(block, d_model) + rest


def _attention(attention: AnyAttention, d_model: int) -> int:
  match attention:
    case Attention():
      query = attention.num_heads * attention.head_size(d_model)
      key_value = 2 * attention.kv_heads * attention.head_size(d_model)
      biases = (query + key_value if attention.bias else 0) + (d_model if attention.has_out_bias else 0)
      sinks = attention.num_heads if attention.sinks else 0
      return d_model * (2 * query + key_value) + biases + sinks + _qk_norm(attention, d_model)
    case LatentAttention(num_heads=heads, kv_rank=kv_rank, q_rank=q_rank, nope_dim=nope, rope_dim=rope, v_dim=v):
      query = heads * (nope + rope)
      queries = d_model * query if q_rank is None else q_rank * (d_model + query) + _norm(attention.norm, q_rank)
      keys_values = d_model * (kv_rank + rope) + _norm(attention.norm, kv_rank) + kv_rank * heads * (nope + v)
      return queries + keys_values + heads * v * d_model


def _qk_norm(attention: Attention, d_model: int) -> int:
  size = attention.head_size(d_model)
  match attention.qk_norm:
    case None:
      return 0
    case PerHeadNorm(norm=norm):
      return 2 * _norm(norm, size)
    case FullWidthNorm(norm=norm):
      return _norm(norm, attention.num_heads * size) + _norm(norm, attention.kv_heads * size)


def _feed_forward(feed_forward: FeedForward, d_model: int, active: bool) -> int:
  match feed_forward:
    case MLP() | GLU() | ClampedGLU():
      width = feed_forward.width(d_model)
      inward = 1 if isinstance(feed_forward, MLP) else 2
      return (inward + 1) * d_model * width + (inward * width + d_model if feed_forward.bias else 0)
    case MixtureOfExperts(num_experts=experts, top_k=top_k, expert=expert, shared=shared, router=router):
      has_bias = router.bias if isinstance(router, SoftmaxRouter) else True
      routed = (top_k if active else experts) * _feed_forward(expert, d_model, active)
      always = 0 if shared is None else _feed_forward(shared, d_model, active)
      return d_model * experts + (experts if has_bias else 0) + routed + always
