"""The tokenizer of a published model, as `transformers` makes it of the files of a folder.

`tokenizer.json` alone does not decide a model's ids. `tokenizer_config.json` names the class that reads it, and some
classes take only its vocabulary, its merges and its post-processor and lay down the rest themselves; it also adds
tokens, and changes the flags of those that are there. What is done here is what `AutoTokenizer` of transformers 5 does:
the classes of the families that we import are in `REBUILT`, those that it reads as they are need nothing, and any other
is refused by name.
"""
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llm_jax.config.errors import ConfigError, require
from llm_jax.data.tokenizers.panics import refusing_panics

if TYPE_CHECKING:
  import tokenizers

Json = dict[str, Any]
Tokens = dict[int, Any]  # the library's AddedToken by id

CONFIG = 'tokenizer_config.json'
# Besides `tokenizer.json`: what decides ids and chats. Other files that stand there are read by no current program.
DECIDING = (CONFIG, 'special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja')
MORE_TEMPLATES = 'additional_chat_templates'  # a folder with others: NAME.jinja
DESCRIBING = (CONFIG, 'special_tokens_map.json')
KEPT = ('generation_config.json',)  # goes with them, and decides nothing here
MODEL = 'config.json'  # of which only the entries MODEL_ENTRIES matter here
MODEL_ENTRIES = ('model_type', 'tokenizer_class')

NAMED = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
# Read `tokenizer.json` as it stands, with nothing of their own.
GENERIC = ('TokenizersBackend', 'PythonBackend', 'PreTrainedTokenizerFast', 'PreTrainedTokenizer')
# What `transformers` takes for a model type where the files name another class, or none.
OF_MODEL = {
  'gemma': 'GemmaTokenizer', 'gemma2': 'GemmaTokenizer', 'gemma3': 'GemmaTokenizer', 'gemma3_text': 'GemmaTokenizer',
  'gpt2': 'GPT2Tokenizer', 'gpt_neox': 'GPTNeoXTokenizer', 'openai-gpt': 'OpenAIGPTTokenizer',
  'mistral': 'TokenizersBackend',
  'mixtral': 'TokenizersBackend', 'olmo2': 'TokenizersBackend', 'olmo3': 'TokenizersBackend',
  'phi3': 'TokenizersBackend', 'qwen2': 'Qwen2Tokenizer', 'qwen3': 'Qwen2Tokenizer', 'qwen3_moe': 'Qwen2Tokenizer',
}
# Classes of `transformers` that lay down rules of their own and are not rebuilt here.
UNKNOWN = frozenset(f'{name}Tokenizer' for name in (
  'Albert', 'Bart', 'Barthez', 'Bartpho', 'Bert', 'BertGeneration', 'BertJapanese', 'Bertweet', 'BigBird', 'BioGpt',
  'Blenderbot', 'BlenderbotSmall', 'ByT5', 'CLIP', 'CTRL', 'Camembert', 'Canine', 'Clvp', 'CodeGen', 'CodeLlama',
  'Cohere', 'ConvBert', 'Cpm', 'CpmAnt', 'DPRContextEncoder', 'DPRQuestionEncoder', 'DPRReader', 'Deberta',
  'DebertaV2', 'Dia', 'DistilBert', 'Esm', 'Esmc', 'FNet', 'FSMT', 'FastSpeech2Conformer', 'Flaubert', 'Funnel',
  'GPTNeoXJapanese', 'GPTSw3', 'Herbert', 'LED', 'Lasr', 'LayoutLMv2', 'LayoutLMv3', 'LayoutXLM', 'Luke',
  'Lxmert', 'M2M100', 'MBart', 'MBart50', 'MLuke', 'MPNet', 'Marian', 'MarkupLM', 'Mgpstr', 'MobileBert', 'Mvp',
  'MyT5', 'Nllb', 'Nougat', 'PLBart', 'Parakeet', 'Pegasus', 'Perceiver', 'Phobert', 'Pop2Piano', 'ProphetNet',
  'Qwen3_5', 'Reformer', 'RemBert', 'RoCBert', 'RoFormer', 'Roberta', 'SeamlessM4T', 'Siglip', 'Siglip2',
  'Speech2Text', 'SpeechT5', 'Splinter', 'SqueezeBert', 'T5', 'Tapas', 'Tipsv2', 'Udop', 'VideoPrism', 'Vits',
  'Wav2Vec2CTC', 'Wav2Vec2PhonemeCTC', 'Whisper', 'XGLM', 'XLM', 'XLMRoberta', 'XLNet'))
