"""Bytes on a device in a training step, by arithmetic: what stays, and what is there at the step's two fullest moments.

What stays is exact. What comes and goes is counted in arrays of the compute dtype, bfloat16: it is what XLA keeps of a
Llama-like block, and comes within about a tenth of what the compilers plan; of experts it is rough.
"""
import dataclasses
from collections.abc import Mapping

from llm_jax.config.model.architecture import (
  AnyBlock,
  Architecture,
  Attention,
  Dense,
  FeedForward,
  LatentAttention,
  MixtureOfExperts,
)
from llm_jax.config.model.count import blocks, count_multi_token, count_parts
from llm_jax.config.model.feed_forward import MLP
from llm_jax.config.optimizers import Adafactor, AdamW, Lion, Muon, Optax, Optimizer
from llm_jax.config.ramp import Phase
from llm_jax.config.stage import Stage
from llm_jax.plan.sampling import sampling_bytes
from llm_jax.sharding.rounds import room_in_round
from llm_jax.sharding.ticks import num_ticks

HALF, FULL = 2, 4
STORED = {'float32': 4.0, 'bfloat16': 2.0, 'int8': 1 + 4 / 256}  # bytes of a number, scales of its block included
CHUNK_BYTES, CHUNK_TOKENS = 2**28, 512  # of float32 logits that a device holds at once, as the loss has them


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  parameters, optimizer, ema: stay. An optimizer in the host's memory is none here. A critic of its own is in each.
  frozen: stays: the reference that the objective compares with, in the dtype of the computation.
  gradients: as the parameters are stored, and sharded.
  activations: what the forward pass keeps for the backward pass.
  block: of one block while its gradients are computed, its gathered weights included.
  loss: the head's gradient and a chunk of logits, while the loss is computed.
  sampling: the weights that answers are sampled with, their cache and logits. It comes before the step, not beside it.
  """
  parameters: float
  optimizer: float
  ema: float
  gradients: float
  activations: float
  block: float
  loss: float
  frozen: float = 0.0
  sampling: float = 0.0

  @property
  def stays(self) -> float:
    return self.state + self.frozen

  @property
  def state(self) -> float:
    """What a checkpoint holds of it."""
    return self.parameters + self.optimizer + self.ema

  @property
  def peak(self) -> float:
    """The backward pass of a block, the end of the loss or the end of sampling is the fullest moment."""
    step = self.gradients + self.activations + max(self.block, self.loss)
    return self.stays + max(step, self.sampling)


def step_memory(model: Architecture, stage: Stage, phase: Phase, sizes: Mapping[str, int], pieces: int = 1) -> Memory:
  """Memory of one device in a step.   sizes: of the mesh axes, all of them.   pieces: of a pipeline."""
  stages = sizes['pipeline']
  copies = sizes['data'] * sizes['fsdp'] * sizes['expert'] * sizes['context'] * stages
  tokens = phase.tokens / phase.microbatches / copies
  held = parameters_on_a_device(model, sizes)
  decoder = sum(held.values())
  trained = {part: count * stage.trained_models for part, count in held.items()}
  parameters = sum(trained.values())
  whole = sum(parameters_on_a_device(model, {**sizes, 'fsdp': 1}).values())
  itemsize = STORED[stage.parameters]
  layers = blocks(model)
  kept = sum(_kept(block, model.d_model, stage.remat, sizes) for block in layers)
  in_block = tokens * stages / pieces  # a stage computes all rows of its group of devices, piece by piece
  widest = max(layers, key=lambda block: _backward(block, model.d_model, sizes, in_block))
  return Memory(
    parameters=parameters * itemsize,
    optimizer=optimizer_bytes(stage.optimizer, trained) if stage.optimizer_memory == 'device' else 0,
    ema=0 if stage.ema is None else parameters * FULL,
    gradients=parameters * itemsize,
    activations=(kept * num_ticks(stages, pieces) / pieces + _of_stages(model, stages)) * tokens * HALF,
    block=_backward(widest, model.d_model, sizes, in_block) * in_block * HALF + _gathered(model, held, sizes),
    loss=_loss(model, sizes, tokens),
    frozen=decoder * HALF if stage.objective.has_reference else 0.0,
    sampling=sampling_bytes(model, stage, whole, copies // sizes['context'], sizes['tensor']),
  )


# ---------------------------------------------------------------------------------------------- what stays
def parameters_on_a_device(model: Architecture, sizes: Mapping[str, int]) -> dict[str, float]:
  """Parameters by part, as the tables of `llm_jax/sharding/rules.py` split them; norms are whole on every device."""
  parts = count_parts(model) | {'multi_token': count_multi_token(model)}
  fsdp, tensor, expert = sizes['fsdp'], sizes['tensor'], sizes['expert']
  layers = fsdp * tensor * sizes['pipeline']
  split = {'embedding': fsdp * tensor, 'head': fsdp * tensor, 'positions': fsdp, 'attention': layers,
           'feed_forward': layers, 'experts': layers * expert, 'norms': 1, 'multi_token': fsdp * tensor}
  held = {part: count / split[part] for part, count in parts.items()}
  for block in blocks(model):
    attention = block.attention
    if isinstance(attention, Attention) and attention.kv_heads % tensor:  # whole on every device
      keys_values = 2 * model.d_model * attention.kv_heads * attention.head_size(model.d_model)
      held['attention'] += keys_values / fsdp / sizes['pipeline'] * (1 - 1 / tensor)
  return held


def optimizer_bytes(optimizer: Optimizer, held: Mapping[str, float]) -> float:
  """Of the state for parameters by part. Adafactor keeps so little that it is left out; what a function of optax keeps
  is not known, and taken to be two moments."""
  parameters = sum(held.values())
  matrices = sum(held[part] for part in ('attention', 'feed_forward', 'experts', 'multi_token'))
  match optimizer:
    case AdamW():
      return 2 * STORED[optimizer.moments] * parameters
    case Muon():
      return STORED[optimizer.moments] * (matrices + 2 * (parameters - matrices))
    case Lion():
      return STORED[optimizer.moments] * parameters
    case Adafactor():
      return 0.0
    case Optax():
      return 2 * FULL * parameters


# ---------------------------------------------------------------------------------------------- what comes and goes
def _of_stages(model: Architecture, stages: int) -> float:
  """Numbers a token of a device that a stage of a pipeline keeps beside its layers: the rows that it has gathered, and
  the results of all its ticks."""
  return 2.0 * stages * model.d_model if stages > 1 else 0.0


def _kept(block: AnyBlock, d_model: int, remat: str, sizes: Mapping[str, int]) -> float:
  """Numbers a token that one block keeps for the backward pass."""
  attention, attention_out = _attention(block, d_model, sizes['tensor'])
  inner, projections = _kept_inside(block.feed_forward, d_model, sizes)
  return {
    'none': 4 * d_model + attention + attention_out + inner,  # residual stream and norms twice, and all inside
    'dots': 3 * d_model + attention + projections,  # its input, and the results of matrix products
    'block': d_model,  # its input
    'offload': d_model,  # the same: the results of matrix products are in the host's memory
  }[remat]


def _backward(block: AnyBlock, d_model: int, sizes: Mapping[str, int], tokens: float) -> float:
  """Numbers a token while the gradients of one block are computed: what it keeps without recomputation, less the
  product of gate and up, which is fused; and the gradients of the feed-forward's inner arrays and of the input."""
  attention, attention_out = _attention(block, d_model, sizes['tensor'])
  inner, projections = _feed_forward(block.feed_forward, d_model, sizes, tokens)
  return 5 * d_model + attention + attention_out + projections + inner


