"""Any family of decoders at a size for two CPU cores, on the standard library of the interpreter that runs it: offline.

python -m launch.train --config=experiments/family.py:gemma2 --workdir=runs/gemma2
"""
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.experiment import (
  BPE,
  AdamW,
  Baselines,
  Checkpoints,
  Cosine,
  Generations,
  HeldOut,
  StandardLibrary,
  experiment,
  presets,
  stage,
)
from llm_jax.config.model.architecture import LinearScaling, Llama3Scaling, LongRoPEScaling, YaRNScaling

SIZE: dict[str, Any] = dict(d_model=192, num_layers=4, num_heads=6, vocab_size=4_096)
GPT = dict(SIZE, max_length=256)
GROUPED = dict(SIZE, num_kv_heads=2)

FAMILIES = {
  'gpt1': presets.gpt1(**GPT),
  'gpt2': presets.gpt2(**GPT),
  'gpt3': presets.gpt3(**GPT, window=64),
  'gpt_neox': presets.gpt_neox(**GPT),
  'llama': presets.llama(**SIZE),
  'llama2': presets.llama(**GROUPED),
  'llama3': presets.llama(**GROUPED, rope_theta=500_000.0, scaling=Llama3Scaling(original_length=256),
                         max_length=2_048),
  'mistral': presets.mistral(**GROUPED, d_ff=512, window=64),
  'mixtral': presets.mixtral(**GROUPED, d_ff=256),
  'gemma': presets.gemma(**dict(SIZE, num_kv_heads=1), d_ff=512, head_dim=32),
  'gemma2': presets.gemma2(**GROUPED, d_ff=512, head_dim=32, window=64),
  'deepseek': presets.deepseek(
    **SIZE, dense_layers=1, q_rank=96, kv_rank=48, nope_dim=32, rope_dim=16, v_dim=32, d_ff=512, expert_d_ff=128,
    num_experts=16, top_k=4, groups=4, top_groups=2, router_scale=2.5, scaling=YaRNScaling(4.0, original_length=256),
    max_length=1_024),
  'phi3': presets.phi3(
    **GROUPED, d_ff=512, head_dim=32, rotary_dim=24, tied_head=True, window=512, max_length=256,
    scaling=LongRoPEScaling((1.0,) * 12, tuple(8.0 ** (i / 11) for i in range(12)), 8.0, original_length=32)),
  'qwen2': presets.qwen2(**GROUPED, d_ff=512, tied_head=True),
  'olmo2': presets.olmo2(**SIZE, d_ff=512),
  'gemma3': presets.gemma3(**dict(GROUPED, num_layers=8), d_ff=512, head_dim=32, window=64,
                           scaling=LinearScaling(8.0)),
  'qwen3': presets.qwen3(**GROUPED, d_ff=512, head_dim=32, tied_head=True),
  'qwen3_moe': presets.qwen3_moe(**GROUPED, d_ff=128, head_dim=32, num_experts=16, top_k=4),
  'smollm3': presets.smollm3(**GROUPED, d_ff=512),
  'gpt_oss': presets.gpt_oss(**GROUPED, d_ff=128, num_experts=8, top_k=2, head_dim=32, window=64,
                             scaling=YaRNScaling(4.0, original_length=256, truncate=False), max_length=1_024),
  'olmo3': presets.olmo3(**SIZE, d_ff=512, window=64, scaling=YaRNScaling(4.0, original_length=256),
                         max_length=1_024),
}
PROMPTS = ('import ', 'class Node:\n    def __init__(self')


def get_config(family):
  require(family in FAMILIES, 'family', family, f'use one of {", ".join(FAMILIES)}')
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=4_096),
    model=FAMILIES[family],
    checkpoints=Checkpoints(every=100),
    stages=(
      stage('pretrain', StandardLibrary(), steps=300, seq_len=256, batch_size=8,
            learning_rate=Cosine(peak=1e-3, warmup=30, final=0.1), optimizer=AdamW(b2=0.95),
            evals=(HeldOut(every=100), Generations(PROMPTS, every=150), Baselines())),
    ),
  )
