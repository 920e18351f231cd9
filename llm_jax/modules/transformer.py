"""The decoder: embedding, blocks, norm, head. The only file with `nn.scan` and `nn.remat`.

Shapes: B batch, T time, D model width, V vocabulary.
"""
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.errors import require
from llm_jax.config.model import architecture as config
from llm_jax.modules.block import Block
from llm_jax.modules.cache import Cache, KVCache
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.head import vocabulary_logits
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Embedding, Norm
from llm_jax.modules.multi_token import MultiToken
from llm_jax.modules.pipeline import num_pieces, run_pipeline
from llm_jax.modules.positions import document_lengths, rotation, sinusoids
from llm_jax.modules.routing import Routing, merged
from llm_jax.sharding.context_split import WHOLE, context_split
from llm_jax.sharding.rules import HOST, constrain


class Transformer(nn.Module):
  """A causal decoder, used as a pure function.

  `apply({'params': params}, tokens_BT, positions, segment_ids)` returns float32 logits [batch, time, vocab].
  positions [batch, time] default to 0..T-1. With segment_ids [batch, time], attention stays inside a segment.
  With a `cache` (see `init_cache`) the tokens are appended to it and attend to its entries; positions continue from its
  end; segment_ids only distinguish padding (0) from tokens; and the result is (logits, cache). Positions that go by the
  length of a sequence (`LongRoPEScaling`) go by the cache's `length` then.
  Dropout is active exactly when `rngs={'dropout': key}` is given. Ids outside of the vocabulary are not detected.

  Raises:
    ConfigError: tokens that are not integers [batch, time], or more of them than there are learned positions.
  """
  config: config.Architecture
  execution: Execution = Execution()

  def setup(self):
    c, dtype = self.config, self.execution.compute_dtype
    self.embedding = Embedding(c.vocab_size, c.d_model, dtype, c.init.std)
    if isinstance(c.positions, config.LearnedPositions):
      self.positions = Embedding(c.positions.max_length, c.d_model, dtype, c.init.positions_std)
    self.drop = nn.Dropout(c.dropout)
    self.prefix = [make_block(c, block, self.execution) for block in c.prefix]
    if c.repeats:
      in_axes: Any = (0, nn.broadcast)  # of the layer's number and the inputs; flax declares an int here
      scan = nn.scan(Pattern, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
                     in_axes=in_axes, length=c.repeats, unroll=c.repeats if self.execution.unrolled else 1)
      self.blocks = scan(c, self.execution)
    self.multi_token = [
        MultiToken(block, self.execution, c.init.std, functools.partial(make_block, c, block, self.execution))
        for block in c.multi_token]
    self.final_norm = Norm(c.norm, self.execution) if c.norm else lambda x: x
    if not c.tied_head:
      self.head = Embedding(c.vocab_size, c.d_model, dtype, c.init.std)

  def __call__(self, tokens_BT, positions=None, segment_ids=None, cache: Cache | None = None):
    check_inputs(tokens_BT, positions, segment_ids)
    if cache is None:
      if self.is_initializing():
        # Only training runs the multi-token blocks, but `init` must make their parameters too.
        (x_BTD, *_), _ = self.features_ahead(tokens_BT, positions, segment_ids)
      else:
        x_BTD = self.features(tokens_BT, positions, segment_ids)
      return self.logits(x_BTD)
    x_BTD, cache, _ = self.forward(tokens_BT, positions, segment_ids, cache)
    return self.logits(x_BTD), cache

  def features(self, tokens_BT, positions=None, segment_ids=None) -> jax.Array:
    """The input of the head: the last layer's normed output, [batch, time, d_model] in the compute dtype."""
    x_BTD, _, _ = self.forward(tokens_BT, positions, segment_ids, None)
    return x_BTD

  def features_ahead(self, tokens_BT, positions=None, segment_ids=None
                     ) -> tuple[tuple[jax.Array, ...], dict[str, Routing]]:
    """`features`, then for each block of `multi_token` the features that predict one token further; and the statistics
    of each router.

    Entry k (k > 0) predicts at position i token i + k + 1. At the last k positions of a document it has read tokens
    of the next document, so these positions must not be scored.
    """
    x_BTD, _, routings = self.forward(tokens_BT, positions, segment_ids, None)
    features = [x_BTD]
    inputs = self.layer_inputs(tokens_BT, positions, segment_ids)
    arrange, restore = inputs.split.arrange, inputs.split.restore
    x_BTD = arrange(x_BTD) if self.multi_token else x_BTD
    for k, module in enumerate(self.multi_token, 1):
      next_BTD = self.embed(arrange(jnp.roll(tokens_BT, -k, axis=1)))
      x_BTD, ahead_BTD, _, routing = module(x_BTD, next_BTD, inputs, None)
      features.append(restore(ahead_BTD))
      routings[f'multi_token_{k - 1}/block'] = routing
    return tuple(features), {path: routing for path, routing in routings.items() if routing is not None}

  def draft(self, x_BTD: jax.Array, next_BT: jax.Array, cache: Cache, positions=None, segment_ids=None, depth: int = 0
            ) -> tuple[jax.Array, jax.Array, Cache]:
    """Predicts with block `depth` of `multi_token` what comes after next_BT, the tokens that follow those of x_BTD.

    Args:
      x_BTD: `features` at depth 0; at depth k the hidden states that `draft` returned at depth k - 1.
      cache: of `init_draft_cache` for this depth; it must hold all earlier positions.
      positions, segment_ids: of x_BTD, as in `__call__`.

    Returns:
      float32 logits [batch, time, vocab], the hidden states for the next depth, the cache.
    """
    if positions is None:
      positions = cache.next + jnp.broadcast_to(jnp.arange(next_BT.shape[1]), next_BT.shape)
    cache, slots = cache.append(positions, segment_ids)
    inputs = self.layer_inputs(next_BT, positions, segment_ids, slots, cache.length)
    x_BTD, ahead_BTD, block_cache, _ = self.multi_token[depth](x_BTD, self.embed(next_BT), inputs, cache.prefix[0])
    return self.logits(ahead_BTD), x_BTD, dataclasses.replace(cache, prefix=(block_cache,))

  def forward(self, tokens_BT, positions, segment_ids, cache: Cache | None
          ) -> tuple[jax.Array, Cache | None, dict[str, Routing | None]]:
    """The forward pass up to the head.

    Returns the head's input; the cache; and the statistics of each block's router, by the block's path in the
    parameters, with an axis of the layers for a block of the pattern.
    """
    c, length = self.config, tokens_BT.shape[1]
    fits = c.max_length is None or length <= c.max_length
    require(positions is not None or fits, 'tokens', f'{length} in a row',
            f'there are {c.max_length} learned positions: shorten the rows')
    slots = None
    prefix_caches: list[KVCache | None] = [None] * len(c.prefix)
    pattern_caches: tuple[KVCache | None, ...] = (None,) * len(c.pattern)
    if cache is not None:
      if positions is None:
        positions = cache.next + jnp.broadcast_to(jnp.arange(length), tokens_BT.shape)
      cache, slots = cache.append(positions, segment_ids)
      prefix_caches, pattern_caches = list(cache.prefix), cache.pattern
    inputs = self.layer_inputs(tokens_BT, positions, segment_ids, slots, None if cache is None else cache.length)
    x_BTD = self.embed(inputs.split.arrange(tokens_BT))
    match c.positions:
      case config.LearnedPositions():
        x_BTD += self.positions(inputs.positions_BT)
      case config.SinusoidalPositions():
        x_BTD += sinusoids(c.positions, c.d_model, inputs.positions_BT).astype(x_BTD.dtype)
    x_BTD = constrain(self.drop(x_BTD, deterministic=not self.has_rng('dropout')), 'batch', 'seq', 'embed')

    routings = {}
    for i, block in enumerate(self.prefix):
      x_BTD, prefix_caches[i], routings[f'prefix_{i}'] = block(x_BTD, inputs, prefix_caches[i], None)
    if c.repeats:
      is_alone = cache is not None or self.is_initializing()
      pieces = None if is_alone else num_pieces(len(tokens_BT), self.execution.pipeline_microbatches)
      if pieces is None:
        carry = (x_BTD, pattern_caches)
        (x_BTD, pattern_caches), stacked = self.blocks(carry, jnp.arange(c.repeats), inputs)
      else:
        x_BTD, stacked = self.run_as_stages(x_BTD, tokens_BT, positions, segment_ids, pieces)
      routings |= {f'blocks/block_{i}': routing for i, routing in enumerate(stacked)}
    if cache is not None:
      cache = dataclasses.replace(cache, prefix=tuple(prefix_caches), pattern=pattern_caches)
    return inputs.split.restore(self.final_norm(x_BTD)), cache, routings

  def run_as_stages(self, x_BTD, tokens_BT, positions, segment_ids, pieces: int
                    ) -> tuple[jax.Array, tuple[Routing | None, ...]]:
    """The repeats of the pattern as `pieces` of a pipeline; x_BTD and the routers' statistics as from the scan."""
    pattern = Pattern(self.config, self.execution, parent=None)
    no_caches = (None,) * len(self.config.pattern)

    def layers(params, x_BTD, of_rows, numbers):
      inputs = self.layer_inputs(*of_rows)

      def layer(x_BTD, layer):
        params, number = layer
        (x_BTD, _), routings = pattern.apply({'params': params}, (x_BTD, no_caches), number, inputs)
        return x_BTD, routings
      return jax.lax.scan(layer, x_BTD, (params, numbers), unroll=self.execution.unrolled)

    params = self.variables['params']['blocks']
    x_BTD, routings = run_pipeline(layers, params, x_BTD, (tokens_BT, positions, segment_ids), pieces)
    return x_BTD, tuple(routing and merged(routing) for routing in routings)

  def embed(self, tokens_BT: jax.Array) -> jax.Array:
    """[batch, time, d_model], scaled, without positions."""
    x_BTD = self.embedding(tokens_BT)
    scale = self.config.embedding_scale
    return x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)

  def layer_inputs(self, tokens_BT, positions, segment_ids, slots=None, cache_length: int | None = None) -> LayerInputs:
    """What all blocks get; `positions` of None are 0..T-1.

    Rows are split over devices only in training, and not with attention dropout.
    """
    c, lengths = self.config, None
    length = tokens_BT.shape[1] if positions is None and segment_ids is None else None
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    split = WHOLE
    drops_weights = c.dropout and self.has_rng('dropout')
    if slots is None and not drops_weights:
      split = context_split(tokens_BT.shape[1], self.execution.context_attention)
    length = length if cache_length is None else cache_length
    if c.switch_lengths and length is None:
      lengths = document_lengths(positions, segment_ids)
    positions, segment_ids, lengths = jax.tree.map(split.arrange, (positions, segment_ids, lengths))
    ropes = {}
    for block in c.prefix + c.pattern + c.multi_token:
      attention = block.attention
      own = attention.positions if isinstance(attention, config.Attention) else None
      rope = c.rope_of(attention)
      if rope is not None:
        ropes[own, attention.rotary_size(c.d_model)] = rope if length is None else rope.at_length(length)
    rotations = tuple(rotation(rope, size, positions, self.execution.kernel_set, lengths)
                      for (_, size), rope in ropes.items())
    return LayerInputs(rotations, positions, segment_ids, slots, tuple(ropes), split)

  def logits(self, x_BTD: jax.Array) -> jax.Array:
    """float32 [batch, time, vocab]."""
    w_VD = (self.embedding if self.config.tied_head else self.head).w.astype(x_BTD.dtype)
    logits_BTV = vocabulary_logits(x_BTD, w_VD, self.execution.kernel_set)
    if (cap := self.config.logit_soft_cap) is not None:
      logits_BTV = cap * jnp.tanh(logits_BTV / cap)
    return constrain(logits_BTV, 'batch', 'seq', 'vocab')

  def head_weight(self, params) -> jax.Array:
    """The head's weight [vocab, d_model] in a parameter tree."""
    return params['embedding' if self.config.tied_head else 'head']['w']


