"""One table of weight names per family, read in both directions.

A row is: our parameter path, their tensor's name, and the layout: our axes, then theirs, where (H K) is one axis. No
arrow means the same. Where several of our parameters are one tensor of theirs, they lie side by side on its last axis.
A table holds all that its family may have: rows of parameters that a model lacks (biases, an untied head) do not count.
"""
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from llm_jax.config.architecture import Architecture, RoPE

Row = tuple[str | tuple[str, ...], str, str]


class Family(NamedTuple):
  """base: prefix of the names that files of the bare decoder lack. ignored: buffers that some files hold."""
  model_type: str
  architecture: str           # the class in `transformers`
  base: str
  ignored: re.Pattern[str]
  model: tuple[Row, ...]
  layer: tuple[Row, ...]      # paths inside a block; {} is the number of the layer


GPT2 = Family(
  'gpt2', 'GPT2LMHeadModel', base='transformer.', ignored=re.compile(r'\.attn\.(bias|masked_bias)$'),
  model=(
    ('embedding/w',             'transformer.wte.weight',                   'V D'),
    ('positions/w',             'transformer.wpe.weight',                   'P D'),
    ('final_norm/scale',        'transformer.ln_f.weight',                  'D'),
    ('final_norm/bias',         'transformer.ln_f.bias',                    'D'),
    ('head/w',                  'lm_head.weight',                           'V D'),
  ),
  layer=(
    ('attention_norm/scale',    'transformer.h.{}.ln_1.weight',             'D'),
    ('attention_norm/bias',     'transformer.h.{}.ln_1.bias',               'D'),
    (('attention/query/w', 'attention/key/w', 'attention/value/w'),
                                'transformer.h.{}.attn.c_attn.weight',      'D H K -> D (H K)'),
    (('attention/query/b', 'attention/key/b', 'attention/value/b'),
                                'transformer.h.{}.attn.c_attn.bias',        'H K -> (H K)'),
    ('attention/out/w',         'transformer.h.{}.attn.c_proj.weight',      'H K D -> (H K) D'),
    ('attention/out/b',         'transformer.h.{}.attn.c_proj.bias',        'D'),
    ('feed_forward_norm/scale', 'transformer.h.{}.ln_2.weight',             'D'),
    ('feed_forward_norm/bias',  'transformer.h.{}.ln_2.bias',               'D'),
    ('feed_forward/up/w',       'transformer.h.{}.mlp.c_fc.weight',         'D F'),
    ('feed_forward/up/b',       'transformer.h.{}.mlp.c_fc.bias',           'F'),
    ('feed_forward/down/w',     'transformer.h.{}.mlp.c_proj.weight',       'F D'),
    ('feed_forward/down/b',     'transformer.h.{}.mlp.c_proj.bias',         'D'),
  ))

LLAMA = Family(
  'llama', 'LlamaForCausalLM', base='model.', ignored=re.compile(r'\.rotary_emb\.inv_freq$'),
  model=(
    ('embedding/w',             'model.embed_tokens.weight',                        'V D'),
    ('final_norm/scale',        'model.norm.weight',                                'D'),
    ('head/w',                  'lm_head.weight',                                   'V D'),
  ),
  layer=(
    ('attention_norm/scale',    'model.layers.{}.input_layernorm.weight',           'D'),
    ('attention/query/w',       'model.layers.{}.self_attn.q_proj.weight',          'D H K -> (H K) D'),
    ('attention/query/b',       'model.layers.{}.self_attn.q_proj.bias',            'H K -> (H K)'),
    ('attention/key/w',         'model.layers.{}.self_attn.k_proj.weight',          'D G K -> (G K) D'),
    ('attention/key/b',         'model.layers.{}.self_attn.k_proj.bias',            'G K -> (G K)'),
    ('attention/value/w',       'model.layers.{}.self_attn.v_proj.weight',          'D G K -> (G K) D'),
    ('attention/value/b',       'model.layers.{}.self_attn.v_proj.bias',            'G K -> (G K)'),
    ('attention/out/w',         'model.layers.{}.self_attn.o_proj.weight',          'H K D -> D (H K)'),
    ('attention/out/b',         'model.layers.{}.self_attn.o_proj.bias',            'D'),
    ('feed_forward_norm/scale', 'model.layers.{}.post_attention_layernorm.weight',  'D'),
    ('feed_forward/gate/w',     'model.layers.{}.mlp.gate_proj.weight',             'D F -> F D'),
    ('feed_forward/gate/b',     'model.layers.{}.mlp.gate_proj.bias',               'F'),
    ('feed_forward/up/w',       'model.layers.{}.mlp.up_proj.weight',               'D F -> F D'),
    ('feed_forward/up/b',       'model.layers.{}.mlp.up_proj.bias',                 'F'),
    ('feed_forward/down/w',     'model.layers.{}.mlp.down_proj.weight',             'F D -> D F'),
    ('feed_forward/down/b',     'model.layers.{}.mlp.down_proj.bias',               'D'),
  ))

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA)}


def family_of(config: Architecture) -> Family:
  """The family that may express `config`; `config_to_hf` says whether it does."""
  return LLAMA if isinstance(config.positions, RoPE) else GPT2


class Entry(NamedTuple):
  """One tensor of theirs: its name and layout, and our parameters in it. layer: the index into their leading axis."""
  name: str
  layout: str
  paths: tuple[str, ...]
  layer: int | None


def entries(config: Architecture, family: Family, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Entry]:
  """The tensors of the model whose parameters have `shapes` (by path), in the family's order."""
  places = [(f'prefix_{i}/', None) for i in range(len(config.prefix))]
  places += [(f'blocks/block_{i}/', n) for n in range(config.repeats) for i in range(len(config.pattern))]
  rows = [(row, '', None, None) for row in family.model]
  rows += [(row, place, layer, number) for number, (place, layer) in enumerate(places) for row in family.layer]
  for (ours, theirs, layout), place, layer, number in rows:
    paths = tuple(place + path for path in ([ours] if isinstance(ours, str) else ours))
    if paths[0] in shapes:
      yield Entry(theirs.format(number), layout, paths, layer)
