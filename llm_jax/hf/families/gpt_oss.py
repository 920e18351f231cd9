"""gpt-oss: a sink in each head's softmax, a window in every other layer, experts with biases and a clamped SwiGLU whose
gate and up stand number by number in one tensor."""
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import (
  Architecture,
  Attention,
  Block,
  ClampedGLU,
  MixtureOfExperts,
  NormalInit,
  RMSNorm,
  RoPE,
  SoftmaxRouter,
  YaRNScaling,
)
from llm_jax.hf.families.llama import BUFFERS
from llm_jax.hf.family import Family
from llm_jax.hf.fields import QUANTISED, Fields
from llm_jax.hf.mxfp4 import is_mxfp4
from llm_jax.hf.parts import (
  ATTENTION,
  FEED_FORWARD_NORM,
  MODEL,
  arrange,
  expect_kind,
  first_block,
  read_attention,
  read_windows,
  windowed,
  write_attention,
  write_windows,
)
from llm_jax.hf.rope import read_rope

# What `transformers` assumes where a file says nothing of its positions.
YARN = {'rope_type': 'yarn', 'factor': 32.0, 'beta_fast': 32.0, 'beta_slow': 1.0, 'truncate': False,
        'original_max_position_embeddings': 4_096}

EXPERTS = (
  ('attention/sinks/logit',       'model.layers.{N}.self_attn.sinks',                   'H'),
  *FEED_FORWARD_NORM,
  ('feed_forward/router/w',       'model.layers.{N}.mlp.router.weight',                 'D E -> E D'),
  ('feed_forward/router/b',       'model.layers.{N}.mlp.router.bias',                   'E'),
  (('feed_forward/experts/gate/w', 'feed_forward/experts/up/w'),
                                  'model.layers.{N}.mlp.experts.gate_up_proj',          'E D F -> E D (F 1+)'),
  (('feed_forward/experts/gate/b', 'feed_forward/experts/up/b'),
                                  'model.layers.{N}.mlp.experts.gate_up_proj_bias',     'E F -> E (F 1+)'),
  ('feed_forward/experts/down/w', 'model.layers.{N}.mlp.experts.down_proj',             'E F D'),
  ('feed_forward/experts/down/b', 'model.layers.{N}.mlp.experts.down_proj_bias',        'E D'),
)


def read(fields: Fields) -> Architecture:
  quantisation = fields.get('quantization_config', {})
  require(not quantisation or is_mxfp4(fields.values), 'quantization_config', quantisation, QUANTISED)
  fields.read.add('hidden_act')  # transformers does not read it: the function is always the clamped one
  d_model, num_layers = fields.size('hidden_size', 2_880), fields.size('num_hidden_layers', 36)
  attention = read_attention(fields, d_model, heads=64, kv_heads=8, head_dim=64,
                             bias=fields.flag('attention_bias', True), sinks=True)
  chosen = fields.size('num_experts_per_tok', 4)
  fields.expect('experts_per_token', chosen, f'num_experts_per_tok is {chosen}: say the same')
  expert = ClampedGLU(fields.size('intermediate_size', 2_880), float(fields.number('swiglu_limit', 7.0)),
                      float(fields.number('swiglu_alpha', 1.702)), bias=True)
  router = SoftmaxRouter(balance_weight=fields.number('router_aux_loss_coef', 0.001), layers_together=True,
                         in_training=fields.flag('output_router_logits', False), bias=True)
  mixture = MixtureOfExperts(fields.size('num_local_experts', 128), chosen, expert, router)
  windows = read_windows(fields, num_layers, fields.optional_size('sliding_window', 128), lambda layer: layer % 2 == 0)
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-5))
  prefix, pattern = arrange([Block(windowed(attention, window), mixture, norm) for window in windows])
  return Architecture(
    vocab_size=fields.size('vocab_size', 201_088), d_model=d_model, num_layers=num_layers, prefix=prefix,
    pattern=pattern, positions=_read_rope(fields), norm=norm, tied_head=fields.flag('tie_word_embeddings', False),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def _read_rope(fields: Fields) -> RoPE:
  defaults: dict[str, Any] = {'rope_theta': 150_000.0, 'max_position_embeddings': 131_072}
  if not fields.values.get('rope_parameters') and not fields.values.get('rope_scaling'):
    fields = fields.with_values({'rope_parameters': YARN})
  rope, _ = read_rope(fields.with_defaults(defaults))
  if isinstance(rope.scaling, YaRNScaling):
    length = rope.scaling.original_length
    fields.expect('initial_context_length', length, f'original_max_position_embeddings is {length}: say the same')
  return rope


def write(config: Architecture) -> dict[str, Any]:
  block = expect_kind(first_block(config), Block, 'pattern[0]')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  mixture = expect_kind(block.feed_forward, MixtureOfExperts, 'pattern[0].feed_forward')
  router = expect_kind(mixture.router, SoftmaxRouter, 'pattern[0].feed_forward.router')
  expert = expect_kind(mixture.expert, ClampedGLU, 'pattern[0].feed_forward.expert')
  expect_kind(config.positions, RoPE, 'positions')
  return write_attention(config, attention) | write_windows(config, usual=128) | {
    'attention_bias': attention.bias, 'num_local_experts': mixture.num_experts, 'num_experts_per_tok': mixture.top_k,
    'intermediate_size': expert.width(config.d_model), 'hidden_act': 'silu', 'swiglu_limit': expert.limit,
    'swiglu_alpha': expert.alpha, 'router_aux_loss_coef': router.balance_weight,
    'output_router_logits': router.in_training and router.layers_together, 'rms_norm_eps': block.norm.eps}


def has_sinks(config: Architecture) -> bool:
  attention = first_block(config).attention
  return isinstance(attention, Attention) and attention.sinks


GPT_OSS = Family(
  'gpt_oss', 'GptOssForCausalLM', read, write, MODEL, (*ATTENTION, *EXPERTS), resembles=has_sinks,
  base_model_prefix='model.', ignored=BUFFERS)