def _attention(block: AnyBlock, d_model: int, tensor: int) -> tuple[float, float]:
  """Numbers a token: of queries, keys and values; of the result before its projection."""
  attention = block.attention
  if isinstance(attention, LatentAttention):
    scored = attention.nope_dim + attention.rope_dim
    return (attention.num_heads * (2 * scored + attention.v_dim) / tensor + attention.kv_rank,
            attention.num_heads * attention.v_dim / tensor)
  size = attention.head_size(d_model)
  queries = attention.num_heads * size / tensor
  shared = tensor if attention.kv_heads % tensor == 0 else 1
  return queries + 2 * attention.kv_heads * size / shared, queries


def _kept_inside(layer: FeedForward, d_model: int, sizes: Mapping[str, int]) -> tuple[float, float]:
  """Numbers a token, as `_feed_forward` gives them. Of experts on several devices only the input is kept."""
  if isinstance(layer, MixtureOfExperts) and sizes['expert'] > 1:
    return (0.0, 0.0) if layer.shared is None else _dense(layer.shared, d_model, sizes)
  return _feed_forward(layer, d_model, sizes, tokens=0.0)


def _feed_forward(layer: FeedForward, d_model: int, sizes: Mapping[str, int], tokens: float) -> tuple[float, float]:
  """Numbers a token: of all inner arrays, and of those that are projections of the input.   tokens: of a device."""
  if not isinstance(layer, MixtureOfExperts):
    return _dense(layer, d_model, sizes)
  inner, projections = _dense(layer.expert, d_model, sizes)
  shared = (0.0, 0.0) if layer.shared is None else _dense(layer.shared, d_model, sizes)
  if sizes['expert'] == 1:
    return layer.top_k * (inner + 2 * d_model) + shared[0], layer.top_k * projections + shared[1]
  own_experts = layer.num_experts / sizes['expert']
  rows = sizes['expert'] * room_in_round(layer.top_k * tokens, own_experts, sizes['expert']) / tokens
  # Beside the arrays of a round: each copy's result, and two sums over rounds in float32.
  gathered = (layer.top_k + 2 * FULL / HALF) * d_model
  return rows * (inner + 4 * d_model) + gathered + shared[0], rows * projections + shared[1]


def _dense(layer: Dense, d_model: int, sizes: Mapping[str, int]) -> tuple[float, float]:
  width = layer.width(d_model) / sizes['tensor']
  projected = 1 if isinstance(layer, MLP) else 2
  return (projected + 1) * width, projected * width


def _gathered(model: Architecture, held: Mapping[str, float], sizes: Mapping[str, int]) -> float:
  """The weights of one block on every device, and their gradient before it is summed; of experts on several devices
  the sum of the gradient over rounds too, in float32."""
  of_blocks = sum(held[part] for part in ('attention', 'feed_forward', 'experts'))
  weights = 2 * HALF * of_blocks if sizes['fsdp'] > 1 else 0.0
  over_rounds = FULL * held['experts'] if sizes['expert'] > 1 else 0.0
  return (weights + over_rounds) * sizes['fsdp'] * sizes['pipeline'] / model.num_layers


def _loss(model: Architecture, sizes: Mapping[str, int], tokens: float) -> float:
  """The head's gradient in float32, as it is summed, ordered and sent; logits, features and their gradients."""
  head = model.vocab_size * model.d_model / sizes['tensor']
  chunk_tokens = min(tokens, max(CHUNK_TOKENS, CHUNK_BYTES / FULL / model.vocab_size))
  logits = chunk_tokens * model.vocab_size / sizes['tensor'] * FULL
  return 3 * head * FULL + 2 * logits + 2 * tokens * model.d_model * HALF
