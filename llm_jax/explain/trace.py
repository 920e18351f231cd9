"""A forward pass, looked at: what every layer attends to, adds, predicts and chooses. The forward pass itself is the
model's own; its modules' outputs are captured, and nothing in it knows of that.

Shapes: B batch, T time, S time of the keys, D model width, H query heads, V vocabulary, E experts, X chosen experts.
"""
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import AnyBlock, Architecture, Attention, MixtureOfExperts, PostNormBlock
from llm_jax.config.model.count import blocks
from llm_jax.decode.unroll import unroll_config, unroll_params
from llm_jax.explain.weights import attention_weights, head_outputs
from llm_jax.modules.execution import Execution
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.routing import route, within_capacity
from llm_jax.modules.transformer import Transformer

EXECUTION = Execution('float32', kernels='xla', unroll=True)


@dataclasses.dataclass(frozen=True)
class LayerTrace:
  """One layer, float32.

  block: its configuration.
  weights_HTS: attention weights; 0 where a query does not see a key.
  sinks_HT: what a head gives to its sink instead of a key; None without sinks.
  heads_HT: the length of what each head writes.
  attention_TD: what attention adds to the residual stream, after its output's norm where the block has one.
  feed_forward_TD: what the feed-forward adds.
  residual_TD: the residual stream after the layer.
  experts_TX, expert_weights_TX: the chosen experts, int32, and their factors; None without experts.
  kept_TX: whether the expert had room left for the token, bool; None where experts take all that choose them.
  error: the largest difference between weights x values x output projection and what the block's attention gave, as
    a part of the largest number of the latter.
  """
  block: AnyBlock
  weights_HTS: np.ndarray
  sinks_HT: np.ndarray | None
  heads_HT: np.ndarray
  attention_TD: np.ndarray
  feed_forward_TD: np.ndarray
  residual_TD: np.ndarray
  experts_TX: np.ndarray | None
  expert_weights_TX: np.ndarray | None
  kept_TX: np.ndarray | None
  error: float

  @property
  def window(self) -> int | None:
    """How many positions a query sees, its own included; None means all."""
    attention = self.block.attention
    return attention.window if isinstance(attention, Attention) else None

  @property
  def normalises_sums(self) -> bool:
    """Whether a norm follows each sum, so that the residual stream is not the sum of what is added (GPT-1)."""
    return isinstance(self.block, PostNormBlock)


@dataclasses.dataclass(frozen=True)
class Trace:
  """A forward pass over one text.

  tokens_T: int32.
  embedding_TD: the residual stream before the first layer.
  layers: in order.
  features_TD: the head's input.
  logits_TV: float32.
  """
  tokens_T: np.ndarray
  embedding_TD: np.ndarray
  layers: tuple[LayerTrace, ...]
  features_TD: np.ndarray
  logits_TV: np.ndarray

  @property
  def error(self) -> float:
    """The largest of all layers' errors."""
    return max(layer.error for layer in self.layers)

  @property
  def residuals(self) -> tuple[np.ndarray, ...]:
    """The residual stream [T, D] before the first layer and after every layer."""
    return self.embedding_TD, *(layer.residual_TD for layer in self.layers)


def trace(config: Architecture, params: Any, tokens: Sequence[int]) -> Trace:
  """Runs the model over a text in float32 and keeps what its layers did.

  Args:
    params: without adapters beside the weights: merge them before.
    tokens: ids of one text.

  Raises:
    ConfigError: no token, one outside of the vocabulary, or more of them than there are learned positions.
  """
  require(len(tokens) > 0, 'tokens', list(tokens), 'give at least one')
  require(0 <= min(tokens) <= max(tokens) < config.vocab_size, 'tokens', f'{min(tokens)} to {max(tokens)}',
          f'the vocabulary has {config.vocab_size}')
  unrolled = unroll_config(config)
  tokens_T = np.asarray(tokens, np.int32)
  computed = jax.device_get(_compute(unrolled, unroll_params(config, params), tokens_T[None]))
  layers: list[LayerTrace] = []
  for block, arrays in zip(blocks(unrolled), computed.layers, strict=True):
    layers.append(LayerTrace(block, *arrays[:-1], error=float(arrays.error)))
  return Trace(tokens_T, computed.embedding_TD, tuple(layers), computed.features_TD, computed.logits_TV)


