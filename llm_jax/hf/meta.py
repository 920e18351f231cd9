"""Llama in Meta's own layout: `params.json` and `consolidated*.safetensors`, with rotary numbers in pairs.

Meta's files are pickles, which are refused; Mistral's own files are safetensors in this layout.
"""
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import jax

from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import GLU, Architecture, Attention, Block, Llama3Scaling, RMSNorm, RoPE
from llm_jax.hf.configs import difference, resolved
from llm_jax.hf.families.llama import LLAMA
from llm_jax.hf.fields import Fields
from llm_jax.hf.files import Progress, inside, no_weights, read_json, read_params, write_folder
from llm_jax.hf.parts import expect_kind
from llm_jax.hf.tensor_file import TensorFiles

WEIGHTS = 'consolidated.safetensors'

META = LLAMA._replace(
  model_type='Llama (Meta)', base_model_prefix='', ignored=re.compile(r'^rope\.freqs$'),
  model=(
    ('embedding/w',             'tok_embeddings.weight',                        'V D'),
    ('final_norm/scale',        'norm.weight',                                  'D'),
    ('head/w',                  'output.weight',                                'V D'),
  ),
  layer=(
    ('attention_norm/scale',    'layers.{N}.attention_norm.weight',             'D'),
    ('attention/query/w',       'layers.{N}.attention.wq.weight',               'D H K -> (H K~) D'),
    ('attention/key/w',         'layers.{N}.attention.wk.weight',               'D G K -> (G K~) D'),
    ('attention/value/w',       'layers.{N}.attention.wv.weight',               'D G K -> (G K) D'),
    ('attention/out/w',         'layers.{N}.attention.wo.weight',               'H K D -> D (H K)'),
    ('feed_forward_norm/scale', 'layers.{N}.ffn_norm.weight',                   'D'),
    ('feed_forward/gate/w',     'layers.{N}.feed_forward.w1.weight',            'D F -> F D'),
    ('feed_forward/down/w',     'layers.{N}.feed_forward.w2.weight',            'F D -> D F'),
    ('feed_forward/up/w',       'layers.{N}.feed_forward.w3.weight',            'D F -> F D'),
  ))


def load_meta(directory: str | os.PathLike, mesh: jax.sharding.Mesh | None = None, dtype: Any = 'float32',
              progress: Progress | None = None) -> tuple[Architecture, dict[str, Any]]:
  """Reads a folder in Meta's layout; arguments, results and errors are those of `load_pretrained`."""
  folder = pathlib.Path(directory)
  values = read_json(folder, 'params.json')
  names = sorted(path.name for path in folder.glob('consolidated*.safetensors'))
  if not names:
    raise no_weights(folder, f'no {WEIGHTS}')
  tensors = TensorFiles(inside(folder, name) for name in names)
  embedding = tensors.get('tok_embeddings.weight')
  if values.get('vocab_size') in (None, -1) and embedding is not None:  # files of Llama 1 and 2 do not state it
    values = {**values, 'vocab_size': embedding.shape[0]}
  config = dataclasses.replace(_read(values), tied_head='output.weight' not in tensors)
  return config, read_params(folder, config, tensors, mesh, dtype, progress, family=META)


def save_meta(directory: str | os.PathLike, config: Architecture, params: Any, *, dtype: str = 'bfloat16',
              progress: Progress | None = None) -> None:
  """Writes `params.json` and `consolidated.safetensors`.   Raises: ConfigError for what is not a Llama."""
  values = _write(config)
  different = difference('model', resolved(config), resolved(dataclasses.replace(
    _read(values), tied_head=config.tied_head)))
  if different:
    raise ConfigError(*different[:2], "a Llama in Meta's layout cannot have this, so it cannot be exported")
  write_folder(directory, config, params, META, {'params.json': json.dumps(values, indent=2).encode() + b'\n'},
               dtype=dtype, max_shard_bytes=1 << 62, name=WEIGHTS, progress=progress)


def _read(values: dict[str, Any]) -> Architecture:
  """The entries of Meta's `ModelArgs`, and of Mistral's for sizes that Meta derives."""
  fields = Fields(values, 'params.json')
  fields.read |= {'max_batch_size', 'max_seq_len'}
  d_model, heads = fields.size('dim', 4_096), fields.size('n_heads', 32)
  kv_heads, head_dim = fields.size('n_kv_heads', heads), fields.size('head_dim', None)
  width = _width(d_model, fields.size('multiple_of', 256), fields.optional_number('ffn_dim_multiplier', None))
  norm, scaling = RMSNorm(fields.number('norm_eps', 1e-5)), None
  factor, high = fields.number('rope_scaling_factor', 8.0), fields.number('rope_high_freq_factor', 4.0)
  if fields.flag('use_scaled_rope', False):
    scaling = Llama3Scaling(factor, high_frequency_factor=high)
  attention = Attention(heads, None if kv_heads == heads else kv_heads,
                        None if head_dim and head_dim * heads == d_model else head_dim,
                        window=fields.size('sliding_window', None))
  config = Architecture(
    fields.size('vocab_size', None) or 32_000, d_model, fields.size('n_layers', 32),
    pattern=(Block(attention, GLU(fields.size('hidden_dim', width)), norm),),
    positions=RoPE(fields.number('rope_theta', 10_000.0), scaling), norm=norm, tied_head=False)
  fields.finish()
  return config


def _write(config: Architecture) -> dict[str, Any]:
  block = expect_kind(config.pattern[0], Block, 'pattern[0]')
  attention = expect_kind(block.attention, Attention, 'pattern[0].attention')
  width = expect_kind(block.feed_forward, GLU, 'pattern[0].feed_forward').width(config.d_model)
  rope = expect_kind(config.positions, RoPE, 'positions')
  values = {'dim': config.d_model, 'n_layers': config.num_layers, 'n_heads': attention.num_heads,
            'n_kv_heads': attention.kv_heads, 'vocab_size': config.vocab_size, 'norm_eps': block.norm.eps,
            'rope_theta': rope.theta, 'multiple_of': 256}
  if _width(config.d_model, 256, None) != width:  # then a multiplier and a multiple that give this width
    step = width & -width
    values |= {'multiple_of': step, 'ffn_dim_multiplier': (width - step / 2) / int(8 * config.d_model / 3)}
  if isinstance(rope.scaling, Llama3Scaling):
    values |= {'use_scaled_rope': True, 'rope_scaling_factor': rope.scaling.factor,
               'rope_high_freq_factor': rope.scaling.high_frequency_factor}
  return values


def _width(d_model: int, multiple: int, multiplier: float | None) -> int:
  """The feed-forward width by the formula of Meta's code."""
  width = int(8 * d_model / 3)
  width = width if multiplier is None else int(multiplier * width)
  return multiple * -(-width // multiple)
