"""SmolLM3: Llama some of whose layers have no positions."""
import dataclasses
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture, Attention, NoPositions
from llm_jax.config.model.count import blocks
from llm_jax.hf.families.llama import LLAMA, read_llama, write_llama
from llm_jax.hf.fields import Fields
from llm_jax.hf.parts import arrange


def read_smollm3(fields: Fields) -> Architecture:
  defaults = {'hidden_size': 2_048, 'num_hidden_layers': 36, 'num_attention_heads': 16, 'num_key_value_heads': 4,
              'vocab_size': 128_256, 'tie_word_embeddings': True, 'rope_theta': 2e6, 'max_position_embeddings': 32_768}
  fields.expect('use_sliding_window', False, 'layers with a window are not supported in this family')
  fields.read |= {'sliding_window', 'max_window_layers', 'layer_types'}  # of the windows that are not used
  config = read_llama(fields.with_defaults(defaults))
  interval = fields.size('no_rope_layer_interval', 4)
  rotary = fields.get('no_rope_layers', [int((i + 1) % interval != 0) for i in range(config.num_layers)])
  is_fine = isinstance(rotary, list) and len(rotary) >= config.num_layers and all(flag in (0, 1) for flag in rotary)
  require(is_fine, 'no_rope_layers', rotary, f'use a list of {config.num_layers} times 1 (rotary) or 0 (no positions)')
  [block] = config.pattern
  plain = dataclasses.replace(block, attention=dataclasses.replace(block.attention, positions=NoPositions()))
  prefix, pattern = arrange([block if flag else plain for flag in rotary[:config.num_layers]])
  return dataclasses.replace(config, prefix=prefix, pattern=pattern)


def write_smollm3(config: Architecture) -> dict[str, Any]:
  rotary = [int(not has_no_positions(block.attention)) for block in blocks(config)]
  return write_llama(config) | {'no_rope_layers': rotary, 'use_sliding_window': False, 'sliding_window': None}


def has_no_positions(attention: Any) -> bool:
  return isinstance(attention, Attention) and isinstance(attention.positions, NoPositions)


SMOLLM3 = LLAMA._replace(
  model_type='smollm3', architecture='SmolLM3ForCausalLM', read=read_smollm3, write=write_smollm3,
  resembles=lambda config: any(has_no_positions(block.attention) for block in blocks(config)))
