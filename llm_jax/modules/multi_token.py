"""Multi-token prediction: blocks that predict one token further ahead (DeepSeek-V3, section 2.2).

Shapes: B batch, T time, D model width.
"""
import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.model import architecture as config
from llm_jax.modules.block import Block
from llm_jax.modules.cache import Cache, KVCache, init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.layers import Linear, Norm
from llm_jax.modules.routing import Routing


class MultiToken(nn.Module):
  """One depth: from the hidden state of position i and the next token, it predicts the token after that (equations 21
  to 23).

  The hidden state is, at the first depth, the main model's output after its final norm. The paper does not say whether
  before or after the norm; vLLM and SGLang use the normed output to draft with DeepSeek-V3's published weights. At
  later depths it is the output of the previous depth's block, without a norm.
  """
  config: config.AnyBlock
  execution: Execution
  std: float
  make_block: Callable[..., Block]

  @nn.compact
  def __call__(self, x_BTD: jax.Array, next_BTD: jax.Array, inputs: LayerInputs, cache: KVCache | None
               ) -> tuple[jax.Array, jax.Array, KVCache | None, Routing | None]:
    """Returns the block's output, its normed output (which the head reads), and the cache and routing of `Block`.

    next_BTD: embeddings of the next tokens.
    """
    norm = lambda name, x: Norm(self.config.norm, self.execution, name=name)(x)
    both = jnp.concatenate([norm('hidden_norm', x_BTD), norm('embedding_norm', next_BTD)], axis=-1)
    D = x_BTD.shape[-1]
    x_BTD = Linear((2 * D, D), self.execution, std=self.std, name='project')(both)
    x_BTD, cache, routing = self.make_block(name='block')(x_BTD, inputs, cache, None)
    return x_BTD, norm('norm', x_BTD), cache, routing


def init_draft_cache(architecture: config.Architecture, batch: int, length: int, dtype=jnp.float32, lookahead: int = 0,
                     depth: int = 0) -> Cache:
  """The cache of `Transformer.draft` at one depth; the other arguments as in `init_cache`."""
  one_block = dataclasses.replace(architecture, num_layers=1, prefix=(architecture.multi_token[depth],), multi_token=())
  return init_cache(one_block, batch, length, dtype, lookahead)
