"""Small tokenizers with the rules of published ones, in folders as they stand on the Hub."""
import json
import pathlib
import random
from typing import Any

import tokenizers as library

TEXTS = ['the user and the assistant talk about a system', 'Hello there! How are you? I am well.', 'a cat sees the dog',
         'def f(x):\n    return x ** 2  # 12,345', "it's 6 o'clock in 東京", 'one\n\ntwo  three\tfour']
MARK = '\N{LOWER ONE EIGHTH BLOCK}'
BYTES = [f'<0x{byte:02X}>' for byte in range(256)]
# Templates as published, but for their line breaks.
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}
{%- set system = messages[0]['content'] %}{% else %}{% set turns = messages %}{% set system = false %}{% endif %}
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if loop.index0 == 0 and system != false %}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{%- else %}{% set content = message['content'] %}{% endif %}
{%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
LLAMA3 = """{{- bos_token }}{% for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
CHATML = """{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
PHI3 = """{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""


def special(name: str, **flags: bool) -> library.AddedToken:
  return library.AddedToken(name, special=True, normalized=False, **flags)


def before_text(name: str, i: int) -> library.processors.TemplateProcessing:
  return library.processors.TemplateProcessing(single=f'{name} $A', special_tokens=[(name, i)])


def _sentencepiece(names: list[str]) -> library.Tokenizer:
  """Pieces with SentencePiece's mark; ids of `names` come first, then the bytes."""
  tokenizer = library.Tokenizer(library.models.BPE(unk_token='<unk>', byte_fallback=True, fuse_unk=True))
  tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme='always')
  trainer = library.trainers.BpeTrainer(
    vocab_size=len(names) + 420, special_tokens=[*names, *BYTES], show_progress=False)
  tokenizer.train_from_iterator(TEXTS * 20, trainer)
  description = json.loads(tokenizer.to_str())
  description['added_tokens'] = [token for token in description['added_tokens'] if token['content'] not in BYTES]
  description['pre_tokenizer'] = None
  return library.Tokenizer.from_str(json.dumps(description))


def llama2(legacy: bool = True) -> tuple[library.Tokenizer, dict[str, Any], str]:
  tokenizer = _sentencepiece(['<unk>', '<s>', '</s>'])
  tokenizer.normalizer = library.normalizers.Sequence([
    library.normalizers.Prepend(MARK), library.normalizers.Replace(' ', MARK)])
  tokenizer.decoder = library.decoders.Sequence([
    library.decoders.Replace(MARK, ' '), library.decoders.ByteFallback(), library.decoders.Fuse(),
    library.decoders.Strip(' ', 1, 0)])
  tokenizer.post_processor = before_text('<s>', 1)
  config = {'tokenizer_class': 'LlamaTokenizer', 'legacy': legacy, 'add_bos_token': True, 'bos_token': '<s>',
            'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': None, 'chat_template': LLAMA2}
  return tokenizer, config, 'llama'


def llama3() -> tuple[library.Tokenizer, dict[str, Any], str]:
  tokenizer = _byte_level()
  names = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
  tokenizer.add_special_tokens([special(name) for name in names])
  bos = tokenizer.token_to_id(names[0])
  tokenizer.post_processor = library.processors.Sequence([
    library.processors.ByteLevel(trim_offsets=False), before_text(names[0], bos)])
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': names[0], 'eos_token': '<|end_of_text|>',
            'clean_up_tokenization_spaces': True, 'chat_template': LLAMA3}
  return tokenizer, config, 'llama'


def mistral() -> tuple[library.Tokenizer, dict[str, Any], str]:
  """Version 0.3: the instruction marks are special tokens, and the mark stands before the first piece alone."""
  tokenizer = _sentencepiece(['<unk>', '<s>', '</s>', '[INST]', '[/INST]'])
  tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
  tokenizer.decoder = library.decoders.Sequence([
    library.decoders.Replace(MARK, ' '), library.decoders.ByteFallback(), library.decoders.Fuse(),
    library.decoders.Strip(' ', 1, 0)])
  tokenizer.post_processor = before_text('<s>', 1)
  config = {'tokenizer_class': 'LlamaTokenizer', 'legacy': False, 'bos_token': '<s>', 'eos_token': '</s>',
            'unk_token': '<unk>', 'chat_template': LLAMA2}
  return tokenizer, config, 'mistral'


def phi3() -> tuple[library.Tokenizer, dict[str, Any], str]:
  """Llama 2's pieces, with special tokens for turns. Whatever class is named, the file is read as it stands."""
  tokenizer = _sentencepiece(['<unk>', '<s>', '</s>'])
  tokenizer.normalizer = library.normalizers.Sequence([
    library.normalizers.Prepend(MARK), library.normalizers.Replace(' ', MARK)])
  tokenizer.decoder = library.decoders.Sequence([
    library.decoders.Replace(MARK, ' '), library.decoders.ByteFallback(), library.decoders.Fuse(),
    library.decoders.Strip(' ', 1, 0)])
  names = ('<|endoftext|>', '<|system|>', '<|user|>', '<|assistant|>', '<|end|>')
  tokenizer.add_special_tokens([special(name, rstrip=name == '<|end|>') for name in names])
  config = {'tokenizer_class': 'LlamaTokenizer', 'legacy': False, 'add_bos_token': False, 'bos_token': '<s>',
            'eos_token': '<|endoftext|>', 'unk_token': '<unk>', 'chat_template': PHI3}
  return tokenizer, config, 'phi3'


