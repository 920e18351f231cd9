"""Counting by arithmetic = the leaves that the modules would make, by their shapes alone."""
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from llm_jax.config import presets
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  Architecture,
  Attention,
  Block,
  LatentAttention,
  LayerNorm,
  MixtureOfExperts,
  PostNormBlock,
  RMSNorm,
  RoPE,
  SandwichBlock,
  SigmoidRouter,
  SinusoidalPositions,
  SoftmaxRouter,
  ZeroCenteredRMSNorm,
)
from llm_jax.config.model.count import (
  count_active_parameters,
  count_matmul_parameters,
  count_multi_token,
  count_parameters,
)
from llm_jax.modules.transformer import Transformer

EXPERTS = MixtureOfExperts(4, 2, GLU(12), SigmoidRouter(), shared=GLU(24))
LATENT = LatentAttention(num_heads=2, kv_rank=6, nope_dim=4, rope_dim=2, v_dim=5, q_rank=7)
ODD = {
  'biases': (Block(Attention(2, 1, head_dim=6, bias=True), GLU(24, bias=True), LayerNorm()), RoPE(), LayerNorm()),
  'post-norm': (PostNormBlock(Attention(2), MLP(), LayerNorm()), SinusoidalPositions(), None),
  'sandwich': (SandwichBlock(Attention(2), GLU(24), ZeroCenteredRMSNorm()), RoPE(), ZeroCenteredRMSNorm()),
  'latent': (Block(LATENT, MLP(), RMSNorm()), RoPE(), RMSNorm()),
  'latent, queries direct': (Block(dataclasses.replace(LATENT, q_rank=None), MLP(), RMSNorm()), RoPE(), RMSNorm()),
  'sigmoid router': (Block(Attention(2), EXPERTS, RMSNorm()), RoPE(), RMSNorm()),
  'softmax router': (Block(Attention(2), MixtureOfExperts(3, 1, MLP(20), SoftmaxRouter()), RMSNorm()), RoPE(), None),
}


def leaves(architecture: Architecture) -> dict[str, int]:
  """Sizes of all parameters by the first part of their path; nothing is allocated."""
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  params = jax.eval_shape(Transformer(architecture).init, jax.random.key(0), tokens)['params']
  return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}


def check(architecture: Architecture) -> None:
  sizes = leaves(architecture)
  mtp = sum(size for name, size in sizes.items() if name.startswith('multi_token'))
  assert sum(sizes.values()) - mtp == count_parameters(architecture)
  assert mtp == count_multi_token(architecture)


@pytest.mark.parametrize('name', presets.NAMES)
def test_every_preset(name):
  check(getattr(presets, name)())


@pytest.mark.parametrize('name', ODD)
@pytest.mark.parametrize('tied', (True, False))
def test_every_type(name, tied):
  block, positions, norm = ODD[name]
  check(Architecture(19, 8, 3, prefix=(block,), pattern=(block,), positions=positions, norm=norm, tied_head=tied,
                     multi_token=(block,)))


def test_active_parameters():
  """An expert not chosen is not active: dropping it from the model takes away it, its router column and its bias."""
  block = Block(Attention(2), EXPERTS, RMSNorm())
  model = Architecture(19, 8, 3, pattern=(block,), positions=RoPE(), norm=RMSNorm(), tied_head=False)
  expert = 3 * 8 * 12
  assert count_parameters(model) - count_active_parameters(model) == 3 * (4 - 2) * expert
  assert count_matmul_parameters(model) == count_active_parameters(model) - 19 * 8
  mtp = dataclasses.replace(model, multi_token=(block,))
  idle = (4 - 2) * expert
  assert count_matmul_parameters(mtp) - count_matmul_parameters(model) == count_multi_token(mtp) - idle + 19 * 8
  all_chosen = dataclasses.replace(EXPERTS, top_k=4)
  model = dataclasses.replace(model, pattern=(dataclasses.replace(block, feed_forward=all_chosen),))
  assert count_parameters(model) == count_active_parameters(model)
