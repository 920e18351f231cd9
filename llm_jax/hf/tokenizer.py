"""Writes our tokenizers as files that `transformers.AutoTokenizer` reads, and reads the tokenizer of a folder."""
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from llm_jax.config.errors import require
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.data.tokenizers.byte_level import END_OF_TEXT, ByteTokenizer, RankTokenizer
from llm_jax.data.tokenizers.chat_templates import end_of_turn
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer, byte_alphabet
from llm_jax.hf.configs import listed
from llm_jax.hf.files import read_json

# The templates of `data/tokenizers/chat_templates.py` in Jinja, which transformers applies.
JINJA = {
  'plain': """{{ end_of_text }}{% for m in messages %}{% if m['role'] == 'assistant' %}
{{ 'Assistant: ' + m['content'] + end_of_text }}{% else %}
{{ m['role'].title() + ': ' + m['content'] + '\n\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}Assistant:{% endif %}""",
  'chatml': """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
  'llama2': """{% set first = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}
{% set first.system = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}{% elif m['role'] == 'user' %}
{{ '<s>[INST] ' + (first.system + m['content']).strip() + ' [/INST]' }}{% set first.system = '' %}{% else %}
{{ ' ' + m['content'].strip() + ' </s>' }}{% endif %}{% endfor %}""",
  'llama3': """{{ begin_of_text }}{% for m in messages %}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'].strip() + '<|eot_id|>' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
}


def chat_template(template: str, tokenizer: Tokenizer) -> str:
  """One of our chat templates in Jinja: `apply_chat_template` gives the ids on which we train."""
  names = {'end_of_text': _name(tokenizer.eot, tokenizer),
           'begin_of_text': '<|begin_of_text|>' if '<|begin_of_text|>' in tokenizer.special_ids else ''}
  given = ''.join(f'{{% set {name} = {json.dumps(text)} %}}' for name, text in names.items() if name in JINJA[template])
  return given + JINJA[template].replace('}\n{', '}{')


def tokenizer_files(tokenizer: Tokenizer, template: str | None = None) -> dict[str, bytes]:
  """`tokenizer.json` and `tokenizer_config.json`, with the same ids for the same text, the same special tokens, and
  (given a template) the chat template.

  There are two differences. Their library reads the name of a special token in a text as that token; ours never does.
  And it does not put the `bos_token` before a text by itself, although the model was trained with it there.
  """
  match tokenizer:
    case HuggingFaceTokenizer():
      content, end = tokenizer.content, tokenizer.end_of_text
    case RankTokenizer():
      content, end = _byte_level(tokenizer.ranks, tokenizer.special_ids, tokenizer.pattern), tokenizer.end_of_text
    case ByteTokenizer():
      content = _byte_level({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: tokenizer.eot}, None)
      end = END_OF_TEXT
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': end, 'eos_token': end,
            'clean_up_tokenization_spaces': False, 'model_max_length': 1 << 40}
  if template:
    config['eos_token'] = _name(end_of_turn(template, tokenizer)[0], tokenizer)
    config['chat_template'] = chat_template(template, tokenizer)
  return {'tokenizer.json': content, 'tokenizer_config.json': json.dumps(config, indent=2).encode() + b'\n'}


def read_tokenizer(directory: str | os.PathLike) -> HuggingFaceFile:
  """The tokenizer of a Hugging Face folder, for an experiment. Its end of text is the first id that ends a text there.

  Raises:
    ConfigError: names the file that is missing or that does not state it.
  """
  folder = pathlib.Path(directory)
  values = read_json(folder, 'config.json')
  if (folder / 'generation_config.json').is_file():
    values |= {key: ids for key, ids in read_json(folder, 'generation_config.json').items() if ids is not None}
  ends = listed(values.get('eos_token_id'))
  added = read_json(folder, 'tokenizer.json').get('added_tokens') or []
  names: dict[Any, Any] = {token.get('id'): token.get('content') for token in added if isinstance(token, dict)}
  found = [names[end] for end in ends if end in names]
  require(bool(found), f'{folder}/config.json: eos_token_id', values.get('eos_token_id'),
          f'none of the added tokens in tokenizer.json: give HuggingFaceFile(path, end_of_text), one of {names}')
  return HuggingFaceFile(str(folder / 'tokenizer.json'), found[0])


def _name(special_id: int, tokenizer: Tokenizer) -> str:
  return next(name for name, i in tokenizer.special_ids.items() if i == special_id)


def _byte_level(ranks: Mapping[bytes, int], special_tokens: Mapping[str, int], pattern: str | None) -> bytes:
  """A `tokenizer.json` of byte-level BPE, whose tokens are spelt in GPT-2's alphabet."""
  spell = {byte: character for character, byte in byte_alphabet().items()}
  name = lambda token: ''.join(spell[byte] for byte in token)
  cuts = [] if pattern is None else [
    {'type': 'Split', 'pattern': {'Regex': oniguruma(pattern)}, 'behavior': 'Isolated', 'invert': False}]
  level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
  merges = [parts for token in sorted(ranks, key=ranks.__getitem__) if len(parts := split(token, ranks)) == 2]
  added = [{'id': i, 'content': text, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
            'special': True} for text, i in sorted(special_tokens.items(), key=lambda item: item[1])]
  return json.dumps({
    'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added, 'normalizer': None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [*cuts, level]}, 'post_processor': None, 'decoder': level,
    'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
              'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': True,
              'vocab': {name(token): rank for token, rank in ranks.items()},
              'merges': [' '.join(map(name, parts)) for parts in merges]},
  }, ensure_ascii=False).encode()


def split(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
  """The two parts that a token's merge joins: what is left of its bytes after all merges of lower ranks."""
  parts = [bytes([byte]) for byte in token]
  while len(parts) > 1:
    joined = [ranks.get(left + right, ranks[token]) for left, right in zip(parts, parts[1:], strict=False)]
    best = min(range(len(joined)), key=joined.__getitem__)
    if joined[best] >= ranks[token]:
      break
    parts[best:best + 2] = [parts[best] + parts[best + 1]]
  return parts


def oniguruma(pattern: str) -> str:
  """The pattern in the dialect of their library. There {1,3}+ is a repeated repetition and $ matches at the end of a
  line; in tiktoken's it is a possessive repetition (used for speed only), and $ matches at the end of the text."""
  kept, possessive = r'\\.|\[(?:\\.|[^\]])*\]', r'([+*?]|\{\d+(?:,\d*)?\})\+'
  return re.sub(f'({kept})|{possessive}|(\\$)', lambda found: found[1] or found[2] or r'\z', pattern)
