"""The decoder: embedding, blocks, norm, head. The only file with `nn.scan` and `nn.remat`."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.errors import require
from llm_jax.config.model import architecture as config
from llm_jax.modules.block import Block
from llm_jax.modules.cache import Cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.head import vocabulary_logits
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Embedding, Norm
from llm_jax.modules.multi_token import MultiToken
from llm_jax.modules.positions import rotation, sinusoids
from llm_jax.modules.routing import Routing
from llm_jax.sharding.context_split import WHOLE, context_split
from llm_jax.sharding.rules import constrain


class Transformer(nn.Module):
  """A causal decoder, used as a pure function.

  `apply({'params': params}, tokens_BT, positions, segment_ids)` gives float32 logits [batch, time, vocab].
  positions [batch, time] default to 0..T-1. With segment_ids [batch, time], attention stays inside a segment.
  With a `cache` (see `init_cache`), the tokens are appended to it and see what it holds, positions go on where it ends,
  segment_ids only tell padding (0) from tokens, and (logits, cache) comes back.
  Dropout is active exactly when `rngs={'dropout': key}` is given. Ids outside of the vocabulary are not noticed.

  Raises:
    ConfigError: tokens that are no integers [batch, time], or more of them than there are learned positions.
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
      scan = nn.scan(Pattern, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
                     in_axes=(0, nn.broadcast), length=c.repeats, unroll=c.repeats if self.execution.unrolled else 1)
      self.blocks = scan(c, self.execution)
    ahead = lambda block: MultiToken(block, self.execution, c.init.std,
                                     functools.partial(make_block, c, block, self.execution))
    self.multi_token = [ahead(block) for block in c.multi_token]
    self.final_norm = Norm(c.norm, self.execution) if c.norm else lambda x: x
    if not c.tied_head:
      self.head = Embedding(c.vocab_size, c.d_model, dtype, c.init.std)

  def __call__(self, tokens_BT, positions=None, segment_ids=None, cache: Cache | None = None):
    check_inputs(tokens_BT, positions, segment_ids)
    if cache is None:
      # Only training reads the blocks that predict further, but they are made with the rest.
      features = (lambda *args: self.features_ahead(*args)[0][0]) if self.is_initializing() else self.features
      return self.logits(features(tokens_BT, positions, segment_ids))
    x_BTD, cache, _ = self.run(tokens_BT, positions, segment_ids, cache)
    return self.logits(x_BTD), cache

  def features(self, tokens_BT, positions=None, segment_ids=None) -> jax.Array:
    """What the head reads: the last layer's normed output, [batch, time, d_model] in the compute dtype."""
    return self.run(tokens_BT, positions, segment_ids, None)[0]

  def features_ahead(self, tokens_BT, positions=None, segment_ids=None
                     ) -> tuple[tuple[jax.Array, ...], dict[str, Routing]]:
    """`features`, then, for each block of `multi_token`, what the head reads to predict one token further; and what
    each router did.

    The k-th entry after the first stands at position i for token i + k + 1. In the last k positions of a document it
    has read what is not its own: they must not be scored.
    """
    x_BTD, _, routings = self.run(tokens_BT, positions, segment_ids, None)
    features, inputs = [x_BTD], self.layer_inputs(tokens_BT, positions, segment_ids)
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
    """What block `depth` of `multi_token` expects after next_BT, the tokens that follow those that x_BTD stands for.

    Args:
      x_BTD: `features` at depth 0; at depth k what `draft` returned at depth k - 1.
      cache: of `init_draft_cache` for this depth; it must have read all earlier positions.
      positions, segment_ids: of x_BTD, as in `__call__`.

    Returns:
      float32 logits [batch, time, vocab], the hidden states for the next depth, the cache.
    """
    if positions is None:
      positions = cache.next + jnp.broadcast_to(jnp.arange(next_BT.shape[1]), next_BT.shape)
    cache, slots = cache.append(positions, segment_ids)
    inputs = self.layer_inputs(next_BT, positions, segment_ids, slots)
    x_BTD, ahead_BTD, block_cache, _ = self.multi_token[depth](x_BTD, self.embed(next_BT), inputs, cache.prefix[0])
    return self.logits(ahead_BTD), x_BTD, cache.replace(prefix=(block_cache,))

  def run(self, tokens_BT, positions, segment_ids, cache: Cache | None
          ) -> tuple[jax.Array, Cache | None, dict[str, Routing | None]]:
    """The forward pass up to the head; and what the router of each block did, by the block's path in the parameters,
    layers of the pattern stacked."""
    c, length = self.config, tokens_BT.shape[1]
    require(positions is not None or c.max_length is None or length <= c.max_length, 'tokens', f'{length} in a row',
            f'there are {c.max_length} learned positions: shorten the rows')
    if positions is None and cache is not None:
      positions = cache.next + jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    first, rest, slots = [None] * len(c.prefix), (None,) * len(c.pattern), None
    if cache is not None:
      cache, slots = cache.append(positions, segment_ids)
      first, rest = list(cache.prefix), cache.pattern
    inputs = self.layer_inputs(tokens_BT, positions, segment_ids, slots)
    x_BTD = self.embed(inputs.split.arrange(tokens_BT))
    match c.positions:
      case config.LearnedPositions():
        x_BTD += self.positions(inputs.positions_BT)
      case config.SinusoidalPositions():
        x_BTD += sinusoids(c.positions, c.d_model, inputs.positions_BT).astype(x_BTD.dtype)
    x_BTD = constrain(self.drop(x_BTD, deterministic=not self.has_rng('dropout')), 'batch', 'seq', 'embed')

    routings = {}
    for i, block in enumerate(self.prefix):
      x_BTD, first[i], routings[f'prefix_{i}'] = block(x_BTD, inputs, first[i], None)
    if c.repeats:
      (x_BTD, rest), stacked = self.blocks((x_BTD, rest), jnp.arange(c.repeats), inputs)
      routings |= {f'blocks/block_{i}': routing for i, routing in enumerate(stacked)}
    cache = cache and cache.replace(prefix=tuple(first), pattern=rest)
    return inputs.split.restore(self.final_norm(x_BTD)), cache, routings

  def embed(self, tokens_BT: jax.Array) -> jax.Array:
    """[batch, time, d_model], scaled, without positions."""
    x_BTD = self.embedding(tokens_BT)
    scale = self.config.embedding_scale
    return x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)

  def layer_inputs(self, tokens_BT, positions, segment_ids, slots=None) -> LayerInputs:
    """What all blocks share; `positions` of None are 0..T-1.

    Rows are split over devices in training alone, and not where attention weights are dropped.
    """
    c, angles = self.config, {}
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    split = WHOLE
    if slots is None and not (c.dropout and self.has_rng('dropout')):
      split = context_split(tokens_BT.shape[1], self.execution.context_attention)
    positions, segment_ids = jax.tree.map(split.arrange, (positions, segment_ids))
    if isinstance(c.positions, config.RoPE):
      sizes = {block.attention.rotary_size(c.d_model) for block in c.prefix + c.pattern + c.multi_token}
      angles = {size: rotation(c.positions, size, positions, self.execution.kernel_set) for size in sizes}
    return LayerInputs(angles, positions, segment_ids, slots, split)

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
  """Refuses what is no integer array [batch, time], or not in the tokens' shape."""
  kind, shape = str(getattr(tokens_BT, 'dtype', type(tokens_BT).__name__)), getattr(tokens_BT, 'shape', ())
  require(len(shape) == 2 and jnp.issubdtype(tokens_BT.dtype, jnp.integer), 'tokens', f'{kind} {list(shape)}',
          'give an integer array [batch, time]')
  for name, given in (('positions', positions), ('segment_ids', segment_ids)):
    require(given is None or jnp.shape(given) == shape, name, list(jnp.shape(given)), f'give an array {list(shape)}')


