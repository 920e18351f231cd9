"""Tiny random decoders of `transformers`: the reference of every test in this folder."""
import copy
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
import transformers

from llm_jax import hf
from llm_jax.batch import LanguageModelBatch

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCAB = 131  # a prime: nothing divides it
NO_CONTROL = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
SMALL = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=72, **NO_CONTROL)


def rope(kind='default', theta=10_000.0, **rest):
  return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **rest))


LLAMA3 = rope('llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(factor=4.0, original_max_position_embeddings=16)


def gpt2(**changes):
  return transformers.GPT2Config(**(dict(
    vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=48, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    **NO_CONTROL) | changes))


def openai(**changes):
  return transformers.OpenAIGPTConfig(**(dict(
    vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=48, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    **NO_CONTROL) | changes))


def gpt_neox(**changes):
  return transformers.GPTNeoXConfig(**(dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=72,
    **NO_CONTROL) | changes))


def llama(**changes):
  return transformers.LlamaConfig(**(SMALL | rope() | changes))


def mistral(**changes):
  return transformers.MistralConfig(**(SMALL | rope() | dict(sliding_window=7) | changes))


def gpt_oss(**changes):
  """The clamped SwiGLU cuts some values, and the window rolls."""
  return transformers.GptOssConfig(**(SMALL | dict(
    head_dim=12, sliding_window=7, num_local_experts=5, num_experts_per_tok=2, intermediate_size=40, swiglu_limit=0.4,
    max_position_embeddings=64, **rope('yarn', 150_000.0, **YARN, truncate=False)) | changes))


def mixtral(**changes):
  return transformers.MixtralConfig(**(SMALL | rope() | dict(
    num_local_experts=5, num_experts_per_tok=2, intermediate_size=40) | changes))


def phi3(**changes):
  return transformers.Phi3Config(**(SMALL | rope() | dict(sliding_window=7) | changes))


def gemma(**changes):
  return transformers.GemmaConfig(**(SMALL | rope() | dict(head_dim=12) | changes))


def gemma2(**changes):
  return transformers.Gemma2Config(**(SMALL | rope() | dict(
    head_dim=12, query_pre_attn_scalar=9, sliding_window=7, num_hidden_layers=5, attn_logit_softcapping=5.0,
    final_logit_softcapping=3.0) | changes))


def gemma3(**changes):
  return transformers.Gemma3TextConfig(**(SMALL | dict(
    head_dim=12, query_pre_attn_scalar=9, sliding_window=7, num_hidden_layers=8) | changes))


def qwen2(**changes):
  return transformers.Qwen2Config(**(SMALL | rope() | changes))


def qwen3(**changes):
  return transformers.Qwen3Config(**(SMALL | rope() | dict(head_dim=12) | changes))


def qwen3_moe(**changes):
  return transformers.Qwen3MoeConfig(**(SMALL | rope() | dict(
    head_dim=12, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True) | changes))


def olmo2(**changes):
  return transformers.Olmo2Config(**(SMALL | rope() | changes))


def olmo3(**changes):
  return transformers.Olmo3Config(**(SMALL | dict(num_hidden_layers=4, sliding_window=7) | changes))


def smollm3(**changes):
  return transformers.SmolLM3Config(**(SMALL | rope() | dict(num_hidden_layers=4) | changes))


def deepseek(**changes):
  return transformers.DeepseekV3Config(**(SMALL | rope() | dict(
    num_key_value_heads=4, num_hidden_layers=3, first_k_dense_replace=1, kv_lora_rank=12, q_lora_rank=20,
    qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14, moe_intermediate_size=24, n_shared_experts=2,
    n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3, routed_scaling_factor=1.5) | changes))


def longrope(original, pairs=4):
  """Of a model that was trained on sequences of `original` tokens."""
  short, long = [1.0 + 0.1 * i for i in range(pairs)], [1.5 + 1.5 * i for i in range(pairs)]
  return rope('longrope', short_factor=short, long_factor=long) | dict(
    original_max_position_embeddings=original, max_position_embeddings=4 * original)


