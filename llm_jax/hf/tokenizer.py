"""Writes our tokenizers as files that `transformers.AutoTokenizer` reads, and reads the tokenizer of a folder."""
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.hub_names import is_hub_name
from llm_jax.config.source import OWN_TEMPLATE
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.data.tokenizers.byte_level import END_OF_TEXT, ByteTokenizer, RankTokenizer
from llm_jax.data.tokenizers.chat_templates import end_of_turn, names_of
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer, byte_alphabet
from llm_jax.data.tokenizers.published import CONFIG, MORE_TEMPLATES, read_chat_templates, read_files, read_object
from llm_jax.hf.configs import listed
from llm_jax.hf.files import read_json
from llm_jax.runtime.hub import model_folder

# The templates of `data/tokenizers/chat_templates.py` in Jinja, which transformers applies.
JINJA = {
  'plain': """{{ beginning }}{% for m in messages %}{% if m['role'] == 'assistant' %}
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
  names = {'end_of_text': names_of((tokenizer.eot,), tokenizer),
           'beginning': names_of(tokenizer.begin, tokenizer),
           'begin_of_text': '<|begin_of_text|>' if '<|begin_of_text|>' in tokenizer.special_ids else ''}
  given = ''.join(f'{{% set {name} = {json.dumps(text)} %}}' for name, text in names.items() if name in JINJA[template])
  return given + JINJA[template].replace('}\n{', '}{')


def tokenizer_files(tokenizer: Tokenizer, template: str | None = None) -> dict[str, bytes]:
  """`tokenizer.json` and what stands beside it, with the same ids for the same text, the same special tokens, and
  (given a template) the chat template. The files of a model that was imported go out as they came in, but for a chat
  template that is another.

  The post-processor puts what a document begins with before a text, as it was learnt; what ends a document it leaves
  out, so that the text of a prompt can be continued. There is one difference: their library reads the name of a special
  token in a text as that token; ours never does.
  """
  beside = _beside(tokenizer, template) if isinstance(tokenizer, HuggingFaceTokenizer) else {}
  match tokenizer:
    case HuggingFaceTokenizer(is_described=True):
      return {'tokenizer.json': tokenizer.content, **beside}
    case HuggingFaceTokenizer():
      content, end = _with_beginning(tokenizer), tokenizer.end_of_text
    case RankTokenizer():
      end = tokenizer.end_of_text
      content = _byte_level(tokenizer.ranks, tokenizer.special_ids, tokenizer.pattern, end)
    case ByteTokenizer():
      ranks = {bytes([byte]): byte for byte in range(256)}
      content, end = _byte_level(ranks, {END_OF_TEXT: tokenizer.eot}, None, END_OF_TEXT), END_OF_TEXT
    case _:
      raise TypeError(type(tokenizer).__name__)
  bos = names_of(tokenizer.begin[:1], tokenizer) or end
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': bos, 'eos_token': end,
            'clean_up_tokenization_spaces': False, 'model_max_length': 1 << 40}
  if template and template != OWN_TEMPLATE:
    config['eos_token'] = names_of(end_of_turn(template, tokenizer)[:1], tokenizer)
    config['chat_template'] = chat_template(template, tokenizer)
  return {**beside, 'tokenizer.json': content, CONFIG: _encoded(config)}


def _beside(tokenizer: HuggingFaceTokenizer, template: str | None) -> dict[str, bytes]:
  """The files beside a `tokenizer.json`, with another chat template where a named one was learnt."""
  files = tokenizer.companions
  if template is None or template == OWN_TEMPLATE:
    return files
  config = json.loads(files.get(CONFIG, b'{}'))
  config['chat_template'] = chat_template(template, tokenizer)
  others = {name: content for name, content in files.items()
            if name != 'chat_template.jinja' and not name.startswith(f'{MORE_TEMPLATES}/')}
  return {**others, CONFIG: _encoded(config)}


def _with_beginning(tokenizer: HuggingFaceTokenizer) -> bytes:
  """The file itself; where it does not put before a text what was learnt there, with a post-processor that does."""
  says_so = HuggingFaceTokenizer(tokenizer.content, tokenizer.end_of_text, {CONFIG: b'{}'}).begin == tokenizer.begin
  description = json.loads(tokenizer.content)
  is_free = (description.get('post_processor') or {}).get('type') in (None, 'ByteLevel')
  if says_so or not is_free:
    return tokenizer.content
  template = _beginning(tokenizer.end_of_text, tokenizer.eot)
  before = [description['post_processor']] if description.get('post_processor') else []
  description['post_processor'] = {'type': 'Sequence', 'processors': [*before, template]} if before else template
  return json.dumps(description, ensure_ascii=False).encode()


def _encoded(config: dict[str, Any]) -> bytes:
  return json.dumps(config, indent=2).encode() + b'\n'


def read_tokenizer(directory: str | os.PathLike, revision: str | None = None) -> HuggingFaceFile:
  """The tokenizer of a Hugging Face folder, for an experiment. Its end of text is the first id that ends a text there.

  Args:
    directory: the folder, or the name of a model on the hub.
    revision: branch, tag or commit on the hub; None: the newest commit.

  Raises:
    ConfigError: names the file that is missing or that does not state it.
  """
  folder = model_folder(directory, revision, weights=False)
  values = read_json(folder, 'config.json')
  if (folder / 'generation_config.json').is_file():
    values |= {key: ids for key, ids in read_json(folder, 'generation_config.json').items() if listed(ids)}
  files = {name: (folder / name).read_bytes() for name in ('tokenizer.json', CONFIG) if (folder / name).is_file()}
  read_json(folder, 'tokenizer.json')  # names the folder where it is missing
  ends = listed(values.get('eos_token_id'))
  found = end_of_text(files, ends)
  if found is None:
    raise ConfigError(f'{folder}/config.json: eos_token_id', values.get('eos_token_id'), 'none of the added tokens in '
                      f'tokenizer.json: give HuggingFaceFile(path, end_of_text), one of {added_names(files)}')
  if is_hub_name(os.fspath(directory)):
    return HuggingFaceFile(os.fspath(directory), found, revision)
  return HuggingFaceFile(str(folder / 'tokenizer.json'), found)


def template_of(directory: str | os.PathLike, revision: str | None = None) -> str:
  """The chat template for conversations with the model of a Hugging Face folder, or of a name on the hub: its own where
  it brings one, else 'plain', which asks nothing of the tokenizer."""
  folder = model_folder(directory, revision, weights=False)
  files = read_files(folder)
  config = read_object(CONFIG, files.get(CONFIG, b'{}'))
  return OWN_TEMPLATE if 'default' in read_chat_templates(config, files) else 'plain'


def end_of_text(files: Mapping[str, bytes], ids: Sequence[int]) -> str | None:
  """The name of the token that ends a text: the first of `ids` that is a token of these files; where there are no ids,
  the end of text that the files name themselves.

  files: a `tokenizer.json`, and the `tokenizer_config.json` beside it where there is one.
  """
  names = added_names(files)
  stated = read_object(CONFIG, files.get(CONFIG, b'{}')).get('eos_token')
  eos = stated.get('content') if isinstance(stated, dict) else stated
  if not ids:
    return eos if isinstance(eos, str) else None
  return next((names[i] for i in ids if i in names), None)


def added_names(files: Mapping[str, bytes]) -> dict[Any, Any]:
  """Names of the added tokens by id."""
  added = read_object('tokenizer.json', files['tokenizer.json']).get('added_tokens') or []
  names: dict[Any, Any] = {token.get('id'): token.get('content') for token in added if isinstance(token, dict)}
  decoder = read_object(CONFIG, files.get(CONFIG, b'{}')).get('added_tokens_decoder') or {}
  return {**names, **{int(i): token.get('content') for i, token in decoder.items() if isinstance(token, dict)}}


def _beginning(name: str, special_id: int) -> dict[str, Any]:
  """A post-processor that puts a special token before a text."""
  special = [{'SpecialToken': {'id': name, 'type_id': i}} for i in range(2)]
  text = [{'Sequence': {'id': letter, 'type_id': i}} for i, letter in enumerate('AB')]
  return {'type': 'TemplateProcessing', 'single': [special[0], text[0]],
          'pair': [special[0], text[0], special[1], text[1]],
          'special_tokens': {name: {'id': name, 'ids': [special_id], 'tokens': [name]}}}


def _byte_level(ranks: Mapping[bytes, int], special_tokens: Mapping[str, int], pattern: str | None,
                first: str) -> bytes:
  """A `tokenizer.json` of byte-level BPE, whose tokens are spelt in GPT-2's alphabet.   first: the special token that
  stands before every text."""
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
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [*cuts, level]},
    'post_processor': _beginning(first, special_tokens[first]), 'decoder': level,
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
