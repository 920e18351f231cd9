"""DeepSeek-V3: latent attention, dense layers first and then shared and routed experts, blocks that predict further
tokens. Rotary numbers stand in pairs in its files."""
import re
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import (
  GLU,
  Architecture,
  Block,
  LatentAttention,
  MixtureOfExperts,
  NormalInit,
  RMSNorm,
  SigmoidRouter,
)
from llm_jax.config.model.count import blocks
from llm_jax.hf.families.llama import BUFFERS
from llm_jax.hf.family import Family
from llm_jax.hf.fields import ACTIVATION_NAMES, Fields
from llm_jax.hf.parts import EXPERTS, FEED_FORWARD_NORM, GATED, MODEL, arrange, expect_kind, first_block
from llm_jax.hf.rope import read_rope

LATENT_NORM = RMSNorm(1e-6)  # its own, whatever rms_norm_eps says

LAYER = (
  ('attention_norm/scale',        'model.layers.{N}.input_layernorm.weight',                    'D'),
  ('attention/query/w',           'model.layers.{N}.self_attn.q_proj.weight',                   'D H K -> (H K~) D'),
  ('attention/query_down/w',      'model.layers.{N}.self_attn.q_a_proj.weight',                 'D R -> R D'),
  ('attention/query_norm/scale',  'model.layers.{N}.self_attn.q_a_layernorm.weight',            'R'),
  ('attention/query_up/w',        'model.layers.{N}.self_attn.q_b_proj.weight',                 'R H K -> (H K~) R'),
  (('attention/kv_down/w', 'attention/key_rotary/w'),
                                  'model.layers.{N}.self_attn.kv_a_proj_with_mqa.weight',       'D R -> R+~ D'),
  ('attention/kv_norm/scale',     'model.layers.{N}.self_attn.kv_a_layernorm.weight',           'R'),
  (('attention/key_up/w', 'attention/value_up/w'),
                                  'model.layers.{N}.self_attn.kv_b_proj.weight',                'R H K -> (H K+) R'),
  ('attention/out/w',             'model.layers.{N}.self_attn.o_proj.weight',                   'H K D -> D (H K)'),
  *FEED_FORWARD_NORM,
  *GATED,
  *EXPERTS,
  ('feed_forward/balance/bias',   'model.layers.{N}.mlp.gate.e_score_correction_bias',          'E'),
  ('feed_forward/shared/gate/w',  'model.layers.{N}.mlp.shared_experts.gate_proj.weight',       'D F -> F D'),
  ('feed_forward/shared/up/w',    'model.layers.{N}.mlp.shared_experts.up_proj.weight',         'D F -> F D'),
  ('feed_forward/shared/down/w',  'model.layers.{N}.mlp.shared_experts.down_proj.weight',       'F D -> D F'),
)
MULTI_TOKEN = (
  ('embedding_norm/scale',        'model.layers.{N}.enorm.weight',                              'D'),
  ('hidden_norm/scale',           'model.layers.{N}.hnorm.weight',                              'D'),
  ('project/w',                   'model.layers.{N}.eh_proj.weight',                            'I D -> D I^'),
  ('norm/scale',                  'model.layers.{N}.shared_head.norm.weight',                   'D'),
)
COPIES = (
  ('embedding/w',                 'model.layers.{N}.embed_tokens.weight',                       'V D'),
  ('head/w',                      'model.layers.{N}.shared_head.head.weight',                   'V D'),
)


