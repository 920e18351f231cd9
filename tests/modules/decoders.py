"""Small decoders, one for each kind of cache and what goes with it."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import paths
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  Architecture,
  Attention,
  Block,
  ClampedGLU,
  LatentAttention,
  LayerNorm,
  LearnedPositions,
  LongRoPEScaling,
  MixtureOfExperts,
  NoPositions,
  OutputNormBlock,
  ParallelBlock,
  PostNormBlock,
  RMSNorm,
  RoPE,
  SandwichBlock,
  SinusoidalPositions,
  SoftmaxRouter,
  ZeroCenteredRMSNorm,
)
from llm_jax.config.model.attention import FullWidthNorm
from llm_jax.modules.transformer import Transformer

VOCAB, D, WINDOW = 53, 32, 3


def decoder(pattern, num_layers=2, **changes) -> Architecture:
  parts = dict(positions=RoPE(), norm=RMSNorm(), tied_head=False)
  return Architecture(VOCAB, D, num_layers, pattern, **parts | changes)


def windowed(block, window=WINDOW):
  return dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=window))


def turned(block, positions):
  return dataclasses.replace(block, attention=dataclasses.replace(block.attention, positions=positions))


LLAMA = Block(Attention(4, 2), GLU(48), RMSNorm())
GPT = Block(Attention(4, bias=True), MLP(48, bias=True), LayerNorm())
GEMMA = SandwichBlock(Attention(4, 2, head_dim=6, soft_cap=2.0, scale=0.5), GLU(48, 'gelu_tanh'), ZeroCenteredRMSNorm())
LATENT = Block(LatentAttention(4, kv_rank=12, nope_dim=6, rope_dim=4, v_dim=5, q_rank=10), GLU(48), RMSNorm())
OUTPUT = OutputNormBlock(Attention(4, 2, bias=True, out_bias=False, qk_norm=FullWidthNorm()), GLU(48), RMSNorm())
PARALLEL = ParallelBlock(Attention(4, 2, bias=True, rotary_dim=2), MLP(48, bias=True), LayerNorm())
SINKS = Block(Attention(4, 2, bias=True, sinks=True),
              MixtureOfExperts(4, 2, ClampedGLU(12, limit=0.5, bias=True), SoftmaxRouter(bias=True)), RMSNorm())
POST = PostNormBlock(Attention(2), MLP(48, bias=True), LayerNorm())

DECODERS = {
    'full': decoder((LLAMA,), 3, prefix=(windowed(LLAMA, 64),)),  # a window that is never full
    'rolling': decoder((windowed(LLAMA),)),
    'local-global': decoder((windowed(GEMMA), GEMMA), 4, embedding_scale=D**0.5, logit_soft_cap=3.0),
    'dense-banded': decoder((GPT, windowed(GPT, 1)), 3, prefix=(windowed(GPT, 6),), positions=LearnedPositions(64),
                            norm=LayerNorm()),
    'post-norm': decoder((windowed(POST),), positions=SinusoidalPositions(), norm=None),
    'output-norm, own positions': decoder(
      (windowed(turned(OUTPUT, RoPE(500.0))), turned(OUTPUT, NoPositions()), OUTPUT), 3),
    'parallel': decoder((PARALLEL, windowed(PARALLEL)), 3, prefix=(PARALLEL,), norm=LayerNorm()),
    'sinks': decoder((windowed(SINKS), SINKS)),
    'two lengths': decoder((dataclasses.replace(LLAMA, attention=Attention(4, 2, rotary_dim=6)),), positions=RoPE(
      10_000.0, LongRoPEScaling((1.0, 1.2, 1.5), (2.0, 4.0, 8.0), 4.0, original_length=16))),
    'latent': decoder((LATENT,)),
    'everything': decoder((LATENT, windowed(LLAMA)), 3, prefix=(LLAMA,)),
}


def make_params(config: Architecture, std: float = 0.2):
  """Weights large enough that the tokens vary."""
  shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  rng = np.random.default_rng(0)
  random = lambda path, shape: (rng.normal(0, std, shape) + path.endswith('norm/scale')).astype(np.float32)
  return paths.map_named(lambda path, leaf: random(path, leaf.shape), shapes)
