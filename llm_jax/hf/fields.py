"""Reading a `config.json`: an entry that is not read and may change a number is refused."""
import functools
import logging
import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard, overload

from llm_jax.config.errors import ConfigError, require

ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh', 'gelu': 'gelu',
               'quick_gelu': 'gelu_sigmoid', 'silu': 'silu', 'swish': 'silu', 'relu': 'relu'}
ACTIVATION_NAMES = {'gelu_tanh': 'gelu_new', 'gelu': 'gelu', 'gelu_sigmoid': 'quick_gelu', 'silu': 'silu',
                    'relu': 'relu'}

# Entries that do not change what the decoder computes, although their names may sound like it.
HARMLESS = re.compile(
  r'_token_id$|^summary_|^(transformers_version|architectures|model_type|_name_or_path|torch_dtype|dtype|use_cache|'
  r'return_dict|id2label|label2id|task_specific_params|chunk_size_feed_forward|gradient_checkpointing|n_ctx|n_special|'
  r'predict_special_tokens|pretraining_tp|reorder_and_upcast_attn|attn_implementation|_attn_implementation_autoset|'
  r'_attn_implementation|_attn_implementation_internal|_experts_implementation|output_router_logits|'
  r'cache_implementation|ep_size|max_sequence_length|model_max_length|is_decoder|output_hidden_states|'
  r'output_attentions|output_past|_?num_labels|_?use_flash_attn\w*|_?use_flash_attention\w*|_flash_attn_2_enabled|'
  r'use_memory_efficient_attention|use_sdpa|tokenizer_class|torchscript|use_bfloat16|tf_legacy_loss|finetuning_task|'
  r'problem_type|_commit_hash|max_seq_len|max_seq_length|(bos|eos|pad|unk|mask|sep|cls)_token|'
  # Settings of text generation, which old files have here.
  r'max_length|min_length|max_new_tokens|min_new_tokens|max_time|do_sample|num_beams|num_beam_groups|num_return_sequences|temperature|top_k|top_p|typical_p|'
  r'repetition_penalty|length_penalty|diversity_penalty|exponential_decay_length_penalty|early_stopping|'
  r'no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|suppress_tokens|begin_suppress_tokens|'
  r'remove_invalid_values|output_scores|return_dict_in_generate|prefix)$')

# Words (or their beginnings) in the name of an entry that may change numbers. `transformers` ignores an entry that its
# family does not know, but code of the model's own may read it. Without such a word an entry is bookkeeping.
COMPUTES = re.compile(
  r'(^|[_.])((n|num|max|min|dim|sizes?|caps?|conv\d?d?|mm|ln|pos|std|sinks?|softmax|softcap\w*|soft)($|[_.])|'
  r'act_|activation|adapter|alibi|attn|attention|audio|bias|bidirectional|block|causal|chunk|clip|compress|cross|decoder|'
  r'dropout|emb|encoder|eps|expert|factor|feed|ffn|fp8|gate|glu|gptq|head|hidden|image|init|interleave|key|kv|layer|logit|'
  r'lora|mamba|mask|mixture|mlp|moe|mtp|mult|mup|norm|parallel|partial|pdrop|position|proj|prune|qk|quant|query|rank|resid|'
  r'rms|rope|rotary|router|scal|shared|shift|sliding|sparse|sparsity|ssm|theta|tied?|topk|value|vision|weight|width|window|'
  r'xpos|yarn)')

# Numbers that `transformers` refuses if a file writes them as integers.
FLOATS = ('initializer_range', 'layer_norm_epsilon', 'layer_norm_eps', 'rms_norm_eps', 'router_aux_loss_coef',
          'routed_scaling_factor', 'swiglu_limit', 'swiglu_alpha', 'attn_logit_softcapping', 'final_logit_softcapping')

# The table of names has as many rows: a file that states billions of layers must not take all memory.
MOST = {'num_hidden_layers': 1_000, 'n_layer': 1_000, 'num_nextn_predict_layers': 1_000, 'num_local_experts': 10_000,
        'num_experts': 10_000, 'n_routed_experts': 10_000}
MOST_EXPERTS = 1_000_000  # of all layers together


UNKNOWN = ('this entry is not supported for this family, and it may change what is computed: take it '
           'out if you know that it does not')