def check_inputs(tokens_BT, positions, segment_ids) -> None:
  """Refuses tokens that are not an integer array [batch, time], and positions or segments of another shape."""
  kind = str(getattr(tokens_BT, 'dtype', type(tokens_BT).__name__))
  shape = getattr(tokens_BT, 'shape', ())
  require(len(shape) == 2 and jnp.issubdtype(tokens_BT.dtype, jnp.integer), 'tokens', f'{kind} {list(shape)}',
          'give an integer array [batch, time]')
  for name, given in (('positions', positions), ('segment_ids', segment_ids)):
    if given is not None:
      require(jnp.shape(given) == shape, name, list(jnp.shape(given)), f'give an array {list(shape)}')


class Pattern(nn.Module):
  """The blocks of one repeat of the pattern, as the body of a scan that carries (x, caches) and counts the layers."""
  config: config.Architecture
  execution: Execution

  @nn.compact
  def __call__(self, carry, layer, inputs):
    x_BTD, caches = carry
    caches = list(caches)
    routings: list[Routing | None] = [None] * len(caches)
    for i, block_config in enumerate(self.config.pattern):
      block = make_block(self.config, block_config, self.execution, name=f'block_{i}', scanned=True)
      x_BTD, caches[i], routings[i] = block(x_BTD, inputs, caches[i], layer)
    return (x_BTD, tuple(caches)), tuple(routings)


