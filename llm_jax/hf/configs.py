"""Hugging Face's `config.json` to an `Architecture`, and back. What an `Architecture` cannot express is refused."""
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config.errors import ConfigError, require
from llm_jax.config.model.architecture import (
  GLU,
  MLP,
  AnyBlock,
  Architecture,
  Attention,
  ClampedGLU,
  FeedForward,
  LatentAttention,
  LongRoPEScaling,
  MixtureOfExperts,
  NoPositions,
  NormalInit,
  RoPE,
  Router,
  SigmoidRouter,
  SoftmaxRouter,
  YaRNScaling,
)
from llm_jax.config.model.count import blocks
from llm_jax.hf.families import FAMILIES, family_of
from llm_jax.hf.fields import FLOATS, MOST_EXPERTS, Fields
from llm_jax.hf.rope import without_ntk, write_rope

GENERATION_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
# Model types with the name of a family that is read, and what they have that it has not.
OTHERS = {
  'phimoe': 'Phi-3.5-MoE chooses its experts by SparseMixer, and has biases in its head and its norms',
  'phi3small': 'Phi-3-small has block-sparse attention',
  'phi3_v': 'a Phi-3 that reads images',
  'phi4mm': 'a Phi-4 that reads images and sound',
  'phi4_multimodal': 'a Phi-4 that reads images and sound',
}


def config_from_hf(values: Mapping[str, Any]) -> Architecture:
  """The decoder that a `config.json` (as a dict) describes.

  Raises: ConfigError that names the entry that is wrong or that an `Architecture` cannot express.
  """
  name = values.get('model_type')
  if not isinstance(name, str) or name not in FAMILIES:
    _refuse_shell(values)
    why = f'{OTHERS[name]}; ' if isinstance(name, str) and name in OTHERS else ''
    raise ConfigError('model_type', name, f'{why}use one of {tuple(FAMILIES)}')
  fields = Fields(values)
  architecture = FAMILIES[name].read(fields)
  fields.finish()
  experts = sum(block.feed_forward.num_experts for block in blocks(architecture)
                if isinstance(block.feed_forward, MixtureOfExperts))
  require(experts <= MOST_EXPERTS, 'experts', experts, f'use at most {MOST_EXPERTS} in all layers together')
  return architecture


def _refuse_shell(values: Mapping[str, Any]) -> None:
  """Names the text part of a model that has others too, such as one that sees images."""
  for key in ('text_config', 'llm_config', 'language_config'):
    text = values.get(key)
    if isinstance(text, Mapping):
      kind = text.get('model_type', 'llama')  # what is left out there is a Llama's
      known = 'which can be read alone' if kind in FAMILIES else f'and only {tuple(FAMILIES)} can be read'
      raise ConfigError('model_type', values.get('model_type'), f'a model of several parts; its text part ({key}) is a '
                        f'{kind}, {known}: save the weights of its language model and head under that '
                        f'configuration as a folder of their own, with {key} as config.json')


def config_to_hf(config: Architecture, max_length: int = 2_048, bos: int | None = None,
                 eos: int | Sequence[int] | None = None, pad: int | None = None) -> dict[str, Any]:
  """A `config.json` from which `transformers` builds the same decoder.

  Args:
    max_length: `max_position_embeddings` if the positions state none. Other programs do not generate beyond it.
    bos, eos, pad: the ids of the tokens that begin, end and fill up a text.

  Raises: ConfigError that names the first field that the family cannot express.
  """
  family = family_of(config)
  values = {'model_type': family.model_type, 'architectures': [family.architecture], 'dtype': 'float32',
            'vocab_size': config.vocab_size, 'tie_word_embeddings': config.tied_head,
            'initializer_range': config.init.std, 'bos_token_id': bos, 'eos_token_id': eos, 'pad_token_id': pad}
  attention = config.pattern[0].attention
  if isinstance(config.positions, RoPE):
    values |= write_rope(config.positions, attention.rotary_size(config.d_model), max_length, _score_factor(attention))
  values |= family.write(config)
  values |= {key: float(values[key]) for key in FLOATS if values.get(key) is not None}
  # What the family cannot express is lost in `values`, and so differs when they are read again.
  different = difference('model', resolved(config), resolved(config_from_hf(values)))
  if different:
    raise ConfigError(*different[:2], f'a {family.model_type} model cannot have this, so it cannot be exported')
  return values


def generation_config(bos: int | None, eos: int | Sequence[int] | None, pad: int | None) -> dict[str, Any]:
  """A `generation_config.json`."""
  return {'_from_model_config': True, 'bos_token_id': bos, 'eos_token_id': eos, 'pad_token_id': pad}


def generation_ids(content: bytes) -> dict[str, Any]:
  """The ids that begin, end and fill up a text in a `generation_config.json`: GENERATION_IDS, each an id, a list of
  ids, or None. -1, with which the first conversions of Llama say that there is none, is None.

  Raises:
    ConfigError: it is not a JSON object, or one of them is no id.
  """
  try:
    values = json.loads(content)
    given = {key: values.get(key) for key in GENERATION_IDS}
  except (ValueError, AttributeError) as error:
    raise ConfigError('generation_config.json', type(error).__name__, f'not a JSON object: {error}') from error
  return {key: token_ids(ids, f'generation_config.json: {key}') for key, ids in given.items()}