MARK = '\N{LOWER ONE EIGHTH BLOCK}'  # SentencePiece's space
# Decoders of SentencePiece's kind: marks are spaces again, and tokens for bytes are characters.
SPACES_BACK = (
  {'type': 'Replace', 'pattern': {'String': MARK}, 'content': ' '}, {'type': 'ByteFallback'}, {'type': 'Fuse'})


@dataclasses.dataclass(frozen=True)
class Published:
  """A tokenizer as its folder describes it.

  tokenizer: of the library.
  model, decoder: these parts of it as JSON.
  named: special tokens by their role, 'bos_token' and so on; chat templates use them by these names.
  chat_templates: in Jinja, by name; 'default' is the one that is used where none is named.
  cleans_up: whether decoding drops the spaces before punctuation.
  is_described: whether a file beside `tokenizer.json` says how the model uses it.
  """
  tokenizer: 'tokenizers.Tokenizer'
  model: Json
  decoder: Json
  named: dict[str, str]
  chat_templates: dict[str, str]
  cleans_up: bool
  is_described: bool


def read_published(content: bytes, files: Mapping[str, bytes]) -> Published:
  """What `AutoTokenizer.from_pretrained` makes of a folder.

  Args:
    content: of its `tokenizer.json`.
    files: those that `read_files` gives.

  Raises:
    ConfigError: a file cannot be read, or names what is not known here.
  """
  import tokenizers
  description = read_object('tokenizer.json', content)
  config = read_object(CONFIG, files.get(CONFIG, b'{}'))
  _check(config)
  name = _class_name(config, read_object(MODEL, files.get(MODEL, b'{}')), content)
  values, added = _added_tokens(config, files, description)
  if name in REBUILT:
    rebuild, defaults = REBUILT[name]
    values = {**defaults, **values}
    _check_model(description, name)
    description = {**description, **rebuild(description['model'], values), 'added_tokens': []}
  try:
    with refusing_panics('tokenizer.path', 'tokenizer.json'):
      tokenizer = tokenizers.Tokenizer.from_str(
        json.dumps(description) if name in REBUILT else content.decode())
  except ConfigError:
    raise
  except Exception as error:  # the library raises bare Exception
    raise _not_a_tokenizer(error) from error
  named = {**{role: values[role] for role in NAMED if values.get(role) is not None}, **_own_roles(values)}
  if files:
    tokenizer.add_tokens(_tokens_to_add(tokenizer, added, named, _extra_tokens(values)))
  model = description.get('model') or {}
  return Published(
    tokenizer, model, description.get('decoder') or {}, {role: str(token) for role, token in named.items()},
    read_chat_templates(config, files), cleans_up=_cleans_up(config, model),
    is_described=any(name in files for name in DESCRIBING))


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
  """What stands beside a `tokenizer.json` and matters, by name."""
  templates = [f'{MORE_TEMPLATES}/{file.name}' for file in sorted(folder.glob(f'{MORE_TEMPLATES}/*.jinja'))]
  names = (*DECIDING, *KEPT, MODEL, *templates)
  return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def is_deciding(name: str) -> bool:
  """Whether a file of that name decides ids or chats."""
  return name in DECIDING or name.startswith(f'{MORE_TEMPLATES}/')