def named_blocks(c: config.Architecture) -> dict[str, config.AnyBlock]:
  """Every block by its path in the parameters; a block of the pattern appears once for all its repeats."""
  named = {f'prefix_{i}': block for i, block in enumerate(c.prefix)}
  if c.repeats:
    named |= {f'blocks/block_{i}': block for i, block in enumerate(c.pattern)}
  return named | {f'multi_token_{k}/block': block for k, block in enumerate(c.multi_token)}


def make_block(c: config.Architecture, block: config.AnyBlock, execution: Execution, name: str | None = None,
               scanned: bool = False) -> Block:
  """A block under the execution's remat policy. scanned: whether it is in the body of `nn.scan`."""
  kind = Block
  if execution.remat != 'none':
    policies = {
      'block': None,
      'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
      'offload': jax.checkpoint_policies.offload_dot_with_no_batch_dims('device', HOST),
    }
    # Otherwise XLA may notice that a block is computed twice and keep the activations; in a loop body it cannot.
    prevent_cse = execution.unrolled or not scanned
    kind = nn.remat(Block, policy=policies[execution.remat], prevent_cse=prevent_cse)
  residual_std = c.init.residual_std
  if residual_std is None:
    residual_std = c.init.std / (2 * c.num_layers) ** 0.5
  return kind(block, execution, c.init.std, residual_std, c.dropout, name=name)