def token_ids(ids: Any, name: str) -> int | list[int] | None:
  """One of the entries of a file that hold an id, a list of ids, or null, without the negative ids, which mean none.

  Raises:
    ConfigError: `name` holds something else.
  """
  given = ids if isinstance(ids, list) else [ids]
  whole = all(i is None or isinstance(i, int) and not isinstance(i, bool) for i in given)
  require(whole, name, ids, 'give the id of a token, a list of ids, or null')
  found = listed(ids)
  if isinstance(ids, list):
    return found or None
  return found[0] if found else None


def check_token_ids(values: Mapping[str, Any], vocab_size: int, file: str) -> None:
  """Refuses a text's first or last token, in a file's entries, that a model of `vocab_size` cannot read or write."""
  for key in ('bos_token_id', 'eos_token_id'):
    for i in listed(token_ids(values.get(key), f'{file}: {key}')):
      require(i < vocab_size, f'{file}: {key}', i, f'the vocabulary ends at {vocab_size - 1}: correct the file')


def listed(ids: Any) -> list[int]:
  """One of `generation_ids` as a list; without negative ids, which mean none."""
  ids = ids if isinstance(ids, list) else [ids]
  return [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0]


def _score_factor(attention: Attention | LatentAttention) -> float:
  """The factor of the scores on top of 1 / sqrt(head size), which YaRN's entries state."""
  if not isinstance(attention, LatentAttention) or attention.scale is None:
    return 1.0
  return attention.scale * math.sqrt(attention.nope_dim + attention.rope_dim)


def resolved(config: Architecture) -> Architecture:
  """The same decoder in a form that can be compared: derived sizes are numbers, all blocks are in the pattern, and
  fields that only matter in training have their defaults."""
  positions = config.positions
  if isinstance(positions, RoPE):
    positions = _resolved_rope(positions, config.pattern[0].attention.rotary_size(config.d_model))

  def positions_of(part: Attention | LatentAttention) -> RoPE | NoPositions:
    rope = config.rope_of(part)
    return NoPositions() if rope is None else _resolved_rope(rope, part.rotary_size(config.d_model))

  def attention(part: Attention | LatentAttention) -> Attention | LatentAttention:
    if isinstance(part, LatentAttention):
      return dataclasses.replace(part, scale=part.scale or (part.nope_dim + part.rope_dim) ** -0.5)
    size = part.head_size(config.d_model)
    own = None if part.positions is None or positions_of(part) == positions else positions_of(part)
    return dataclasses.replace(part, num_kv_heads=part.kv_heads, head_dim=size, scale=part.scale or size ** -0.5,
                               out_bias=part.has_out_bias, positions=own,
                               rotary_dim=None if part.rotary_dim == size else part.rotary_dim)

  def router(part: Router) -> Router:
    match part:
      case SoftmaxRouter():
        return SoftmaxRouter(bias=part.bias, weights_over=part.weights_over)
      case SigmoidRouter():
        return dataclasses.replace(part, bias_rate=0.0, sequence_balance_weight=0.0)

  def feed_forward(part: FeedForward | None) -> FeedForward | None:
    match part:
      case None:
        return None
      case MixtureOfExperts():
        return dataclasses.replace(part, router=router(part.router), expert=feed_forward(part.expert),
                                   shared=feed_forward(part.shared))
      case MLP() | GLU() | ClampedGLU():
        return dataclasses.replace(part, d_ff=part.width(config.d_model))

  def resolve(block: AnyBlock) -> AnyBlock:
    return dataclasses.replace(block, attention=attention(block.attention),
                               feed_forward=feed_forward(block.feed_forward))

  return dataclasses.replace(config, prefix=(), pattern=tuple(map(resolve, blocks(config))), positions=positions,
                             multi_token=tuple(map(resolve, config.multi_token)), init=NormalInit(), family=None)


def _resolved_rope(rope: RoPE, size: int) -> RoPE:
  rope = dataclasses.replace(without_ntk(rope, size), max_length=None)
  if isinstance(rope.scaling, YaRNScaling | LongRoPEScaling):
    scaling = dataclasses.replace(rope.scaling, attention_factor=rope.scaling.magnitude)
    rope = dataclasses.replace(rope, scaling=scaling)
  return rope


def difference(path: str, wanted: Any, got: Any) -> tuple[str, Any, Any] | None:
  """Path and both values of the first field of two resolved architectures that differs by more than rounding."""
  if wanted == got:
    return None
  if isinstance(wanted, float) and isinstance(got, float) and math.isclose(wanted, got, rel_tol=1e-8):
    return None
  if dataclasses.is_dataclass(wanted) and type(wanted) is type(got):
    below = [(f'{path}.{f.name}', getattr(wanted, f.name), getattr(got, f.name)) for f in dataclasses.fields(wanted)]
  elif isinstance(wanted, tuple) and isinstance(got, tuple) and len(wanted) == len(got):
    below = [(f'{path}[{i}]', *pair) for i, pair in enumerate(zip(wanted, got, strict=True))]
  else:
    return path, wanted, got
  for item in below:
    found = difference(*item)
    if found:
      return found
  return None
