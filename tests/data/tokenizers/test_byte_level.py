"""Byte-level BPE: training, rank files, patterns."""
import json
import os
import subprocess
import sys

import pytest

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers import base, byte_level
from tests.data.tokenizers.hf_tokenizers import END


@pytest.mark.parametrize('pattern', ['gpt2', 'cl100k', 'llama3'])
def test_split_digits(pattern, texts, tmp_path):
  numbers = [' '.join(str(i) for i in range(k, k + 50)) for k in range(0, 3000, 50)]
  ours = byte_level.train(numbers + texts, 500, pattern, split_digits=True)
  for text in numbers + texts:
    pieces = [ours.decode_bytes([i]) for i in ours.encode(text)]
    assert b''.join(pieces) == text.encode()
    assert all(len(piece) == 1 for piece in pieces if any(chr(b) in '0123456789' for b in piece))
  ours.save(tmp_path)
  assert base.load_tokenizer(tmp_path).encode('12 345') == ours.encode('12 345')
  merged = byte_level.train(numbers, 500, pattern)  # without the option digits do merge, also when encoding
  assert any(len(token) > 1 and token.strip().isdigit() for token in merged.ranks)
  path = tmp_path / 'merged.tiktoken'
  path.write_bytes(byte_level.dump_ranks(merged.ranks))
  split = base.make_tokenizer(config.TiktokenFile(str(path), pattern, split_digits=True))
  assert all(len(split.decode_bytes([i])) == 1 for i in split.encode('1234 56'))


def test_training_is_deterministic(texts):
  code = ('import json, sys; from llm_jax.data.tokenizers import byte_level; texts = json.load(sys.stdin); '
          'print(byte_level.train(texts, 500, "cl100k").fingerprint)')
  once = set()
  for threads in ('1', '3'):
    environment = {**os.environ, 'RAYON_NUM_THREADS': threads, 'PYTHONHASHSEED': threads}
    run = subprocess.run([sys.executable, '-c', code], input=json.dumps(texts), env=environment, text=True,
                         capture_output=True, check=True)
    once.add(run.stdout.strip())
  assert once == {byte_level.train(texts, 500, 'cl100k').fingerprint}


def test_training_with_control_tokens(texts, tmp_path):
  plain = byte_level.train(texts, 398, 'cl100k')
  ours = base.make_tokenizer(config.BPE(400, special_tokens=('<|im_start|>', '<|im_end|>')), lambda: iter(texts))
  assert ours.vocab_size == 400 and ours.ranks == plain.ranks and ours.eot == plain.eot == 397
  assert ours.special_ids == {END: 397, '<|im_start|>': 398, '<|im_end|>': 399} and plain.special_ids == {END: 397}
  assert ours.fingerprint != plain.fingerprint
  ours.save(tmp_path)
  assert base.load_tokenizer(tmp_path).special_ids == ours.special_ids
  assert not {397, 398, 399} & set(ours.encode(f'a{END}b<|im_start|><|im_end|>'))
  for special_tokens in (('a', 'a'), (END,), ('',)):
    with pytest.raises(ConfigError, match=r'tokenizer\.special_tokens = .*names must differ'):
      base.make_tokenizer(config.BPE(400, special_tokens=special_tokens), lambda: iter(texts))


@pytest.mark.parametrize('pattern', [r'\w+', r'\S+|\n', r'[^a]'])
def test_a_pattern_that_leaves_text_out_is_refused(pattern, texts, tmp_path):
  """tiktoken drops what no alternative matches, without a word."""
  (tmp_path / 'x.tiktoken').write_bytes(byte_level.dump_ranks(byte_level.train(texts, 300, 'cl100k').ranks))
  for make in (lambda pattern: byte_level.train(texts, 300, pattern),
               lambda pattern: base.make_tokenizer(config.TiktokenFile(str(tmp_path / 'x.tiktoken'), pattern))):
    with pytest.raises(ConfigError, match=r"tokenizer\.pattern = .*leaves out text, before ' naïve'|before 'a naïve'"):
      make(pattern).encode('a naïve')
    whole = make(pattern + r'|[\s\S]')
    assert [whole.decode(whole.encode(text)) for text in texts] == texts


@pytest.mark.parametrize('name', ['cl100k_base', 'o200k', 'gpt-2', ''])
def test_a_misspelt_pattern_is_refused(name):
  for make in (lambda: config.BPE(pattern=name), lambda: config.TiktokenFile('x', name)):
    with pytest.raises(ConfigError, match=f"pattern = '{name}': use one of .'gpt2', 'cl100k', 'llama3'"):
      make()


def test_a_wrong_regular_expression_is_refused_before_training(texts):
  with pytest.raises(ConfigError, match=r"tokenizer\.pattern = '\(': not a regular expression"):
    byte_level.train(texts, 300, '(')


def test_training_stops_at_sample_bytes_and_counts_the_vocabulary(texts):
  full = base.make_tokenizer(config.BPE(400), lambda: iter(texts))
  assert full.vocab_size == 400 and full.eot == 399
  endless = iter(lambda: 'the cat sat on the mat. ', None)
  assert byte_level.train(endless, 400, 'gpt2', sample_bytes=10_000).vocab_size < 400  # so few merges are there


@pytest.mark.parametrize('content, message', [
  (b'YQ== 0\nnot base64!\n', r'x\.tiktoken:2'), (b'YQ== zero\n', r'x\.tiktoken:1'), (b'YQ== 0\n', 'not byte-level'),
  (b'\xff\xfe\n', r'x\.tiktoken:1')])
def test_bad_rank_files(content, message, tmp_path):
  (tmp_path / 'x.tiktoken').write_bytes(content)
  with pytest.raises(ConfigError, match=message):
    base.make_tokenizer(config.TiktokenFile(str(tmp_path / 'x.tiktoken')))
