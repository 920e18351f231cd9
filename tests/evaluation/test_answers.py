"""Answers in form: counted on cases made by hand, and on a model whose every answer is known."""
import jax
import numpy as np
import pytest

from llm_jax.config import experiment as config
from llm_jax.config import presets
from llm_jax.data import dataset
from llm_jax.data.tokenizers import byte_level
from llm_jax.evaluation.answers import check_answers, in_form
from llm_jax.modules.transformer import Transformer
from tests.data.dialogue_files import write

BYTES = byte_level.ByteTokenizer()
EOT = BYTES.eot


def ids(text: str, end: bool = True) -> list[int]:
  return [*BYTES.encode(text), *([EOT] if end else [])]


GOOD, CODE, WORDS = '```python\n    return 1\n```', ids('```python\n    x = 2\n```'), ids('Yes.')


@pytest.mark.parametrize('answers, given, expected', [
  ([ids(GOOD)], [CODE], {'ended': 1.0, 'parses': 1.0}),
  ([ids(GOOD, end=False)], [CODE], {'ended': 0.0, 'parses': 0.0}),
  ([ids('```python\n    return (\n```')], [CODE], {'ended': 1.0, 'parses': 0.0}),
  ([ids('return 1')], [CODE], {'ended': 1.0, 'parses': 0.0}),
  ([ids(GOOD)], [WORDS], {'ended': 1.0}),
  ([[EOT], []], [CODE, WORDS], {'ended': 0.5, 'parses': 0.0}),
  ([ids(GOOD), ids('No'), ids('No', end=False), ids('```python\n```')], [CODE, WORDS, WORDS, CODE],
   {'ended': 0.75, 'parses': 0.5}),
])
def test_what_is_in_form(answers, given, expected):
  assert in_form(answers, given, [EOT], BYTES) == expected


def test_a_model_s_answers(tmp_path):
  """A bigram model: attention and feed-forward write zeros, and the head picks what follows a token. It answers any
  question with a space and the end of the turn, or, told to, without an end."""
  follows = {ord(':'): ord(' '), ord(' '): EOT}
  answer = {'role': 'assistant', 'content': '```python\n0\n```'}
  rows = [{'messages': [{'role': 'user', 'content': 'a' * (1 + i)}, answer]} for i in range(40)]
  source = config.Conversations(write(tmp_path / 'chats.jsonl', rows), 'plain', val_fraction=0.4)
  validation = dataset.open_dataset(
    config.Data((config.Weighted(source),)), BYTES, seq_len=64, seed=0, split='validation', cache_dir=tmp_path
  )
  model = presets.llama(d_model=260, num_layers=1, num_heads=2, d_ff=8, vocab_size=257, tied_head=False)
  params = Transformer(model).init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']

  def known(path, leaf):
    name = '/'.join(str(key.key) for key in path)
    if name == 'embedding/w':
      return np.eye(257, 260, dtype=np.float32)
    if name == 'head/w':
      head_VD = np.zeros(leaf.shape, np.float32)
      for token in range(257):
        head_VD[follows.get(token, ord('b')), token] = 1
      return head_VD
    return np.ones_like(leaf) if 'scale' in name else np.zeros_like(leaf)

  made = lambda: jax.tree_util.tree_map_with_path(known, params)
  prompts = [prompt for prompt, _ in validation.questions(64, 32)]
  assert 1 < len(prompts) < len(validation.questions(64, 64))
  assert check_answers(model, made(), BYTES, validation) == {'ended': 1.0, 'parses': 0.0}
  follows[ord(' ')] = ord('b')
  assert check_answers(model, made(), BYTES, validation) == {'ended': 0.0, 'parses': 0.0}
