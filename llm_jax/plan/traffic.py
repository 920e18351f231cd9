"""The bytes that a training step must send: a closed form, with which the collectives of a compiled step are compared.

Of one device and step, sent by ring algorithms, in bfloat16 but for the gradients of embedding and head, which are
summed in float32. Norms and biases are left out; they are far below 1 %.
"""
import dataclasses
import math
from collections.abc import Mapping

from llm_jax.config.model.architecture import Architecture, Attention, MixtureOfExperts
from llm_jax.config.model.count import blocks, count_expert_parameters, count_parameters, count_positions
from llm_jax.config.ramp import Phase
from llm_jax.sharding.check import sums_apart
from llm_jax.sharding.rounds import balanced_rounds
from llm_jax.sharding.ticks import num_ticks

HALF, FULL = 2, 4  # bytes of a number in bfloat16 and float32
PASSES = 2  # over the blocks' weights: forward, and backward


@dataclasses.dataclass(frozen=True)
class Traffic:
  """One kind of exchange. kind: as HLO names it.   axis: of the mesh.   sent: bytes of a device and step.

  what: that is sent.
  """
  kind: str
  axis: str
  what: str
  sent: float


def step_traffic(model: Architecture, sizes: Mapping[str, int], phase: Phase, form: str = 'gather', pieces: int = 1
                 ) -> list[Traffic]:
  """What a step must send.

  sizes: of the mesh axes, all of them.   form: of attention where time is split, 'gather' or 'ring'.
  pieces: that go through the stages of a pipeline.
  """
  tokens = phase.tokens // (math.prod(sizes.values()) // sizes['tensor'])  # of a device
  found = [*_weights(model, sizes, phase.microbatches, tokens, pieces), *_tensor(model, sizes['tensor'], tokens),
           *_context(model, sizes, tokens, form), *_experts(model, sizes['expert'], tokens),
           *_pipeline(model, sizes['pipeline'], tokens, pieces)]
  return [traffic for traffic in found if traffic.sent > 0]


def others(n: int) -> float:
  """The share of an array that is on the other n - 1 of n devices."""
  return (n - 1) / n


def _weights(model: Architecture, sizes: Mapping[str, int], microbatches: int, tokens: int, pieces: int
             ) -> list[Traffic]:
  """Parameters are gathered over fsdp in each microbatch and their gradients scattered; what is left of the gradients
  is summed over the devices that hold the same parameters. For the embedding's, the tokens' own gradients are sent.
  A stage of a pipeline gathers its layers, and scatters their gradients, in every tick."""
  tables = 2 * model.vocab_size * model.d_model / sizes['tensor']  # a tied head is gathered, and summed, as one untied
  tied = model.vocab_size * model.d_model * (1 if model.tied_head else 2)
  of_experts = count_expert_parameters(model)
  dense = count_parameters(model) - tied - count_positions(model) - of_experts
  stages = sizes['pipeline']
  layers = (dense + of_experts / sizes['expert']) / sizes['tensor'] / stages
  ticks = num_ticks(stages, pieces)
  fsdp = others(sizes['fsdp']) * microbatches
  over_expert = (dense / sizes['tensor'] / stages * ticks * HALF + tables * FULL) / sizes['fsdp'] * microbatches
  return [
    Traffic('all-gather', 'fsdp', 'weights of the blocks', fsdp * PASSES * ticks * layers * HALF),
    Traffic('all-gather', 'fsdp', 'embedding and head', fsdp * tables * HALF),
    Traffic('reduce-scatter', 'fsdp', 'gradients of the blocks', fsdp * ticks * layers * HALF),
    Traffic('reduce-scatter', 'fsdp', 'gradient of the head', fsdp * tables / 2 * FULL),
    Traffic('all-to-all', 'fsdp', 'gradient of the embedding', others(sizes['fsdp']) * tokens * model.d_model * HALF),
    *_replicas(model, sizes, microbatches, layers / sizes['fsdp'], tables / sizes['fsdp']),
    Traffic('all-reduce', 'expert', 'gradients of what is no expert', 2 * others(sizes['expert']) * over_expert),
    Traffic('all-reduce', 'pipeline', 'gradients of embedding and head',
            2 * others(stages) * tables * FULL / sizes['fsdp'] * microbatches),
  ]


