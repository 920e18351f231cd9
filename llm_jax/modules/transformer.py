"""The decoder: embedding, blocks, norm, head. The only file with `nn.scan` and `nn.remat`."""
import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config import architecture as config
from llm_jax.modules.block import Block
from llm_jax.modules.cache import Cache
from llm_jax.modules.context import Context
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.head import vocabulary_logits
from llm_jax.modules.layers import Embedding, Norm
from llm_jax.modules.mixture import Routing
from llm_jax.modules.positions import rotation, sinusoids
from llm_jax.sharding.rules import constrain


class Transformer(nn.Module):
  """A causal decoder, used as a pure function.

  `apply({'params': params}, tokens_BT, positions, segment_ids)` gives float32 logits [batch, time, vocab].
  positions [batch, time] default to 0..T-1. With segment_ids [batch, time], attention stays inside a segment.
  With a `cache` (see `init_cache`), the tokens are appended to it and see what it holds, positions go on where it ends,
  segment_ids only tell padding (0) from tokens, and (logits, cache) comes back.
  Dropout is active exactly when `rngs={'dropout': key}` is given.
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
    self.final_norm = Norm(c.norm, self.execution) if c.norm else lambda x: x
    if not c.tied_head:
      self.head = Embedding(c.vocab_size, c.d_model, dtype, c.init.std)

  def __call__(self, tokens_BT, positions=None, segment_ids=None, cache: Cache | None = None):
    if cache is None:
      return self.logits(self.features(tokens_BT, positions, segment_ids))
    x_BTD, cache, _ = self.run(tokens_BT, positions, segment_ids, cache)
    return self.logits(x_BTD), cache

  def features(self, tokens_BT, positions=None, segment_ids=None) -> jax.Array:
    """What the head reads: the last layer's normed output, [batch, time, d_model] in the compute dtype."""
    return self.run(tokens_BT, positions, segment_ids, None)[0]

  def run(self, tokens_BT, positions, segment_ids, cache: Cache | None
          ) -> tuple[jax.Array, Cache | None, tuple[Routing | None, ...]]:
    """The forward pass up to the head; and what the router of each block did, those of the pattern stacked."""
    c = self.config
    if positions is None:
      start = 0 if cache is None else cache.next
      positions = jnp.broadcast_to(start + jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    x_BTD, angles = self.embedding(tokens_BT), {}
    if c.embedding_scale != 1:
      x_BTD *= jnp.asarray(c.embedding_scale, x_BTD.dtype)
    match c.positions:
      case config.LearnedPositions():
        x_BTD += self.positions(positions)
      case config.SinusoidalPositions():
        x_BTD += sinusoids(c.positions, c.d_model, positions).astype(x_BTD.dtype)
      case config.RoPE():
        sizes = {block.attention.rotary_size(c.d_model) for block in c.prefix + c.pattern}
        angles = {size: rotation(c.positions, size, positions, self.execution.kernel_set) for size in sizes}
    x_BTD = constrain(self.drop(x_BTD, deterministic=not self.has_rng('dropout')), 'batch', 'seq', 'embed')

    first, rest, slots = [None] * len(c.prefix), (None,) * len(c.pattern), None
    if cache is not None:
      cache, slots = cache.append(positions, segment_ids)
      first, rest = list(cache.prefix), cache.pattern
    context = Context(angles, positions, segment_ids, slots)
    routings = [None] * len(c.prefix)
    for i, block in enumerate(self.prefix):
      x_BTD, first[i], routings[i] = block(x_BTD, context, first[i], None)
    if c.repeats:
      (x_BTD, rest), stacked = self.blocks((x_BTD, rest), jnp.arange(c.repeats), context)
      routings += stacked
    cache = cache and cache.replace(prefix=tuple(first), pattern=rest)
    return self.final_norm(x_BTD), cache, tuple(routings)

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


class Pattern(nn.Module):
  """The blocks of one repeat, as the body of a scan: (x, caches) is carried, the layer's number comes in."""
  config: config.Architecture
  execution: Execution

  @nn.compact
  def __call__(self, carry, layer, context):
    x_BTD, caches = carry[0], list(carry[1])
    routings = [None] * len(caches)
    for i, block in enumerate(self.config.pattern):
      run = make_block(self.config, block, self.execution, name=f'block_{i}')
      x_BTD, caches[i], routings[i] = run(x_BTD, context, caches[i], layer)
    return (x_BTD, tuple(caches)), tuple(routings)


def make_block(c: config.Architecture, block: config.AnyBlock, execution: Execution, name: str | None = None) -> Block:
  """A block under the execution's remat policy."""
  policies = {'block': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
  kind = Block if execution.remat == 'none' else nn.remat(
      Block, policy=policies[execution.remat], prevent_cse=execution.unrolled)
  residual_std = c.init.residual_std or c.init.std / (2 * c.num_layers) ** 0.5
  return kind(block, execution, c.init.std, residual_std, c.dropout, name=name)

