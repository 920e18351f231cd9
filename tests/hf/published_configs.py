"""The entries of published `config.json` files, and the preset that each is: models of a family, and models that others
trained further. Typed in from the public copies; entries that only name programs are left out."""
from llm_jax.config import presets
from llm_jax.config.presets import phi3_factors

QWEN3_MOE_ENTRIES = dict(
  architectures=['Qwen3MoeForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
  decoder_sparse_step=1, eos_token_id=151645, head_dim=128, hidden_act='silu', hidden_size=2048,
  initializer_range=0.02, intermediate_size=6144, max_position_embeddings=40960, max_window_layers=48,
  mlp_only_layers=[], model_type='qwen3_moe', moe_intermediate_size=768, norm_topk_prob=True, num_attention_heads=32,
  num_experts=128, num_experts_per_tok=8, num_hidden_layers=48, num_key_value_heads=4, output_router_logits=False,
  rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000.0, router_aux_loss_coef=0.001, sliding_window=None,
  tie_word_embeddings=False, torch_dtype='bfloat16', transformers_version='4.51.0', use_cache=True,
  use_sliding_window=False, vocab_size=151936)
QWEN3_235B_ENTRIES = QWEN3_MOE_ENTRIES | dict(
  hidden_size=4096, intermediate_size=12288, max_window_layers=94, moe_intermediate_size=1536, num_attention_heads=64,
  num_hidden_layers=94)
QWEN3_CODER_ENTRIES = QWEN3_MOE_ENTRIES | dict(
  intermediate_size=5472, max_position_embeddings=262144, max_window_layers=28, qkv_bias=False, rope_theta=10000000,
  router_aux_loss_coef=0.0, shared_expert_intermediate_size=0, use_qk_norm=True)

PHI3_CODE = dict(AutoConfig='configuration_phi3.Phi3Config', AutoModelForCausalLM='modeling_phi3.Phi3ForCausalLM')
PHI3_MINI_ENTRIES = dict(
  _name_or_path='Phi-3-mini-4k-instruct', architectures=['Phi3ForCausalLM'], attention_bias=False,
  attention_dropout=0.0, auto_map=PHI3_CODE, bos_token_id=1, embd_pdrop=0.0, eos_token_id=32000, hidden_act='silu',
  hidden_size=3072, initializer_range=0.02, intermediate_size=8192, max_position_embeddings=4096, model_type='phi3',
  num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, original_max_position_embeddings=4096,
  pad_token_id=32000, resid_pdrop=0.0, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0, sliding_window=2047,
  tie_word_embeddings=False, torch_dtype='bfloat16', transformers_version='4.40.2', use_cache=True, vocab_size=32064)
PHI3_MINI_128K_ENTRIES = PHI3_MINI_ENTRIES | dict(
  max_position_embeddings=131072, sliding_window=262144, rope_scaling=dict(
    long_factor=list(phi3_factors.PHI3_MINI_LONG), short_factor=list(phi3_factors.PHI3_MINI_SHORT), type='longrope'))
PHI3_5_MINI_ENTRIES = PHI3_MINI_128K_ENTRIES | dict(
  _name_or_path='Phi-3.5-mini-instruct', rope_scaling=dict(
    long_factor=list(phi3_factors.PHI3_5_MINI_LONG), short_factor=list(phi3_factors.PHI3_5_MINI_SHORT),
    type='longrope'))
PHI3_MEDIUM_ENTRIES = PHI3_MINI_ENTRIES | dict(
  _name_or_path='Phi-3-medium-4k-instruct', hidden_size=5120, intermediate_size=17920, num_attention_heads=40,
  num_hidden_layers=40, num_key_value_heads=10)
PHI4_ENTRIES = PHI3_MEDIUM_ENTRIES | dict(
  _name_or_path='microsoft/phi-4', auto_map={}, bos_token_id=100257, eos_token_id=100257,
  max_position_embeddings=16384, original_max_position_embeddings=16384, pad_token_id=100257, rope_theta=250000,
  sliding_window=None, transformers_version='4.47.0', vocab_size=100352)
PHI4_REASONING_ENTRIES = PHI4_ENTRIES | dict(
  eos_token_id=100265, max_position_embeddings=32768, original_max_position_embeddings=32768, pad_token_id=100349,
  rope_theta=500000, transformers_version='4.51.1')
PHI4_MINI_ENTRIES = PHI3_MINI_128K_ENTRIES | dict(
  _name_or_path='Phi-4-mini-instruct', auto_map=PHI3_CODE | dict(AutoTokenizer='Xenova/gpt-4o'), bos_token_id=199999,
  eos_token_id=199999, full_attn_mod=1, interpolate_factor=1, lm_head_bias=False, mlp_bias=False,
  num_attention_heads=24, num_key_value_heads=8, pad_token_id=199999, partial_rotary_factor=0.75, rope_scaling=dict(
    long_factor=list(phi3_factors.PHI4_MINI_LONG), short_factor=[1.0] * 48, type='longrope'),
  tie_word_embeddings=True, transformers_version='4.45.0', vocab_size=200064)
PHI3_5_MOE_ENTRIES = dict(
  architectures=['PhiMoEForCausalLM'], attention_bias=True, attention_dropout=0.0, auto_map=dict(
    AutoConfig='configuration_phimoe.PhiMoEConfig', AutoModelForCausalLM='modeling_phimoe.PhiMoEForCausalLM'),
  hidden_act='silu', hidden_size=4096, input_jitter_noise=0.01, intermediate_size=6400, lm_head_bias=True,
  max_position_embeddings=131072, model_type='phimoe', num_attention_heads=32, num_experts_per_tok=2,
  num_hidden_layers=32, num_key_value_heads=8, num_local_experts=16, original_max_position_embeddings=4096,
  rms_norm_eps=1e-05, rope_theta=10000.0, router_aux_loss_coef=0.0, router_jitter_noise=0.01, sliding_window=131072,
  tie_word_embeddings=False, vocab_size=32064)

# Trained further by others, under the architecture that they began with.
R1_DISTILL_QWEN_ENTRIES = dict(
  architectures=['Qwen2ForCausalLM'], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643,
  hidden_act='silu', hidden_size=3584, initializer_range=0.02, intermediate_size=18944, max_position_embeddings=131072,
  max_window_layers=28, model_type='qwen2', num_attention_heads=28, num_hidden_layers=28, num_key_value_heads=4,
  rms_norm_eps=1e-06, rope_theta=10000, sliding_window=4096, tie_word_embeddings=False, torch_dtype='bfloat16',
  transformers_version='4.44.0', use_cache=True, use_mrope=False, use_sliding_window=False, vocab_size=152064)
R1_DISTILL_LLAMA_ENTRIES = dict(
  architectures=['LlamaForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
  eos_token_id=128001, hidden_act='silu', hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
  max_position_embeddings=131072, mlp_bias=False, model_type='llama', num_attention_heads=32, num_hidden_layers=32,
  num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type='llama3'),
  rope_theta=500000.0, tie_word_embeddings=False, torch_dtype='bfloat16', transformers_version='4.43.0.dev0',
  use_cache=True, vocab_size=128256)
TULU3_ENTRIES = R1_DISTILL_LLAMA_ENTRIES | dict(
  _name_or_path='allenai/Llama-3.1-Tulu-3-8B-DPO', eos_token_id=128009, head_dim=128, pad_token_id=128256,
  transformers_version='4.46.3', vocab_size=128264)
ZEPHYR_ENTRIES = dict(
  _name_or_path='HuggingFaceH4/mistral-7b-sft-beta', architectures=['MistralForCausalLM'], bos_token_id=1,
  eos_token_id=2, hidden_act='silu', hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
  max_position_embeddings=32768, model_type='mistral', num_attention_heads=32, num_hidden_layers=32,
  num_key_value_heads=8, pad_token_id=2, rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096,
  tie_word_embeddings=False, torch_dtype='bfloat16', transformers_version='4.35.0', use_cache=True, vocab_size=32000)

PUBLISHED = {
  'Qwen/Qwen3-30B-A3B': (QWEN3_MOE_ENTRIES, presets.qwen3_30b_a3b()),
  'Qwen/Qwen3-235B-A22B': (QWEN3_235B_ENTRIES, presets.qwen3_235b_a22b()),
  'Qwen/Qwen3-Coder-30B-A3B-Instruct': (
    QWEN3_CODER_ENTRIES, presets.qwen3_30b_a3b(rope_theta=1e7, max_length=262_144)),
  'microsoft/Phi-3-mini-4k-instruct': (PHI3_MINI_ENTRIES, presets.phi3_mini_4k()),
  'microsoft/Phi-3-mini-128k-instruct': (PHI3_MINI_128K_ENTRIES, presets.phi3_mini_128k()),
  'microsoft/Phi-3-medium-4k-instruct': (PHI3_MEDIUM_ENTRIES, presets.phi3_medium_4k()),
  'microsoft/Phi-3.5-mini-instruct': (PHI3_5_MINI_ENTRIES, presets.phi3_5_mini()),
  'microsoft/phi-4': (PHI4_ENTRIES, presets.phi4()),
  'microsoft/Phi-4-reasoning': (PHI4_REASONING_ENTRIES, presets.phi4(rope_theta=5e5, max_length=32_768)),
  'microsoft/Phi-4-mini-instruct': (PHI4_MINI_ENTRIES, presets.phi4_mini()),
  'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B': (R1_DISTILL_QWEN_ENTRIES, presets.qwen2_5_7b(rope_theta=1e4)),
  'deepseek-ai/DeepSeek-R1-Distill-Llama-8B': (R1_DISTILL_LLAMA_ENTRIES, presets.llama3_1_8b()),
  'allenai/Llama-3.1-Tulu-3-8B': (TULU3_ENTRIES, presets.llama3_1_8b(vocab_size=128_264)),
  'HuggingFaceH4/zephyr-7b-beta': (ZEPHYR_ENTRIES, presets.mistral_7b()),
}

QWEN3_ENTRIES = dict(
  architectures=['Qwen3ForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
  eos_token_id=151645, head_dim=128, hidden_act='silu', hidden_size=1024, initializer_range=0.02,
  intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28, model_type='qwen3',
  num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None,
  rope_theta=1000000, sliding_window=None, tie_word_embeddings=True, torch_dtype='bfloat16',
  transformers_version='4.51.0', use_cache=True, use_sliding_window=False, vocab_size=151936)
QWEN3_4B_2507_ENTRIES = QWEN3_ENTRIES | dict(
  hidden_size=2560, intermediate_size=9728, max_position_embeddings=262144, max_window_layers=36,
  num_attention_heads=32, num_hidden_layers=36, rope_theta=5000000)
QWEN2_5_ENTRIES = dict(
  architectures=['Qwen2ForCausalLM'], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643,
  hidden_act='silu', hidden_size=896, initializer_range=0.02, intermediate_size=4864, max_position_embeddings=32768,
  max_window_layers=24, model_type='qwen2', num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2,
  rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True, torch_dtype='bfloat16',
  transformers_version='4.40.1', use_cache=True, use_mrope=False, use_sliding_window=False, vocab_size=151936)
LLAMA3_2_ENTRIES = dict(
  architectures=['LlamaForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
  eos_token_id=128001, head_dim=64, hidden_act='silu', hidden_size=2048, initializer_range=0.02,
  intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False, model_type='llama', num_attention_heads=32,
  num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=dict(
    factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192,
    rope_type='llama3'),
  rope_theta=500000.0, tie_word_embeddings=True, torch_dtype='bfloat16', transformers_version='4.45.0.dev0',
  use_cache=True, vocab_size=128256)
LLAMA2_ENTRIES = dict(
  _name_or_path='meta-llama/Llama-2-7b-hf', architectures=['LlamaForCausalLM'], bos_token_id=1, eos_token_id=2,
  hidden_act='silu', hidden_size=4096, initializer_range=0.02, intermediate_size=11008, max_position_embeddings=4096,
  model_type='llama', num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1,
  rms_norm_eps=1e-05, rope_scaling=None, tie_word_embeddings=False, torch_dtype='float16',
  transformers_version='4.31.0.dev0', use_cache=True, vocab_size=32000)
TINY_LLAMA_ENTRIES = LLAMA2_ENTRIES | dict(
  _name_or_path='meta-llama/Llama-2-7b-hf', attention_bias=False, hidden_size=2048, intermediate_size=5632,
  max_position_embeddings=2048, num_hidden_layers=22, num_key_value_heads=4, rope_theta=10000.0,
  torch_dtype='bfloat16', transformers_version='4.35.0')
SMOLLM2_ENTRIES = dict(
  architectures=['LlamaForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=0, eos_token_id=0,
  hidden_act='silu', hidden_size=576, initializer_range=0.041666666666666664, intermediate_size=1536,
  is_llama_config=True, max_position_embeddings=8192, mlp_bias=False, model_type='llama', num_attention_heads=9,
  num_hidden_layers=30, num_key_value_heads=3, pretraining_tp=1, rms_norm_eps=1e-05, rope_interleaved=False,
  rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, torch_dtype='bfloat16',
  transformers_version='4.40.1', use_cache=True, vocab_size=49152)
SMOLLM3_ENTRIES = dict(
  architectures=['SmolLM3ForCausalLM'], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
  eos_token_id=128012, hidden_act='silu', hidden_size=2048, initializer_range=0.02, intermediate_size=11008,
  max_position_embeddings=65536, max_window_layers=28, mlp_bias=False, model_type='smollm3',
  no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16, num_hidden_layers=36,
  num_key_value_heads=4, pad_token_id=128004, pretraining_tp=2, rms_norm_eps=1e-06, rope_scaling=None,
  rope_theta=5000000.0, sliding_window=None, tie_word_embeddings=True, torch_dtype='bfloat16',
  transformers_version='4.54.0.dev0', use_cache=False, use_sliding_window=False, vocab_size=128256)
GEMMA3_1B_ENTRIES = dict(
  architectures=['Gemma3ForCausalLM'], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
  bos_token_id=2, cache_implementation='hybrid', eos_token_id=[1, 106], final_logit_softcapping=None, head_dim=256,
  hidden_activation='gelu_pytorch_tanh', hidden_size=1152, initializer_range=0.02, intermediate_size=6912,
  max_position_embeddings=32768, model_type='gemma3_text', num_attention_heads=4, num_hidden_layers=26,
  num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_local_base_freq=10000,
  rope_scaling=None, rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, torch_dtype='bfloat16',
  transformers_version='4.50.0.dev0', use_cache=True, vocab_size=262144)
GEMMA3_270M_ENTRIES = GEMMA3_1B_ENTRIES | dict(
  _sliding_window_pattern=6, hidden_size=640, intermediate_size=2048, layer_types=[
    *(['sliding_attention'] * 5 + ['full_attention']) * 3],
  num_hidden_layers=18, transformers_version='4.55.0.dev0', use_bidirectional_attention=False)
del GEMMA3_270M_ENTRIES['sliding_window_pattern']  # renamed
OLMO2_ENTRIES = dict(
  architectures=['Olmo2ForCausalLM'], attention_bias=False, attention_dropout=0.0, eos_token_id=100257,
  hidden_act='silu', hidden_size=4096, initializer_range=0.02, intermediate_size=11008, max_position_embeddings=4096,
  model_type='olmo2', num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pad_token_id=100277,
  rms_norm_eps=1e-06, rope_scaling=None, rope_theta=500000, tie_word_embeddings=False, torch_dtype='float32',
  transformers_version='4.47.0.dev0', use_cache=False, vocab_size=100352)
OLMO3_ENTRIES = dict(
  architectures=['Olmo3ForCausalLM'], attention_bias=False, attention_dropout=0.0, eos_token_id=100257,
  hidden_act='silu', hidden_size=4096, initializer_range=0.02, intermediate_size=11008, layer_types=[
    *(['sliding_attention'] * 3 + ['full_attention']) * 8],
  max_position_embeddings=65536, model_type='olmo3', num_attention_heads=32, num_hidden_layers=32,
  num_key_value_heads=32, pad_token_id=100277, rms_norm_eps=1e-06, rope_scaling=dict(
    attention_factor=1.2079441541679836, beta_fast=32.0, beta_slow=1.0, factor=8.0,
    original_max_position_embeddings=8192, rope_type='yarn'),
  rope_theta=500000, sliding_window=4096, tie_word_embeddings=False, torch_dtype='bfloat16',
  transformers_version='4.57.0.dev0', use_cache=False, vocab_size=100278)
MISTRAL_V3_ENTRIES = ZEPHYR_ENTRIES | dict(
  rope_theta=1000000.0, sliding_window=None, transformers_version='4.42.0.dev0', vocab_size=32768)

PUBLISHED |= {
  'Qwen/Qwen3-0.6B': (QWEN3_ENTRIES, presets.qwen3_0_6b()),
  'Qwen/Qwen3-4B-Instruct-2507': (QWEN3_4B_2507_ENTRIES, presets.qwen3_4b(rope_theta=5e6, max_length=262_144)),
  'Qwen/Qwen2.5-0.5B': (QWEN2_5_ENTRIES, presets.qwen2_5_0_5b()),
  'meta-llama/Llama-3.2-1B': (LLAMA3_2_ENTRIES, presets.llama3_2_1b()),
  'meta-llama/Llama-3.2-3B': (LLAMA3_2_ENTRIES | dict(
    head_dim=128, hidden_size=3072, num_attention_heads=24, num_hidden_layers=28), presets.llama3_2_3b()),
  'meta-llama/Llama-2-7b-hf': (LLAMA2_ENTRIES, presets.llama2_7b()),
  'TinyLlama/TinyLlama-1.1B-Chat-v1.0': (TINY_LLAMA_ENTRIES, presets.llama(
    2_048, 22, 32, 4, 5_632, vocab_size=32_000, eps=1e-5, max_length=2_048)),
  'HuggingFaceTB/SmolLM2-135M': (SMOLLM2_ENTRIES, presets.llama(
    576, 30, 9, 3, 1_536, vocab_size=49_152, eps=1e-5, rope_theta=1e5, tied_head=True, max_length=8_192)),
  'HuggingFaceTB/SmolLM3-3B': (SMOLLM3_ENTRIES, presets.smollm3_3b()),
  'google/gemma-3-1b-it': (GEMMA3_1B_ENTRIES, presets.gemma3_1b()),
  'google/gemma-3-270m': (GEMMA3_270M_ENTRIES, presets.gemma3(
    640, 18, 4, 1, 2_048, window=512, max_length=32_768)),
  'allenai/OLMo-2-1124-7B': (OLMO2_ENTRIES, presets.olmo2_7b()),
  'allenai/Olmo-3-1025-7B': (OLMO3_ENTRIES, presets.olmo3_7b()),
  'mistralai/Mistral-7B-Instruct-v0.3': (MISTRAL_V3_ENTRIES, presets.mistral_7b(
    window=None, rope_theta=1e6, vocab_size=32_768)),
}
