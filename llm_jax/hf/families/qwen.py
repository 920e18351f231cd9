"""Qwen2 (and 2.5), whose queries, keys and values have biases, and Qwen3, which normalises queries and keys instead,
dense and with mixtures of experts."""
from collections.abc import Callable
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Attention,
  Block,
  MixtureOfExperts,
  NormalInit,
  RMSNorm,
  SoftmaxRouter,
)
from llm_jax.config.model.attention import PerHeadNorm
from llm_jax.config.model.count import blocks
from llm_jax.hf.families.llama import LLAMA
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import (
  EXPERTS,
  arrange,
  expect_kind,
  first_block,
  has_norms_per_head,
  read_attention,
  read_windows,
  windowed,
  write_attention,
  write_windows,
)
from llm_jax.hf.rope import read_rope


def read_qwen2(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 4_096)
  attention = read_attention(fields, d_model, heads=32, kv_heads=32, bias=True, out_bias=False)
  return _read(fields, d_model, attention)


def read_qwen3(fields: Fields) -> Architecture:
  d_model = fields.size('hidden_size', 4_096)
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  attention = read_attention(fields, d_model, heads=32, kv_heads=32, head_dim=128,
                             bias=fields.flag('attention_bias', False), qk_norm=PerHeadNorm(norm))
  return _read(fields, d_model, attention)