def read_object(name: str, content: bytes) -> Json:
  """The JSON object in a file. Raises ConfigError that names it."""
  try:
    value = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ConfigError('tokenizer.path', name, f'not JSON: {error}') from error
  require(isinstance(value, dict), 'tokenizer.path', name, f'a JSON {type(value).__name__}: it holds an object')
  return value


def read_chat_templates(config: Json, files: Mapping[str, bytes]) -> dict[str, str]:
  """Chat templates in Jinja by name: those of a file of their own go before those of the configuration."""
  found = {pathlib.PurePath(name).stem: content.decode() for name, content in files.items()
           if name.startswith(f'{MORE_TEMPLATES}/')}
  if 'chat_template.jinja' in files:
    found['default'] = files['chat_template.jinja'].decode()
  if found:
    return found
  template = config.get('chat_template')
  if template is None:
    return {}
  if isinstance(template, str):
    return {'default': template}
  if isinstance(template, dict):
    return {str(name): str(text) for name, text in template.items()}
  try:
    return {entry['name']: entry['template'] for entry in template}
  except (TypeError, KeyError) as error:
    raise ConfigError(CONFIG, 'chat_template', 'neither a text nor a list of {"name", "template"}') from error


# ---------------------------------------------------------------------------------------------- classes
def _class_name(config: Json, model: Json, content: bytes) -> str:
  """The class that reads the files, without the ending 'Fast'; '' for one that reads `tokenizer.json` as it stands."""
  stated = config.get('tokenizer_class') or model.get('tokenizer_class')
  registered = OF_MODEL.get(str(model.get('model_type')))
  name = str(stated or registered or '').removesuffix('Fast')
  is_byte_level = name == 'LlamaTokenizer' and b'"ByteLevel"' in content  # such as Llama 3's, which say so by mistake
  is_of_generic_model = registered == 'TokenizersBackend' and stated is not None
  if name in GENERIC or is_byte_level or is_of_generic_model:
    return ''
  require(name not in UNKNOWN, CONFIG, f'tokenizer_class = {stated}', 'transformers lays down rules for this class '
          'that are not known here: write "PreTrainedTokenizerFast" there, which reads tokenizer.json as it stands')
  return name if name in REBUILT else ''


def _check(config: Json) -> None:
  """Refuses entries that change ids in a way that is not known here."""
  for entry in ('split_special_tokens', 'fix_mistral_regex', 'init_inputs'):
    require(not config.get(entry), CONFIG, f'{entry} = {config.get(entry)!r}',
            'changes the ids, and is not known here: take it out, or save the tokenizer anew with transformers')


def _check_model(description: Json, name: str) -> None:
  model = description.get('model')
  is_known = isinstance(model, dict) and model.get('type', 'BPE') == 'BPE' and isinstance(model.get('vocab'), dict)
  require(is_known, CONFIG, f'tokenizer_class = {name}', 'takes a vocabulary and merges of a tokenizer.json, which '
          'this one lacks: write "PreTrainedTokenizerFast" there, which reads it as it stands')


def _cleans_up(config: Json, model: Json) -> bool:
  """transformers leaves the texts of BPE as they are, where it is not forced."""
  forced = config.get('clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output', False)
  return bool(config.get('clean_up_tokenization_spaces')) and (forced or model.get('type') != 'BPE')


def _bpe(model: Json, **fields: Any) -> Json:
  empty = {'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None, 'end_of_word_suffix': None,
           'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': False}
  return {'type': 'BPE', **empty, **fields, 'vocab': model['vocab'], 'merges': model.get('merges', [])}


def _llama(model: Json, values: Json) -> Json:
  """Llama 2's kind: SentencePiece's BPE, whose mark stands before a text, or before every stretch of it (legacy)."""
  prefix = values.get('add_prefix_space')
  has_prefix = prefix is None or bool(prefix)
  scheme = 'never' if not has_prefix else 'always' if values.get('legacy') else 'first'
  decoders = [*SPACES_BACK]
  if has_prefix:
    decoders.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  return {
    'model': _bpe(model, fuse_unk=True, byte_fallback=True),
    'normalizer': None,
    'pre_tokenizer': {'type': 'Metaspace', 'replacement': MARK, 'prepend_scheme': scheme, 'split': False},
    'decoder': {'type': 'Sequence', 'decoders': decoders},
  }


