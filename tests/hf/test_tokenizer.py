"""Tokenizers of ours as `AutoTokenizer` reads them: the same ids for every text."""
import json
import random

import numpy as np
import pytest
import transformers

from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.data.tokenizers.byte_level import ByteTokenizer, train
from llm_jax.hf.tokenizer import oniguruma, tokenizer_files

TEXT = ("It's 1,234,567 o'clock;\n\n\tdef f(x):\r\n    return x ** 2  # naïve café — 東京 \U0001f600\n" * 40
        + 'the quick brown fox; THE QUICK BROWN FOX, we\'LL see 12345 67  \n   \n\nend   ')


def load(tokenizer, folder):
  for name, content in tokenizer_files(tokenizer).items():
    (folder / name).write_bytes(content)
  return transformers.AutoTokenizer.from_pretrained(folder)


def texts():
  """Pieces of the text, and characters at random, blanks and digits above all."""
  rng = random.Random(0)
  alphabet = [*' \n\t\r\'"aZ09.,;éß東\U0001f600\u00a0\u2028²', '  ', '\n\n', "'s", "'LL", '123']
  yield from ('', ' ', '\n', TEXT)
  for _ in range(400):
    start = rng.randrange(len(TEXT))
    yield TEXT[start:start + rng.randrange(60)]
    yield ''.join(rng.choice(alphabet) for _ in range(rng.randrange(30)))


@pytest.mark.parametrize('pattern', ('gpt2', 'cl100k', 'llama3', 'bytes'))
def test_ids_are_the_same(pattern, tmp_path):
  ours = ByteTokenizer() if pattern == 'bytes' else train([TEXT], 400, pattern)
  theirs = load(ours, tmp_path)
  assert len(theirs) == ours.vocab_size and theirs.eos_token_id == theirs.bos_token_id == ours.eot
  for text in texts():
    ids = list(ours.encode(text))
    assert theirs(text, add_special_tokens=False)['input_ids'] == ids, repr(text[:100])
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
  assert theirs(text + '<|endoftext|>', add_special_tokens=False)['input_ids'][-1] == ours.eot


@pytest.mark.parametrize('template', ('plain', 'chatml', 'llama2', 'llama3'))
def test_a_chat_template_gives_the_ids_that_are_learnt(template, tmp_path):
  special_tokens = ('<|im_start|>', '<|im_end|>', '<s>', '</s>', '<|begin_of_text|>', '<|start_header_id|>',
             '<|end_header_id|>', '<|eot_id|>')
  ours = train([TEXT], 400, 'cl100k', special_tokens=special_tokens)
  for name, content in tokenizer_files(ours, template).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  rng = random.Random(1)
  say = lambda: rng.choice(('two\n\nlines ', ' 12,345', "it's", '\tx = [1]', 'naïve — 東京'))
  for rounds in range(1, 5):
    for system in (False, True):
      messages = [{'role': 'system', 'content': say()}] * system + [
        {'role': role, 'content': say()} for _ in range(rounds) for role in ('user', 'assistant')]
      ids = lambda messages, **options: theirs.apply_chat_template(messages, return_dict=True, **options)['input_ids']
      assert ids(messages) == chat_templates.render(messages, template, ours)[0].tolist()
      prompt = chat_templates.prompt_ids(messages[:-1], template, ours).tolist()
      assert ids(messages[:-1], add_generation_prompt=True) == prompt
  assert theirs.eos_token_id == chat_templates.end_of_turn(template, ours)[0]


def test_a_hugging_face_file_stays_as_it_is(tmp_path):
  file = tmp_path / 'tokenizer.json'
  file.write_bytes(tokenizer_files(train([TEXT], 300, 'gpt2'))['tokenizer.json'])
  tokenizer = make_tokenizer(HuggingFaceFile(str(file)))
  files = tokenizer_files(tokenizer)
  assert files['tokenizer.json'] == file.read_bytes()
  assert json.loads(files['tokenizer_config.json'])['eos_token'] == '<|endoftext|>'
  np.testing.assert_array_equal(tokenizer.encode('the 12'), train([TEXT], 300, 'gpt2').encode('the 12'))


def test_dialects():
  pattern = r'\p{N}{1,3}+| ?\p{L}++|\p{L}+|\s++$|[a$++]*+|\++\$|a?+'
  assert oniguruma(pattern) == r'\p{N}{1,3}| ?\p{L}+|\p{L}+|\s+\z|[a$++]*|\++\$|a?'