QUANTISED = ('quantised weights are not read: write the folder anew with whole numbers, such as '
             'AutoModelForCausalLM.from_pretrained(folder).dequantize().save_pretrained(new)')
UNSUPPORTED = {'quantization_config': QUANTISED, 'quantization': QUANTISED, 'compression_config': QUANTISED}


class Fields:
  """The entries of a `config.json`. It records which were read, so that `finish` can refuse the others."""

  def __init__(self, values: Mapping[str, Any], file: str = 'config.json'):
    self.values, self.file, self.read = values, file, set()

  def with_defaults(self, defaults: Mapping[str, Any]) -> 'Fields':
    """The same entries with values for some that are absent. What is read of them counts as read here."""
    fields = Fields({**defaults, **self.values})
    fields.read = self.read
    return fields

  def with_values(self, values: Mapping[str, Any]) -> 'Fields':
    """The same entries with these in place of those that are there. What is read of them counts as read here."""
    fields = Fields({**self.values, **values})
    fields.read = self.read
    return fields

  def get(self, key: str, default: Any) -> Any:
    """The value; if it is absent or null, `default`, which must be that of `transformers`."""
    self.read.add(key)
    value = self.values.get(key)
    require(key not in MOST or not is_size(value) or value <= MOST[key], key, value, f'use at most {MOST.get(key)}')
    return default if value is None else value

  @overload
  def size(self, key: str, default: int) -> int: ...

  @overload
  def size(self, key: str, default: None) -> int | None: ...

  def size(self, key: str, default: int | None) -> int | None:
    value = self.get(key, default)
    require(value is None or is_size(value), key, value, 'use a positive integer')
    return value

  def count(self, key: str, default: int) -> int:
    value = self.get(key, default)
    require(value == 0 or is_size(value), key, value, 'use an integer of 0 or more')
    return int(value)

  def optional_size(self, key: str, default: int | None) -> int | None:
    """As `size`, but null means None, even if the default is a number."""
    self.read.add(key)
    return None if key in self.values and self.values[key] is None else self.size(key, default)

  def number(self, key: str, default: float) -> float:
    value = self.get(key, default)
    require(is_number(value) and value >= 0, key, value, 'use a finite number of 0 or more')
    return value

  def optional_number(self, key: str, default: float | None) -> float | None:
    """As `number`, but null means None, even if the default is a number."""
    self.read.add(key)
    value = self.values.get(key, default)
    return None if value is None else self.number(key, value)

  def flag(self, key: str, default: bool) -> bool:
    value = self.get(key, default)
    require(isinstance(value, bool), key, value, 'use true or false')
    return value

  def activation(self, key: str, default: str) -> str:
    value = self.get(key, default)
    require(isinstance(value, str) and value in ACTIVATIONS, key, value, f'use one of {tuple(ACTIVATIONS)}')
    return ACTIVATIONS[value]

  def expect(self, key: str, only: Any, why: str) -> None:
    """Refuses any value but `only`, which is also the default."""
    value = self.get(key, only)
    require(value == only, key, value, why)

  def finish(self) -> None:
    """Passes over entries that change no number, and says which ones in one line.

    Raises: ConfigError for the first other entry that was not read.
    """
    if self.values.get('auto_map') and 'auto_map' not in self.read:
      raise ConfigError('auto_map', self.values['auto_map'], 'names code of its own, which is never run: take the '
                        'entry out if the decoder is a plain one of its model_type')
    passed = []
    for key, value in self.values.items():
      if key in self.read or not value or HARMLESS.search(key):
        continue
      words = re.sub(r'([a-z0-9])([A-Z])', r'\1_\2', key).lower()
      if COMPUTES.search(words):
        raise ConfigError(key, value, UNSUPPORTED.get(key, UNKNOWN))
      passed.append(key)
    if passed:
      _say_what_is_passed_over(self.file, tuple(passed))


@functools.cache  # a folder is read several times, and one line is enough
def _say_what_is_passed_over(file: str, keys: tuple[str, ...]) -> None:
  logging.getLogger(__name__).warning('%s: %s: no part of the decoder, passed over', file, ', '.join(keys))


def is_size(value: Any) -> TypeGuard[int]:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