def _gemma(model: Json, values: Json) -> Json:
  return {
    'model': _bpe(model, fuse_unk=True, byte_fallback=True, unk_token=str(values['unk_token'])),
    'normalizer': {'type': 'Replace', 'pattern': {'String': ' '}, 'content': MARK},
    'pre_tokenizer': {'type': 'Split', 'pattern': {'String': ' '}, 'behavior': 'MergedWithPrevious', 'invert': False},
    'decoder': {'type': 'Sequence', 'decoders': [*SPACES_BACK]},
  }


def _gpt2(model: Json, values: Json) -> Json:
  level = {'type': 'ByteLevel', 'add_prefix_space': bool(values.get('add_prefix_space')), 'trim_offsets': True,
           'use_regex': True}
  return {
    'model': _bpe(model, continuing_subword_prefix='', end_of_word_suffix=''),
    'normalizer': None,
    'pre_tokenizer': level,
    'decoder': {**level, 'add_prefix_space': True},
  }


def _gpt_neox(model: Json, values: Json) -> Json:
  """As GPT-2's; and whatever the file says, nothing is put before or after a text."""
  return {**_gpt2(model, values), 'normalizer': {'type': 'NFC'}, 'post_processor': None}


# How Qwen's tokenizers cut a text before they merge: contractions, words, single digits, punctuation, white space.
QWEN_PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+")


def _qwen2(model: Json, values: Json) -> Json:
  level = {'type': 'ByteLevel', 'add_prefix_space': bool(values.get('add_prefix_space')), 'trim_offsets': True,
           'use_regex': False}
  pieces = {'type': 'Split', 'pattern': {'Regex': QWEN_PIECES}, 'behavior': 'Isolated', 'invert': False}
  return {
    'model': _bpe(model, continuing_subword_prefix='', end_of_word_suffix=''),
    'normalizer': {'type': 'NFC'},
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [pieces, level]},
    'decoder': {**level, 'add_prefix_space': True, 'use_regex': True},
  }


def _gpt1(model: Json, values: Json) -> Json:
  return {
    'model': _bpe(model, continuing_subword_prefix='', end_of_word_suffix='</w>', unk_token=str(values['unk_token'])),
    'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True, 'strip_accents': None,
                   'lowercase': True},
    'pre_tokenizer': {'type': 'BertPreTokenizer'},
    'decoder': {'type': 'BPEDecoder', 'suffix': '</w>'},
  }


# By class: (its parts of a `tokenizer.json` from the model there and the configuration, its named tokens).
REBUILT: dict[str, tuple[Callable[[Json, Json], Json], Json]] = {
  'LlamaTokenizer': (_llama, {'unk_token': '<unk>', 'bos_token': '<s>', 'eos_token': '</s>'}),
  'GemmaTokenizer': (_gemma, {'unk_token': '<unk>', 'bos_token': '<bos>', 'eos_token': '<eos>', 'pad_token': '<pad>',
                              'mask_token': '<mask>'}),
  'GPT2Tokenizer': (_gpt2, dict.fromkeys(('unk_token', 'bos_token', 'eos_token'), '<|endoftext|>')),
  'GPTNeoXTokenizer': (_gpt_neox, {**dict.fromkeys(('unk_token', 'bos_token', 'eos_token'), '<|endoftext|>'),
                                   'pad_token': '<|padding|>'}),
  'Qwen2Tokenizer': (_qwen2, dict.fromkeys(('unk_token', 'eos_token', 'pad_token'), '<|endoftext|>')),
  'OpenAIGPTTokenizer': (_gpt1, {'unk_token': '<unk>'}),
}