CASES = {
  'gpt2': gpt2(),
  'gpt2 untied, exact gelu, narrow': gpt2(tie_word_embeddings=False, activation_function='gelu', n_inner=56),
  'openai gpt': openai(),
  'openai gpt untied, silu': openai(tie_word_embeddings=False, afn='silu'),
  'gpt_neox': gpt_neox(),
  'gpt_neox in sequence, half turned, tanh, tied': gpt_neox(
    use_parallel_residual=False, rotary_pct=0.5, rotary_emb_base=500, hidden_act='gelu_new', tie_word_embeddings=True),
  'gpt_neox whole heads, no biases, linear': gpt_neox(
    attention_bias=False, layer_norm_eps=1e-3, **rope('linear', factor=4.0, partial_rotary_factor=1.0)),
  'gpt_neox yarn, odd heads': gpt_neox(
    hidden_size=30, num_attention_heads=3, max_position_embeddings=64,
    **rope('yarn', **YARN, partial_rotary_factor=0.6)),
  'llama gqa': llama(),
  'llama mqa, large head, theta 500000': llama(num_key_value_heads=1, head_dim=24, **rope(theta=500_000.0)),
  'llama biases, linear': llama(attention_bias=True, mlp_bias=True, **rope('linear', factor=4.0)),
  'llama llama3, tied': llama(max_position_embeddings=128, tie_word_embeddings=True, **LLAMA3),
  'llama mha, yarn': llama(num_key_value_heads=4, max_position_embeddings=64, **rope('yarn', **YARN)),
  'llama yarn, factor, betas': llama(max_position_embeddings=64, rms_norm_eps=1e-5, **rope(
    'yarn', **YARN, attention_factor=1.25, beta_fast=8.0, beta_slow=0.5)),
  'mistral': mistral(),
  'mistral one head, large, tied': mistral(num_key_value_heads=1, head_dim=20, sliding_window=3,
                                           tie_word_embeddings=True),
  'mixtral': mixtral(),
  'mixtral window, tied': mixtral(sliding_window=7, num_experts_per_tok=3, head_dim=12, tie_word_embeddings=True),
  'gpt_oss': gpt_oss(),
  'gpt_oss no biases of attention, other layers, plain positions, tied': gpt_oss(
    num_hidden_layers=3, layer_types=['full_attention', 'full_attention', 'sliding_attention'], attention_bias=False,
    num_key_value_heads=1, num_experts_per_tok=4, swiglu_limit=1.5, swiglu_alpha=1.0, tie_word_embeddings=True,
    **rope(theta=500.0)),
  'phi3': phi3(),
  'phi3 longrope, short rows, mha': phi3(num_key_value_heads=4, sliding_window=None, **longrope(original=64)),
  'phi3 longrope, long rows, part of a head, tied': phi3(
    num_key_value_heads=1, sliding_window=100, partial_rotary_factor=0.75, tie_word_embeddings=True, hidden_act='gelu',
    **longrope(original=16, pairs=3)),
  'phi3 part of a head, theta 250000': phi3(partial_rotary_factor=0.3, **rope(theta=250_000.0)),
  'llama longrope, attention factor': llama(max_position_embeddings=64, **rope(
    'longrope', short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[1.0, 2.0, 4.0, 8.0], factor=4.0, attention_factor=1.25,
    original_max_position_embeddings=16)),
  'gemma': gemma(),
  'gemma one head, untied, silu': gemma(num_key_value_heads=1, tie_word_embeddings=False, hidden_act='silu'),
  'gemma2': gemma2(),
  'gemma2 no caps': gemma2(num_hidden_layers=2, attn_logit_softcapping=None, final_logit_softcapping=None,
                           query_pre_attn_scalar=12, attention_bias=True, num_key_value_heads=1),
  'gemma2 other layers': gemma2(layer_types=['full_attention', 'sliding_attention', 'sliding_attention'] * 2,
                                num_hidden_layers=6, tie_word_embeddings=False),
  'gemma3': gemma3(),
  'gemma3 scaled, capped logits, untied': gemma3(
    num_hidden_layers=6, num_key_value_heads=1, attention_bias=True, query_pre_attn_scalar=12,
    final_logit_softcapping=3.0, tie_word_embeddings=False,
    layer_types=['full_attention', 'sliding_attention', 'sliding_attention'] * 2,
    rope_parameters=dict(full_attention=dict(rope_type='linear', rope_theta=1e5, factor=8.0),
                         sliding_attention=dict(rope_type='default', rope_theta=500.0))),
  'qwen2': qwen2(),
  'qwen2 windows in the later layers, tied': qwen2(
    num_hidden_layers=4, use_sliding_window=True, sliding_window=7, max_window_layers=2, num_key_value_heads=1,
    tie_word_embeddings=True, **rope(theta=1e6)),
  'qwen3': qwen3(),
  'qwen3 biases, yarn, tied': qwen3(attention_bias=True, tie_word_embeddings=True, num_key_value_heads=4,
                                    max_position_embeddings=64, **rope('yarn', **YARN)),
  'qwen3_moe': qwen3_moe(),
  'qwen3_moe probabilities as weights, dense layers, biases, window': qwen3_moe(
    norm_topk_prob=False, num_hidden_layers=5, mlp_only_layers=[1], decoder_sparse_step=2, attention_bias=True,
    use_sliding_window=True, sliding_window=7, num_experts=5, num_key_value_heads=1),
  'qwen3_moe dense first, other heads, yarn, tied': qwen3_moe(
    mlp_only_layers=[0], num_hidden_layers=3, head_dim=8, num_experts_per_tok=2, num_key_value_heads=4,
    tie_word_embeddings=True, max_position_embeddings=64, **rope('yarn', **YARN)),
  'olmo2': olmo2(),
  'olmo2 biases, silu': olmo2(attention_bias=True, num_key_value_heads=4, rms_norm_eps=1e-6,
                              **rope(theta=500_000.0)),
  'olmo3': olmo3(),
  'olmo3 yarn in the full layers': olmo3(
    num_hidden_layers=5, num_key_value_heads=4, rms_norm_eps=1e-6, max_position_embeddings=64,
    rope_parameters=dict(full_attention=dict(rope_type='yarn', rope_theta=1e5, **YARN),
                         sliding_attention=dict(rope_type='default', rope_theta=1e5))),
  'smollm3': smollm3(),
  'smollm3 other layers, mlp biases, untied': smollm3(
    num_hidden_layers=5, no_rope_layers=[0, 1, 1, 0, 1], mlp_bias=True,
    tie_word_embeddings=False),
  'deepseek': deepseek(),
  'deepseek direct query, yarn': deepseek(
    q_lora_rank=None, max_position_embeddings=64, num_hidden_layers=2, rms_norm_eps=1e-5,
    **rope('yarn', **YARN, mscale=0.7, mscale_all_dim=1.3)),
  'deepseek all sparse, one group, tied': deepseek(
    first_k_dense_replace=0, n_group=1, topk_group=1, n_shared_experts=1, num_hidden_layers=2,
    tie_word_embeddings=True),
}