class Pattern(nn.Module):
  """The blocks of one repeat, as the body of a scan: (x, caches) is carried, the layer's number comes in."""
  config: config.Architecture
  execution: Execution

  @nn.compact
  def __call__(self, carry, layer, inputs):
    x_BTD, caches = carry[0], list(carry[1])
    routings = [None] * len(caches)
    for i, block in enumerate(self.config.pattern):
      run = make_block(self.config, block, self.execution, name=f'block_{i}', scanned=True)
      x_BTD, caches[i], routings[i] = run(x_BTD, inputs, caches[i], layer)
    return (x_BTD, tuple(caches)), tuple(routings)


def named_blocks(c: config.Architecture) -> dict[str, config.AnyBlock]:
  """Every block by its path in the parameters; one of the pattern stands for its repeats."""
  pattern = c.pattern if c.repeats else ()
  return {**{f'prefix_{i}': block for i, block in enumerate(c.prefix)},
          **{f'blocks/block_{i}': block for i, block in enumerate(pattern)},
          **{f'multi_token_{k}/block': block for k, block in enumerate(c.multi_token)}}


def make_block(c: config.Architecture, block: config.AnyBlock, execution: Execution, name: str | None = None,
               scanned: bool = False) -> Block:
  """A block under the execution's remat policy. scanned: it stands in the body of `nn.scan`."""
  policies = {'block': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
  kind = Block if execution.remat == 'none' else nn.remat(
      Block, policy=policies[execution.remat],
      # Else XLA may find that a block is computed twice, and keep what was to be forgotten. In a loop's body it cannot.
      prevent_cse=execution.unrolled or not scanned)
  residual_std = c.init.std / (2 * c.num_layers) ** 0.5 if c.init.residual_std is None else c.init.residual_std
  return kind(block, execution, c.init.std, residual_std, c.dropout, name=name)