def _read(fields: Fields, d_model: int, attention: Attention) -> Architecture:
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  feed_forward = GLU(fields.size('intermediate_size', 22_016), fields.activation('hidden_act', 'silu'))
  num_layers = fields.size('num_hidden_layers', 32)
  windows = _read_windows(fields, num_layers)
  prefix, pattern = arrange([Block(windowed(attention, window), feed_forward, norm) for window in windows])
  return Architecture(
    vocab_size=fields.size('vocab_size', 151_936), d_model=d_model, num_layers=num_layers, prefix=prefix,
    pattern=pattern, positions=read_rope(fields)[0], norm=norm, tied_head=fields.flag('tie_word_embeddings', False),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _read_windows(fields: Fields, num_layers: int) -> list[int | None]:
  """Of each layer. Only files that say `use_sliding_window` have some, from layer `max_window_layers` on."""
  window = fields.optional_size('sliding_window', 4_096)
  first = fields.count('max_window_layers', 28)
  if not fields.flag('use_sliding_window', False):
    window = None
  has_window = lambda layer: window is not None and layer >= first
  return read_windows(fields, num_layers, window, has_window)


def write_qwen2(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  feed_forward = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward')
  windows = write_windows(config, usual=4_096)
  uses_window = 'sliding_attention' in windows['layer_types']
  return write_attention(config, attention) | windows | {
    'intermediate_size': feed_forward.width(config.d_model), 'hidden_act': ACTIVATION_NAMES[feed_forward.activation],
    'rms_norm_eps': block.norm.eps, 'use_sliding_window': uses_window, 'max_window_layers': config.num_layers}


def write_qwen3(config: Architecture) -> dict[str, Any]:
  attention = expect_kind(first_block(config).attention, Attention, 'pattern[0].attention')
  return write_qwen2(config) | {'attention_bias': attention.bias}


# ------------------------------------------------------------------------------------------------ mixtures of experts
def read_qwen3_moe(fields: Fields) -> Architecture:
  fields.expect('use_qk_norm', True, 'the family always normalises queries and keys')
  fields.read.add('max_window_layers')  # of Qwen3, and not used: all layers have the window or none
  window = fields.optional_size('sliding_window', 4_096)
  if not fields.flag('use_sliding_window', False):
    window = None
  d_model, num_layers = fields.size('hidden_size', 2_048), fields.size('num_hidden_layers', 24)
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  attention = read_attention(fields, d_model, heads=32, kv_heads=4, bias=fields.flag('attention_bias', False),
                             qk_norm=PerHeadNorm(norm), window=window)
  dense, mixture = _read_feed_forwards(fields)
  is_sparse = _read_sparse_layers(fields)
  prefix, pattern = arrange([Block(attention, mixture if is_sparse(i) else dense, norm) for i in range(num_layers)])
  return Architecture(
    vocab_size=fields.size('vocab_size', 151_936), d_model=d_model, num_layers=num_layers, prefix=prefix,
    pattern=pattern, positions=read_rope(fields)[0], norm=norm, tied_head=fields.flag('tie_word_embeddings', False),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _read_feed_forwards(fields: Fields) -> tuple[GLU, MixtureOfExperts]:
  """Of the dense layers, and of the others."""
  activation = fields.activation('hidden_act', 'silu')
  num_experts = fields.size('num_local_experts', fields.size('num_experts', 128))  # two names of the same
  fields.expect('num_experts', num_experts, f'num_local_experts says {num_experts}: let them agree')
  router = SoftmaxRouter(
    fields.number('router_aux_loss_coef', 0.001), layers_together=True,
    in_training=fields.flag('output_router_logits', False),
    weights_over='chosen' if fields.flag('norm_topk_prob', False) else 'all')
  expert = GLU(fields.size('moe_intermediate_size', 768), activation)
  mixture = MixtureOfExperts(num_experts, fields.size('num_experts_per_tok', 8), expert, router)
  return GLU(fields.size('intermediate_size', 6_144), activation), mixture


def _read_sparse_layers(fields: Fields) -> Callable[[int], bool]:
  """Whether a layer, counted from 0, has experts."""
  step, dense = fields.size('decoder_sparse_step', 1), fields.get('mlp_only_layers', [])
  is_fine = isinstance(dense, list) and all(isinstance(layer, int) and layer >= 0 for layer in dense)
  require(is_fine, 'mlp_only_layers', dense, 'use a list of the numbers of layers, the first being 0')
  return lambda layer: layer not in dense and (layer + 1) % step == 0


def write_qwen3_moe(config: Architecture) -> dict[str, Any]:
  layers = [expect_kind(block, Block, 'pattern[0]') for block in blocks(config)]
  attention = expect_kind(layers[0].attention, Attention, 'pattern[0].attention')
  dense = [i for i, block in enumerate(layers) if isinstance(block.feed_forward, GLU)]
  mixture = next(block.feed_forward for block in layers if isinstance(block.feed_forward, MixtureOfExperts))
  expert = expect_kind(mixture.expert, GLU, 'pattern[0].feed_forward.expert')
  router = expect_kind(mixture.router, SoftmaxRouter, 'pattern[0].feed_forward.router')
  widest = layers[dense[0]].feed_forward if dense else expert
  return write_attention(config, attention) | {
    'attention_bias': attention.bias, 'use_sliding_window': attention.window is not None,
    'sliding_window': attention.window, 'intermediate_size': expect_kind(widest, GLU, '').width(config.d_model),
    'hidden_act': ACTIVATION_NAMES[expert.activation], 'rms_norm_eps': layers[0].norm.eps,
    'mlp_only_layers': dense, 'decoder_sparse_step': 1, 'moe_intermediate_size': expert.width(config.d_model),
    'num_experts': mixture.num_experts, 'num_experts_per_tok': mixture.top_k,
    'norm_topk_prob': router.weights_over == 'chosen', 'router_aux_loss_coef': router.balance_weight,
    'output_router_logits': router.in_training and router.layers_together}


def has_norms_per_head_and_experts(config: Architecture) -> bool:
  has_experts = any(isinstance(block.feed_forward, MixtureOfExperts) for block in blocks(config))
  return has_experts and has_norms_per_head(config)


def has_biases_but_of_the_output(config: Architecture) -> bool:
  attention = first_block(config).attention
  return isinstance(attention, Attention) and attention.bias and not attention.has_out_bias


QWEN2 = LLAMA._replace(
  model_type='qwen2', architecture='Qwen2ForCausalLM', read=read_qwen2, write=write_qwen2,
  resembles=has_biases_but_of_the_output)
QWEN3 = LLAMA._replace(
  model_type='qwen3', architecture='Qwen3ForCausalLM', read=read_qwen3, write=write_qwen3,
  resembles=has_norms_per_head)
QWEN3_MOE = LLAMA._replace(
  model_type='qwen3_moe', architecture='Qwen3MoeForCausalLM', read=read_qwen3_moe, write=write_qwen3_moe,
  layer=(*LLAMA.layer, *EXPERTS), resembles=has_norms_per_head_and_experts)