def gemma() -> tuple[library.Tokenizer, dict[str, Any], str]:
  tokenizer = _sentencepiece(['<pad>', '<eos>', '<bos>', '<unk>', '<mask>'])
  tokenizer.normalizer = library.normalizers.Replace(' ', MARK)
  tokenizer.pre_tokenizer = library.pre_tokenizers.Split(' ', 'merged_with_previous')
  tokenizer.decoder = library.decoders.Sequence([
    library.decoders.Replace(MARK, ' '), library.decoders.ByteFallback(), library.decoders.Fuse()])
  tokenizer.add_special_tokens([special('<start_of_turn>'), special('<end_of_turn>')])
  tokenizer.add_tokens([library.AddedToken('<b>', normalized=False), library.AddedToken('\n\n', normalized=False)])
  tokenizer.post_processor = before_text('<bos>', 2)
  config = {'tokenizer_class': 'GemmaTokenizer', 'bos_token': '<bos>', 'eos_token': '<eos>', 'unk_token': '<unk>',
            'pad_token': '<pad>', 'chat_template': GEMMA}
  return tokenizer, config, 'gemma'


def gpt2(add_prefix_space: bool = False) -> tuple[library.Tokenizer, dict[str, Any], str]:
  tokenizer = _byte_level()
  tokenizer.add_special_tokens([special(name) for name in ('<|endoftext|>', '<|im_start|>', '<|im_end|>')])
  tokenizer.post_processor = library.processors.ByteLevel(trim_offsets=False)
  config = {'tokenizer_class': 'GPT2Tokenizer', 'add_prefix_space': add_prefix_space, 'chat_template': CHATML}
  return tokenizer, config, 'gpt2'


def gpt_neox() -> tuple[library.Tokenizer, dict[str, Any], str]:
  """As Pythia's: <|padding|> is among the added tokens, and runs of spaces are added tokens that are not special. The
  file would put a token before a text, which the class does not."""
  tokenizer = _byte_level()
  tokenizer.normalizer = library.normalizers.NFC()
  tokenizer.add_special_tokens([special('<|endoftext|>'), special('<|padding|>')])
  tokenizer.add_tokens([library.AddedToken(' ' * n, normalized=True) for n in (4, 3, 2)])
  tokenizer.add_special_tokens([special(name) for name in ('<|im_start|>', '<|im_end|>')])
  tokenizer.post_processor = before_text('<|endoftext|>', tokenizer.token_to_id('<|endoftext|>'))
  config = {'tokenizer_class': 'GPTNeoXTokenizer', 'unk_token': '<|endoftext|>', 'bos_token': '<|endoftext|>',
            'eos_token': '<|endoftext|>', 'add_prefix_space': False, 'chat_template': CHATML}
  return tokenizer, config, 'gpt_neox'


def qwen2() -> tuple[library.Tokenizer, dict[str, Any], str]:
  tokenizer = _byte_level()
  tokenizer.add_special_tokens([special(name) for name in ('<|endoftext|>', '<|im_start|>', '<|im_end|>')])
  tokenizer.post_processor = library.processors.ByteLevel(trim_offsets=False)
  config = {'tokenizer_class': 'Qwen2Tokenizer', 'bos_token': None, 'eos_token': '<|im_end|>',
            'pad_token': '<|endoftext|>', 'unk_token': None, 'chat_template': CHATML}
  return tokenizer, config, 'qwen2'


def _byte_level() -> library.Tokenizer:
  tokenizer = library.Tokenizer(library.models.BPE())
  tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=400, show_progress=False, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet())
  tokenizer.train_from_iterator(TEXTS * 20, trainer)
  return tokenizer


def flagged() -> tuple[library.Tokenizer, dict[str, Any], str]:
  """Special tokens that take the white space beside them, and others that are found in normalised text or as words."""
  tokenizer, config, kind = mistral()
  tokenizer.add_special_tokens([special('<|im_start|>', rstrip=True), special('<|im_end|>', lstrip=True)])
  tokenizer.add_tokens([library.AddedToken('user', single_word=True), library.AddedToken(' cat', normalized=True)])
  return tokenizer, {**config, 'tokenizer_class': 'PreTrainedTokenizerFast', 'chat_template': CHATML}, kind


KINDS = {
  'llama2': llama2,
  'llama2_first': lambda: llama2(legacy=False),
  'llama3': llama3,
  'mistral': mistral,
  'phi3': phi3,
  'gemma': gemma,
  'gpt2': gpt2,
  'gpt_neox': gpt_neox,
  'qwen2': qwen2,
  'qwen3_moe': lambda: (*qwen2()[:2], 'qwen3_moe'),
  'gpt2_space': lambda: gpt2(add_prefix_space=True),
  'flagged': flagged,
}


def write_folder(kind: str, folder: pathlib.Path, **changes: Any) -> pathlib.Path:
  """A folder with the tokenizer of a kind.   changes: entries of its `tokenizer_config.json`."""
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer, config, model_type = KINDS[kind]()
  tokenizer.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps({**config, **changes}))
  (folder / 'config.json').write_text(json.dumps({'model_type': model_type}))
  return folder


WORDS = [*'abc XYZ 019.,;!?\n\t éß東\U0001f600', ' the ', '  ', '\n\n', 'hello', "'s", ' cat', ' user', 'user', '<b>',
         ' world', '\r\n', '{{x}}', 'def f():', MARK]


def text(rng: random.Random) -> str:
  words = ''.join(rng.choice(WORDS) for _ in range(rng.randrange(1, 30)))
  return words if words.strip() else f'x{words}'


def conversation(rng: random.Random) -> list[dict[str, str]]:
  """One to four rounds, behind a system message in some."""
  rounds = ['user', 'assistant'] * rng.randint(1, 4)
  roles = ['system', *rounds] if rng.random() < 0.4 else rounds
  return [{'role': role, 'content': text(rng)} for role in roles]