def read(fields: Fields) -> Architecture:
  for key, only in (('rope_interleave', True), ('norm_topk_prob', True), ('moe_layer_freq', 1),
                    ('scoring_func', 'sigmoid'), ('topk_method', 'noaux_tc')):
    fields.expect(key, only, f'only {only!r} is supported, as in DeepSeek-V3')
  for key in ('rope_interleave', 'norm_topk_prob'):
    require(fields.values.get(key, True) is not None, key, None, 'null is false there, and only True is supported')
  heads, rope_dim = fields.size('num_attention_heads', 128), fields.size('qk_rope_head_dim', 64)
  nope_dim = fields.size('qk_nope_head_dim', 128)
  for key, only in (('num_key_value_heads', heads), ('head_dim', rope_dim), ('qk_head_dim', nope_dim + rope_dim)):
    fields.expect(key, only, f'must be {only}, as follows from the other sizes')
  fields.read |= {'aux_loss_alpha', 'seq_aux'}  # of their training

  positions, factor = read_rope(fields)
  attention = LatentAttention(
    heads, fields.size('kv_lora_rank', 512), nope_dim, rope_dim, fields.size('v_head_dim', 128),
    fields.optional_size('q_lora_rank', 1_536), LATENT_NORM,
    None if factor == 1 else factor * (nope_dim + rope_dim) ** -0.5)
  activation, expert_width = fields.activation('hidden_act', 'silu'), fields.size('moe_intermediate_size', 2_048)
  dense = GLU(fields.size('intermediate_size', 18_432), activation)
  mixture = MixtureOfExperts(
    fields.size('n_routed_experts', 256), fields.size('num_experts_per_tok', 8), GLU(expert_width, activation),
    # As with transformers, training on changes neither the bias of the experts nor the loss for their balance: no entry
    # states a rate, and `aux_loss_alpha` is of the training that made the file.
    SigmoidRouter(fields.size('n_group', 8), fields.size('topk_group', 4), fields.number('routed_scaling_factor', 2.5),
                  bias_rate=0.0, sequence_balance_weight=0.0),
    GLU(fields.size('n_shared_experts', 1) * expert_width, activation))
  norm = RMSNorm(fields.number('rms_norm_eps', 1e-6))
  num_layers, num_dense = fields.size('num_hidden_layers', 61), fields.count('first_k_dense_replace', 3)
  layers = [Block(attention, dense if i < num_dense else mixture, norm) for i in range(num_layers)]
  prefix, pattern = arrange(layers)
  return Architecture(
    vocab_size=fields.size('vocab_size', 129_280), d_model=fields.size('hidden_size', 7_168), num_layers=num_layers,
    positions=positions, norm=norm, tied_head=fields.flag('tie_word_embeddings', False), prefix=prefix,
    pattern=pattern, multi_token=(Block(attention, mixture, norm),) * fields.count('num_nextn_predict_layers', 0),
    init=NormalInit(fields.number('initializer_range', 0.02)))


def write(config: Architecture) -> dict[str, Any]:
  layers = [expect_kind(block, Block, 'pattern[0]') for block in blocks(config)]
  attention = expect_kind(layers[0].attention, LatentAttention, 'pattern[0].attention')
  sparse = [block.feed_forward for block in layers if isinstance(block.feed_forward, MixtureOfExperts)]
  dense = [block.feed_forward for block in layers if isinstance(block.feed_forward, GLU)]
  require(bool(sparse), 'model.pattern[0].feed_forward', type(layers[0].feed_forward).__name__,
          'a deepseek_v3 model has a mixture of experts in its last layers, so this cannot be exported')
  mixture, expert = sparse[0], expect_kind(sparse[0].expert, GLU, 'pattern[0].feed_forward.expert')
  width = expert.width(config.d_model)
  router = expect_kind(mixture.router, SigmoidRouter, 'pattern[0].feed_forward.router')
  shared = expect_kind(mixture.shared, GLU, 'pattern[0].feed_forward.shared').width(config.d_model)
  return {
    'hidden_size': config.d_model, 'num_hidden_layers': config.num_layers, 'first_k_dense_replace': len(dense),
    'num_attention_heads': attention.num_heads, 'num_key_value_heads': attention.num_heads,
    'kv_lora_rank': attention.kv_rank, 'q_lora_rank': attention.q_rank, 'qk_nope_head_dim': attention.nope_dim,
    'qk_rope_head_dim': attention.rope_dim, 'v_head_dim': attention.v_dim, 'rope_interleave': True,
    'intermediate_size': dense[0].width(config.d_model) if dense else width, 'moe_intermediate_size': width,
    'hidden_act': ACTIVATION_NAMES[expert.activation], 'n_routed_experts': mixture.num_experts,
    'n_shared_experts': max(1, shared // width), 'num_experts_per_tok': mixture.top_k, 'n_group': router.groups,
    'topk_group': router.top_groups, 'routed_scaling_factor': router.scale, 'norm_topk_prob': True,
    'num_nextn_predict_layers': len(config.multi_token), 'rms_norm_eps': layers[0].norm.eps}


DEEPSEEK_V3 = Family(
  'deepseek_v3', 'DeepseekV3ForCausalLM', read, write, MODEL, LAYER, multi_token=MULTI_TOKEN, copies=COPIES,
  resembles=lambda config: isinstance(first_block(config).attention, LatentAttention),
  base_model_prefix='model.', ignored=BUFFERS, float32=re.compile(r'\.e_score_correction_bias$'))
