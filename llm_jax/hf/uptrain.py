"""Fewer key and value heads for a trained model (Ainslie et al. 2023, GQA, section 2.1)."""
import dataclasses
from typing import Any

from llm_jax import paths
from llm_jax.config.errors import require
from llm_jax.config.model.architecture import AnyBlock, Architecture, Attention
from llm_jax.modules.parameters import parameter_shapes

POOLED = ('attention/key/w', 'attention/value/w', 'attention/key/b', 'attention/value/b')


def group_heads(config: Architecture, params: Any, num_kv_heads: int) -> tuple[Architecture, Any]:
  """Pools the key and value heads to `num_kv_heads`: each new head is the mean of the heads whose queries it serves.

  The model gets worse, and recovers with a few per cent of its training (their section 3). 1 is multi-query attention.
  Latent attention has no such heads and stays as it is.

  Returns: the new architecture and parameters. Parameters that do not change are the same arrays.
  Raises: ConfigError if `num_kv_heads` does not divide the model's number, if no block has such heads, or if a block
    has a parameter of the size of all key heads that cannot be pooled.
  """
  groups = {group: tuple(_regroup(block, num_kv_heads, f'{group}[{i}]')
                         for i, block in enumerate(getattr(config, group)))
            for group in ('prefix', 'pattern', 'multi_token')}
  grouped = dataclasses.replace(config, **groups)
  has_heads = any(isinstance(block.attention, Attention) for blocks in groups.values() for block in blocks)
  require(has_heads, 'num_kv_heads', num_kv_heads, 'latent attention has no key and value heads to pool: leave it out')

  def pool(path: str, leaf: Any) -> Any:
    if not path.endswith(POOLED):
      return leaf
    *rest, heads, size = leaf.shape
    return leaf.reshape(*rest, num_kv_heads, heads // num_kv_heads, size).mean(-2)

  pooled = paths.map_named(pool, params)
  shapes = parameter_shapes(grouped)
  for path, leaf in paths.leaves(pooled):
    wanted = shapes.get(path, leaf.shape)
    require(leaf.shape == wanted, f'params/{path}', leaf.shape,
            f'with num_kv_heads={num_kv_heads} it must be {wanted}, and its numbers cannot be pooled: keep the heads')
  return grouped, pooled


def _regroup(block: AnyBlock, num_kv_heads: int, where: str) -> AnyBlock:
  if not isinstance(block.attention, Attention):
    return block
  heads = block.attention.kv_heads
  require(num_kv_heads > 0 and heads % num_kv_heads == 0, 'num_kv_heads', num_kv_heads,
          f'use a divisor of the {heads} key and value heads of model.{where}.attention')
  return dataclasses.replace(block, attention=dataclasses.replace(block.attention, num_kv_heads=num_kv_heads))