# ---------------------------------------------------------------------------------------------- added tokens
def _added_tokens(config: Json, files: Mapping[str, bytes], description: Json) -> tuple[Json, Tokens]:
  """(the configuration with its tokens as the library's AddedToken, the added tokens by id)."""
  values = dict(config)
  if 'additional_special_tokens' in values and not values.get('extra_special_tokens'):
    values['extra_special_tokens'] = values.pop('additional_special_tokens')
  if 'added_tokens_decoder' in values:
    decoder = {int(i): _token(token) for i, token in values.pop('added_tokens_decoder').items()}
  else:
    decoder = _of_older_files(values, files, description)
  values = {key: _as_tokens(value) for key, value in values.items()}
  by_name = {str(token): token for token in decoder.values()}
  for role in NAMED:
    if values.get(role) is not None:
      values[role] = by_name.get(str(values[role]), values[role])
  return values, decoder


def _of_older_files(values: Json, files: Mapping[str, bytes], description: Json) -> Tokens:
  """The added tokens by id where the configuration lists none; `values` gains the named ones of their own file."""
  for key, value in read_object('special_tokens_map.json', files.get('special_tokens_map.json', b'{}')).items():
    values[key] = _token({**value, 'special': True}) if isinstance(value, dict) and key in NAMED else value
  decoder: Tokens = {}
  special = {str(values[role]) for role in NAMED if values.get(role)}
  for name, i in read_object('added_tokens.json', files.get('added_tokens.json', b'{}')).items():
    is_special = name in special
    decoder[i] = _token({'content': name, 'normalized': not is_special, 'special': is_special})
  for token in description.get('added_tokens') or ():
    decoder[token['id']] = _token({key: value for key, value in token.items() if key != 'id'})
  return decoder


def _token(value: Any) -> 'tokenizers.AddedToken':
  import tokenizers
  try:
    return tokenizers.AddedToken(**{key: entry for key, entry in value.items() if key != '__type'})
  except (TypeError, AttributeError) as error:
    raise ConfigError(CONFIG, str(value)[:80], f'not an added token: {error}') from error


def _as_tokens(value: Any) -> Any:
  """The value with the library's tokens in place of JSON that describes them."""
  if isinstance(value, dict) and value.get('__type') == 'AddedToken':
    return _token(value)
  return [_as_tokens(entry) for entry in value] if isinstance(value, list) else value


def _own_roles(values: Json) -> Json:
  """Tokens by roles that only this model has, such as Gemma's 'boi_token'."""
  import tokenizers
  of_their_own = values.get('extra_special_tokens')
  roles = {key: value for key, value in values.items()
           if key.endswith('_token') and key not in NAMED and isinstance(value, str | tokenizers.AddedToken)}
  return {**roles, **(of_their_own if isinstance(of_their_own, dict) else {})}


def _extra_tokens(values: Json) -> list[Any]:
  extra = values.get('extra_special_tokens')
  if isinstance(extra, dict):  # those have roles; the others are under their older name then
    extra = values.get('additional_special_tokens')
  return extra if isinstance(extra, list) else []


def _tokens_to_add(tokenizer: 'tokenizers.Tokenizer', added: Tokens, named: Json, extra: Iterable[Any]) -> list[Any]:
  """In transformers' order: the listed ones by id, then those with a role, then the others, where they are new."""
  import tokenizers
  tokens = [added[i] for i in sorted(added)]
  known = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | set(map(str, tokens))
  for token in (*named.values(), *extra):
    if str(token) not in known:
      known.add(str(token))
      tokens.append(token)
  roles = {str(token) for token in named.values()}
  found: list[Any] = []
  for token in tokens:
    if isinstance(token, str):
      found.append(tokenizers.AddedToken(token, special=True))
      continue
    if str(token) in roles:
      token.special = True
    found.append(token)
  return found


def _not_a_tokenizer(error: Exception) -> ConfigError:
  return ConfigError('tokenizer.path', 'tokenizer.json', f'not a Hugging Face tokenizer: {error}')
