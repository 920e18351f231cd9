"""Fewer key and value heads for a trained model (Ainslie et al. 2023, GQA, section 2.1)."""
import dataclasses
from typing import Any

from llm_jax import paths
from llm_jax.config.errors import require
from llm_jax.config.model.architecture import AnyBlock, Architecture, Attention


def group_heads(config: Architecture, params: Any, num_kv_heads: int) -> tuple[Architecture, Any]:
  """Each of `num_kv_heads` key and value heads becomes the mean of the heads whose queries it will serve.

  The model is worse for it, and recovers with a few per cent of its training (their section 3). 1 is multi-query
  attention. Latent attention has no such heads and stays as it is.

  Returns: the new architecture and parameters; those that did not change are the same arrays.
  Raises: ConfigError where `num_kv_heads` does not divide the model's, or no block has such heads.
  """
  every = config.prefix + config.pattern + config.multi_token
  require(any(isinstance(block.attention, Attention) for block in every), 'num_kv_heads', num_kv_heads,
          'latent attention has no key and value heads to pool: leave it out')

  def regroup(block: AnyBlock, where: str) -> AnyBlock:
    if not isinstance(block.attention, Attention):
      return block
    heads = block.attention.kv_heads
    require(num_kv_heads > 0 and heads % num_kv_heads == 0, 'num_kv_heads', num_kv_heads,
            f'use a divisor of the {heads} key and value heads of model.{where}.attention')
    return dataclasses.replace(block, attention=dataclasses.replace(block.attention, num_kv_heads=num_kv_heads))

  groups = {group: tuple(regroup(block, f'{group}[{i}]') for i, block in enumerate(getattr(config, group)))
            for group in ('prefix', 'pattern', 'multi_token')}

  def pool(path: str, leaf: Any) -> Any:
    if not path.endswith(('attention/key/w', 'attention/value/w', 'attention/key/b', 'attention/value/b')):
      return leaf
    *rest, heads, size = leaf.shape
    return leaf.reshape(*rest, num_kv_heads, heads // num_kv_heads, size).mean(-2)

  return dataclasses.replace(config, **groups), paths.map_named(pool, params)