def make(config, seed=0):
  """A model with weights large enough that no part of it is close to linear."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager').eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(std=0.1)
      if parameter.ndim == 1 and name.endswith('.weight') and not config.model_type.startswith('gemma'):
        parameter += 1  # the norms' scales
    for name, buffer in model.named_buffers():
      if name.endswith('e_score_correction_bias'):
        buffer.uniform_(-0.1, 0.1)
  return model


def tensors(folder):
  """All tensors of a folder, read by the library."""
  files = pathlib.Path(folder).glob('*.safetensors')
  return {name: tensor for file in files for name, tensor in safetensors.numpy.load_file(file).items()}


def in_files(model):
  """The model's tensors by the names that files have (some are fused in memory)."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return tensors(folder)


def gradient_in_files(model):
  """The gradient of its parameters by the same names."""
  twin = copy.deepcopy(model)
  for parameter, original in zip(twin.parameters(), model.parameters(), strict=True):
    parameter.data = original.grad
  return in_files(twin)


def to_ours(model):
  """Architecture and parameters of a torch model."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return hf.load_pretrained(folder)


def batch(seed=0, rows=3, time=40):
  """Random tokens, targets and 0/1 weights, one document a row."""
  random = np.random.default_rng(seed)
  tokens = random.integers(0, VOCAB, (rows, time + 1))
  weights = (random.random((rows, time)) < 0.7).astype(np.float32)
  positions = np.broadcast_to(np.arange(time), (rows, time))
  return LanguageModelBatch(*(jnp.asarray(x) for x in (
    tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32), weights, positions, np.ones_like(positions))))


def torch_loss(model, batch):
  """Mean cross-entropy of the weighted targets."""
  tokens, targets, weights = (torch.tensor(np.asarray(x)) for x in (batch.tokens, batch.targets, batch.weights))
  logits = model(tokens.long()).logits
  losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), reduction='none')
  return (losses * weights.flatten()).sum() / weights.sum()
