"""Multi-head latent attention against transformers' DeepSeek-V3, expanded and from its cache."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.deepseek_v3 import modeling_deepseek_v3

from llm_jax.config.model.architecture import GLU, Architecture, Block, LatentAttention, RMSNorm, RoPE
from llm_jax.modules import latent_attention
from llm_jax.modules.cache import init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.positions import rotation

D, H, R, NOPE, ROPE, V = 24, 3, 10, 6, 4, 5
B, T = 2, 11
DIRECT = LatentAttention(H, R, NOPE, ROPE, V)
ATTENTIONS = [DIRECT, dataclasses.replace(DIRECT, q_rank=7)]
IDS = ['direct', 'compressed']
POSITIONS = np.tile(np.arange(T), (B, 1))


@functools.cache
def theirs(q_rank):
  """transformers' module with random weights, and what it computes for random inputs: (module, x, y)."""
  torch.manual_seed(0)
  config = modeling_deepseek_v3.DeepseekV3Config(
      hidden_size=D, num_attention_heads=H, num_key_value_heads=H, q_lora_rank=q_rank, kv_lora_rank=R,
      qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=V, rope_interleave=True, attn_implementation='eager')
  module = modeling_deepseek_v3.DeepseekV3Attention(config, layer_idx=0)
  x = torch.randn(B, T, D)
  angles = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(config)(x, torch.tensor(POSITIONS))
  with torch.no_grad():
    for weight in module.parameters():
      weight.copy_(1 + 0.3 * torch.randn(weight.shape) if weight.ndim == 1 else 0.4 * torch.randn(weight.shape))
    y = module(x, angles, torch.full((T, T), -torch.inf).triu(1)[None, None])[0]
  return module, x.numpy(), y.numpy()


def params_of(module):
  """Their weights under our names. Their files have rotary pairs side by side, (0, 1), (2, 3) ...; we have halves."""
  w = {name.removesuffix('.weight'): value.numpy() for name, value in module.state_dict().items()}
  halves = np.r_[:NOPE, NOPE:NOPE + ROPE:2, NOPE + 1:NOPE + ROPE:2]
  heads = lambda w: w.T.reshape(-1, H, NOPE + ROPE)[..., halves]
  up = w['kv_b_proj'].T.reshape(R, H, NOPE + V)
  params = {'kv_down': {'w': w['kv_a_proj_with_mqa'][:R].T}, 'kv_norm': {'scale': w['kv_a_layernorm']},
            'key_rotary': {'w': w['kv_a_proj_with_mqa'][R:].T[:, halves[NOPE:] - NOPE]},
            'key_up': {'w': up[..., :NOPE]}, 'value_up': {'w': up[..., NOPE:]},
            'out': {'w': w['o_proj'].T.reshape(H, V, D)}}
  if 'q_proj' in w:
    return params | {'query': {'w': heads(w['q_proj'])}}
  return params | {'query_down': {'w': w['q_a_proj'].T}, 'query_norm': {'scale': w['q_a_layernorm']},
                   'query_up': {'w': heads(w['q_b_proj'])}}


def ours(attention, kernels):
  """(params, x, positions, cache) -> (y, cache), of one block's attention."""
  module = latent_attention.LatentAttention(attention, Execution(kernels=kernels), 0.02, 0.02, 0.0)

  @jax.jit
  def run(params, x, positions, cache=None):
    rotations = (rotation(RoPE(), ROPE, positions, kernels),)
    slots = None
    if cache is not None:
      cache, slots = cache.append(positions, None)
    inputs = LayerInputs(rotations, positions, None, slots, ((None, ROPE),))
    y, kept = module.apply({'params': params}, x, inputs, cache and cache.prefix[0], None)
    return y, cache and cache.replace(prefix=(kept,))
  return run


def one_block(attention):
  block = Block(attention, GLU(8), RMSNorm())
  return Architecture(7, D, 1, (block,), RoPE(), RMSNorm(), True, prefix=(block,))


@pytest.mark.parametrize('kernels', ['cpu', 'xla'])
@pytest.mark.parametrize('attention', ATTENTIONS, ids=IDS)
def test_equals_deepseek(attention, kernels):
  module, x, y = theirs(attention.q_rank)
  params = params_of(module)
  initial = jax.eval_shape(lambda: latent_attention.LatentAttention(
      attention, Execution(), 0.02, 0.02, 0.0).init(jax.random.key(0), x, LayerInputs(
          (rotation(RoPE(), ROPE, POSITIONS),), POSITIONS, None, None, ((None, ROPE),)), None, None))['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, initial)
  np.testing.assert_allclose(ours(attention, kernels)(params, x, POSITIONS)[0], y, atol=1e-5)


@pytest.mark.parametrize('sizes', [(T,), (5, 1, 4, 1)])
@pytest.mark.parametrize('attention', ATTENTIONS, ids=IDS)
def test_cached_equals_deepseek(attention, sizes):
  module, x, y = theirs(attention.q_rank)
  params, run, start, pieces = params_of(module), ours(attention, None), 0, []
  cache = init_cache(one_block(attention), B, T + 2)
  for size in sizes:
    piece = slice(start, start + size)
    y_piece, cache = run(params, x[:, piece], POSITIONS[:, piece], cache)
    pieces.append(y_piece)
    start += size
  np.testing.assert_allclose(np.concatenate(pieces, 1), y, atol=1e-5)
  assert [array.shape for array in cache.prefix[0].arrays] == [(B, T + 2, R), (B, T + 2, ROPE)]


def test_the_scale_is_the_configurations():
  attention = dataclasses.replace(DIRECT, scale=0.7 * (NOPE + ROPE)**-0.5)
  module, x, y = theirs(None)
  params, run = params_of(module), ours(attention, None)
  params['query']['w'] = params['query']['w'] / 0.7
  np.testing.assert_allclose(run(params, x, POSITIONS)[0], y, atol=1e-5)
  np.testing.assert_allclose(run(params, x, POSITIONS, init_cache(one_block(attention), B, T))[0], y, atol=1e-5)


def test_decoding_never_expands_the_cache():
  """Nothing that is computed for one token is as large as the keys or the values of all heads."""
  S = 97
  cache = init_cache(one_block(DIRECT), B, S)
  params = params_of(theirs(None)[0])
  program = jax.make_jaxpr(ours(DIRECT, 'xla'))(params, np.zeros((B, 1, D), np.float32), POSITIONS[:, :1], cache)
  shapes = {variable.aval.shape for equation in equations(program.jaxpr) for variable in equation.outvars}
  assert (B, 1, S, R) in shapes
  assert max(np.prod(shape) for shape in shapes if S in shape) < B * S * H * min(NOPE, V)


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      yield from equations(inner) if hasattr(inner, 'eqns') else ()
