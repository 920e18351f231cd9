"""A pattern that goes back and forth without end is one line, whichever library gives up on it."""
import pathlib
import subprocess
import sys

import pytest
import tokenizers

from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers import byte_level
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.data.tokenizers.panics import refusing_panics

ROOT = pathlib.Path(__file__).parents[3]
EXPLODES = r'(?:(a+)+)(?=c)|[\s\S]'
TEXT = 'a' * 5_000


def exploding_file() -> bytes:
  model = tokenizers.models.BPE({'a': 0, '<end>': 1}, [])
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(EXPLODES), 'isolated')
  tokenizer.add_special_tokens(['<end>'])
  return tokenizer.to_str().encode()


def test_of_a_tokenizer_that_is_trained():
  with pytest.raises(ConfigError, match=r'^tokenizer.pattern = .* takes too long on this text .* as in \(a\+\)\+$'):
    byte_level.train([TEXT], 300, EXPLODES)


@pytest.mark.parametrize('call', ['encode', 'encode_batch'])
def test_of_a_file(call):
  tokenizer = HuggingFaceTokenizer(exploding_file(), '<end>')
  assert tokenizer.encode('aa') == [0, 0]
  with pytest.raises(ConfigError, match='^tokenizer.path = .*tokenizer.json.* takes too long on this text'):
    getattr(tokenizer, call)(TEXT if call == 'encode' else [TEXT])


def test_only_panics_are_meant():
  for error in (KeyboardInterrupt, SystemExit, ValueError):
    with pytest.raises(error), refusing_panics('field', 1):
      raise error


def test_no_stack_is_printed():
  """Nor where the environment asks for one: three lines of the library, and ours."""
  code = f"""
from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers import byte_level
try:
  byte_level.train(['a' * 5_000], 300, {EXPLODES!r})
except ConfigError as error:
  print(error)
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                        env={'RUST_BACKTRACE': '1', 'PYTHONPATH': str(ROOT), 'PATH': ''})
  assert done.stdout.startswith('tokenizer.pattern = ') and len(done.stderr.strip().splitlines()) <= 3