def _replicas(model: Architecture, sizes: Mapping[str, int], microbatches: int, layers: float, tables: float
              ) -> list[Traffic]:
  """Where replicas sum apart, gradients of all microbatches are summed over data once, in float32.

  layers, tables: parameters on a device.
  """
  each = (layers * HALF + tables * FULL) * microbatches
  at_end = (layers + tables) * FULL
  if (microbatches == 1 and sizes['pipeline'] == 1) or model.depends_on_microbatches or not sums_apart(sizes):
    axes = '+'.join(axis for axis in ('data', 'context') if sizes[axis] > 1)
    return [Traffic('all-reduce', axes, 'gradients', 2 * others(sizes['data'] * sizes['context']) * each)]
  return [Traffic('all-reduce', 'data', 'gradients of all microbatches', 2 * others(sizes['data']) * at_end)]


def _tensor(model: Architecture, devices: int, tokens: int) -> list[Traffic]:
  """Each half of a block sums its output forward, and the gradient of its input backward; the embedding sums the
  vectors of the tokens, and the head the gradient of its input (Shoeybi et al. 2019, Megatron-LM, section 3)."""
  one = 2 * others(devices) * tokens * model.d_model * HALF
  return [
    Traffic('all-reduce', 'tensor', 'activations of the blocks', 4 * model.num_layers * one),
    Traffic('all-reduce', 'tensor', 'activations of embedding and head', 2 * one),
  ]


def _context(model: Architecture, sizes: Mapping[str, int], tokens: int, form: str) -> list[Traffic]:
  """Keys and values are gathered, or passed round, forward and again backward, and their gradients go the other way."""
  devices = sizes['context']
  numbers = 0.0
  for block in blocks(model):
    attention = block.attention
    is_plain = isinstance(attention, Attention)
    heads = attention.kv_heads if is_plain else attention.num_heads
    width = 2 * attention.head_size(model.d_model) if is_plain else attention.nope_dim + attention.rope_dim + \
      attention.v_dim
    numbers += heads * width / (sizes['tensor'] if heads % sizes['tensor'] == 0 else 1)
  one = (devices - 1) * tokens * numbers * HALF
  if form == 'ring':
    return [Traffic('collective-permute', 'context', 'keys and values, and their gradients', 3 * one)]
  return [
    Traffic('all-gather', 'context', 'keys and values', 2 * one),
    Traffic('reduce-scatter', 'context', 'gradients of keys and values', one),
  ]


def _experts(model: Architecture, devices: int, tokens: int) -> list[Traffic]:
  """Each token goes to its chosen experts and its results come back; in the backward pass it goes there again, as its
  copies are more than a layer should keep, with the gradient of its results, and its own gradient comes back."""
  chosen = sum(block.feed_forward.top_k for block in blocks(model) if isinstance(block.feed_forward, MixtureOfExperts))
  sent = 5 * chosen * others(devices) * tokens * model.d_model * HALF
  return [Traffic('all-to-all', 'expert', 'tokens of other devices\' experts', sent)]


def _pipeline(model: Architecture, stages: int, tokens: int, pieces: int) -> list[Traffic]:
  """Each stage hands its piece on in every tick, and in the backward pass the gradient of it back. The rows are
  gathered before the layers and scattered behind them, and so are their gradients.

  tokens: of a device outside of the layers; a stage has those of all stages.
  """
  one = tokens * stages * model.d_model * HALF  # all pieces of a stage
  handed_on = 2 * one * num_ticks(stages, pieces) / pieces if stages > 1 else 0.0
  return [
    Traffic('collective-permute', 'pipeline', 'pieces and their gradients', handed_on),
    Traffic('all-gather', 'pipeline', 'rows, and gradients of the last layer', 2 * others(stages) * one),
    Traffic('reduce-scatter', 'pipeline', 'rows, and gradients of the first layer', 2 * others(stages) * one),
  ]


def expert_rounds(model: Architecture, sizes: Mapping[str, int], phase: Phase) -> int:
  """The rounds in which the experts' tokens are sent, where the experts are chosen about equally often.

  The most of any layer's; 1 without experts on several devices.
  """
  tokens = phase.tokens / phase.microbatches / (sizes['data'] * sizes['fsdp'] * sizes['expert'] * sizes['context'])
  layers = [block.feed_forward for block in (*blocks(model), *model.multi_token)]
  return max((balanced_rounds(tokens * layer.top_k, layer.num_experts / sizes['expert']) for layer in layers
              if isinstance(layer, MixtureOfExperts) and sizes['expert'] > 1), default=1)