# ------------------------------------------------------------------------------------------- on the device
class LayerArrays(NamedTuple):
  """The arrays of a `LayerTrace`."""
  weights_HTS: jax.Array
  sinks_HT: jax.Array | None
  heads_HT: jax.Array
  attention_TD: jax.Array
  feed_forward_TD: jax.Array
  residual_TD: jax.Array
  experts_TX: jax.Array | None
  expert_weights_TX: jax.Array | None
  kept_TX: jax.Array | None
  error: jax.Array


class TraceArrays(NamedTuple):
  """The arrays of a `Trace`."""
  embedding_TD: jax.Array
  layers: tuple[LayerArrays, ...]
  features_TD: jax.Array
  logits_TV: jax.Array


@functools.partial(jax.jit, static_argnames='config')
def _compute(config: Architecture, params: Any, tokens_BT: jax.Array) -> TraceArrays:
  """config: all its blocks are in `prefix`."""
  model = Transformer(config, EXECUTION)
  variables = {'params': params}
  with jax.default_matmul_precision('highest'):
    logits_BTV, state = model.apply(variables, tokens_BT, capture_intermediates=_is_wanted, mutable=['intermediates'])
    captured = state['intermediates']
    inputs: Any = model.apply(variables, tokens_BT, None, None, method=Transformer.layer_inputs)  # Any: flax's type
    layers: list[LayerArrays] = []
    for i, block in enumerate(config.prefix):
      name = f'prefix_{i}'
      layers.append(_layer(block, captured[name], params[name], inputs, config.d_model))
    features_TD: Any = model.apply(variables, layers[-1].residual_TD, method=_normed)
  return TraceArrays(_first(captured['drop'])[0], tuple(layers), features_TD, logits_BTV[0])


def _is_wanted(module: nn.Module, method: str) -> bool:
  del module
  return method == '__call__'


def _normed(model: Transformer, x_TD: jax.Array) -> jax.Array:
  return model.final_norm(x_TD)


def _first(captured: Any) -> jax.Array:
  """What a module returned when it was called; the first of several results."""
  result = captured['__call__'][0]
  return result[0] if isinstance(result, tuple) else result


def _layer(block: AnyBlock, captured: Any, params: Any, inputs: LayerInputs, d_model: int) -> LayerArrays:
  of_attention = captured['attention']
  outputs = {name: _first(module)[0] for name, module in of_attention.items() if name != '__call__'}
  weights = attention_weights(block.attention, outputs, params['attention'], inputs, d_model)
  heads_HTD = head_outputs(weights, params['attention']['out']['w'])
  experts_TX, expert_weights_TX, kept_TX = _experts(block, captured['feed_forward'], params['feed_forward'])
  return LayerArrays(
    weights.weights_HTS, weights.sinks_HT, jnp.linalg.norm(heads_HTD, axis=-1),
    attention_TD=_added(captured, 'attention', 'attention_out_norm'),
    feed_forward_TD=_added(captured, 'feed_forward', 'feed_forward_out_norm'),
    residual_TD=_first(captured)[0],
    experts_TX=experts_TX,
    expert_weights_TX=expert_weights_TX,
    kept_TX=kept_TX,
    error=_error(heads_HTD.sum(0), params['attention']['out'], _first(of_attention)[0]))


def _added(captured: Any, part: str, norm: str) -> jax.Array:
  """What a part of a block adds to the residual stream: its output, normed where the block norms outputs."""
  return _first(captured[norm if norm in captured else part])[0]


def _error(sum_TD: jax.Array, out: Any, given_TD: jax.Array) -> jax.Array:
  """How far the sum of the heads, and the bias, is from what the layer gave."""
  again_TD = sum_TD + out['b'] if 'b' in out else sum_TD
  largest = jnp.maximum(jnp.abs(given_TD).max(), jnp.finfo(jnp.float32).tiny)
  return jnp.abs(again_TD - given_TD).max() / largest


def _experts(block: AnyBlock, captured: Any, params: Any
             ) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
  """The experts that every token chose, their factors, and whether they had room, from the router's logits."""
  mixture = block.feed_forward
  if not isinstance(mixture, MixtureOfExperts):
    return None, None, None
  logits_BTE = _first(captured['router'])
  bias_E = params['balance']['bias'] if 'balance' in params else None
  real_BT = jnp.ones(logits_BTE.shape[:2], bool)
  expert_BTX, weight_BTX, _ = route(mixture.router, mixture.top_k, logits_BTE, bias_E, real_BT)
  capacity = mixture.capacity(logits_BTE.shape[1])
  kept_BTX = None if capacity is None else within_capacity(expert_BTX, mixture.num_experts, capacity)
  return expert_BTX[0], weight_BTX[0], None if kept_BTX is None else kept_BTX[0]
