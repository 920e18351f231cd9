"""Mixtral: Mistral with a sparse mixture of experts in every layer."""
from typing import Any

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
from llm_jax.hf.families.llama import BUFFERS
from llm_jax.hf.family import Family
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import (
  ATTENTION,
  FEED_FORWARD_NORM,
  MODEL,
  expect_kind,
  first_block,
  read_attention,
  write_attention,
)
from llm_jax.hf.rope import read_rope

EXPERTS = (
  ('feed_forward/router/w',       'model.layers.{N}.block_sparse_moe.gate.weight',            'D E -> E D'),
  ('feed_forward/experts/gate/w', 'model.layers.{N}.block_sparse_moe.experts.{E}.w1.weight',  'E D F -> F D'),
  ('feed_forward/experts/down/w', 'model.layers.{N}.block_sparse_moe.experts.{E}.w2.weight',  'E F D -> D F'),
  ('feed_forward/experts/up/w',   'model.layers.{N}.block_sparse_moe.experts.{E}.w3.weight',  'E D F -> F D'),
)


def read(fields: Fields) -> Architecture:
  fields.expect('router_jitter_noise', 0.0, 'routing without noise is supported only')
  d_model = fields.size('hidden_size', 4_096)
  attention = read_attention(fields, d_model, heads=32, kv_heads=8, window=fields.size('sliding_window', None))
  feed_forward = MixtureOfExperts(
    fields.size('num_local_experts', 8), fields.size('num_experts_per_tok', 2),
    GLU(fields.size('intermediate_size', 14_336), fields.activation('hidden_act', 'silu')),
    SoftmaxRouter(balance_weight=fields.number('router_aux_loss_coef', 0.001), layers_together=True,
                  in_training=fields.flag('output_router_logits', False)))
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-5))
  return Architecture(
    vocab_size=fields.size('vocab_size', 32_000), d_model=d_model, num_layers=fields.size('num_hidden_layers', 32),
    pattern=(Block(attention, feed_forward, norm),), positions=read_rope(fields, 1e6)[0], norm=norm,
    tied_head=fields.flag('tie_word_embeddings', False), init=NormalInit(fields.number('initializer_range', 0.02)))


def write(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  mixture = expect_kind(block.feed_forward, MixtureOfExperts, 'pattern[0].feed_forward')
  router = expect_kind(mixture.router, SoftmaxRouter, 'pattern[0].feed_forward.router')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  expert = expect_kind(mixture.expert, GLU, 'pattern[0].feed_forward.expert')
  return write_attention(config, attention) | {
    'num_local_experts': mixture.num_experts, 'num_experts_per_tok': mixture.top_k,
    'intermediate_size': expert.width(config.d_model), 'hidden_act': ACTIVATION_NAMES[expert.activation],
    'router_aux_loss_coef': router.balance_weight,
    'output_router_logits': router.in_training and router.layers_together,
    'sliding_window': attention.window, 'rms_norm_eps': block.norm.eps}


MIXTRAL = Family(
  'mixtral', 'MixtralForCausalLM', read, write, MODEL, (*ATTENTION, *FEED_FORWARD_NORM, *EXPERTS),
  resembles=lambda config: isinstance(first_block(config).feed_forward, MixtureOfExperts),
  base_model_prefix='model.', ignored=BUFFERS)
