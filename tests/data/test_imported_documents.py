"""Documents of a tokenizer that puts something of its own around a text, from a file to rows."""
import json

import numpy as np
import pytest
import transformers

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data import dataset
from llm_jax.data.tokenizers.base import check_vocabulary, make_tokenizer
from tests.hf import published_tokenizers as published

TEXTS = [*published.TEXTS, 'a </s> b <s> c']


@pytest.fixture
def folder(tmp_path):
  published.write_folder('llama2', tmp_path)
  (tmp_path / 'text.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in TEXTS))
  return tmp_path


def open_data(folder, tokenizer, **options):
  source = config.Jsonl(str(folder / 'text.jsonl'), val_fraction=0.0)
  return dataset.open_dataset(config.Data((config.Weighted(source),), 'best_fit'), tokenizer, seq_len=64, seed=0,
                              split='train', cache_dir=folder / 'cache', **options)


def test_documents_begin_and_end_as_those_of_the_model(folder):
  """Llama 2's kind behind <s> and before </s>; GPT-2's behind nothing, so that its first token is no target."""
  ours = make_tokenizer(HuggingFaceFile(str(folder / 'tokenizer.json'), '</s>'))
  data = open_data(folder, ours)
  for ids, text in zip(data.token_documents(), TEXTS, strict=True):
    assert ids.tolist() == [1, *ours.encode(text), 2]
  assert data.num_bytes == sum(len(text.encode()) for text in TEXTS)

  published.write_folder('gpt2', folder)
  ours = make_tokenizer(HuggingFaceFile(str(folder / 'tokenizer.json'), '<|endoftext|>'))
  data = open_data(folder, ours)
  first = 0
  for ids, text in zip(data.token_documents(), TEXTS, strict=True):
    assert ids.tolist() == [*ours.encode(text), ours.eot]
    first += len(ours.decode_bytes(ids[:1]))
  assert data.num_bytes == sum(len(text.encode()) for text in TEXTS) - first
  targets = sum(int(row['weights'].sum()) for row in data.rows)
  assert targets == data.num_targets == sum(len(ours.encode(text)) for text in TEXTS)


TOOLS = [{'type': 'function', 'function': {'name': 'add', 'parameters': {'a': 'int'}}}]
TEMPLATE = ("{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
            "{% for m in messages %}{{ '[' + m.role + ']' }}"
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}{% endfor %}")


@pytest.mark.parametrize('as_text', (False, True))
def test_tools_and_system_of_rows_reach_the_model_s_template(as_text, folder):
  """Of conversations, of pairs and of rated answers."""
  published.write_folder('llama2', folder, chat_template=TEMPLATE)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ours = make_tokenizer(HuggingFaceFile(str(folder / 'tokenizer.json'), '</s>'))
  extra = {'system': 'Be brief.', 'tools': json.dumps(TOOLS) if as_text else TOOLS}
  user, said = {'role': 'user', 'content': 'one?'}, {'role': 'assistant', 'content': 'two'}
  rows = {
    config.Conversations: [{**extra, 'messages': [user, said]}],
    config.Preferences: [{**extra, 'prompt': 'one?', 'chosen': 'two', 'rejected': 'three'}],
    config.RatedAnswers: [{**extra, 'prompt': 'one?', 'completion': 'two', 'label': True}] * 2,
  }
  messages = [{'role': 'system', 'content': 'Be brief.'}, user, said]
  expected = theirs.apply_chat_template(messages, tools=TOOLS, return_dict=True)['input_ids']
  for kind, lines in rows.items():
    path = folder / f'{kind.__name__}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in lines))
    source = kind(str(path), 'model', val_fraction=0.0)
    data = dataset.open_dataset(config.Data((config.Weighted(source),), 'best_fit'), ours, seq_len=200, seed=0,
                                split='train', cache_dir=folder / 'cache')
    first = next(data.token_documents()).tolist()
    assert first[:len(expected)] == expected and len(first) <= len(expected) + 1  # behind it stands a rating


def test_a_token_without_a_row_is_refused_where_a_text_uses_it(folder):
  """A tokenizer with more tokens than the embedding has rows trains otherwise."""
  ours = make_tokenizer(HuggingFaceFile(str(folder / 'tokenizer.json'), '</s>'))
  used = max(max(ours.encode(text)) for text in TEXTS)
  check_vocabulary(ours, used + 1)
  whole = open_data(folder, ours, vocab_size=ours.vocab_size)
  few = open_data(folder, ours, vocab_size=used + 1)
  for a, b in zip(whole.token_documents(), few.token_documents(), strict=True):
    np.testing.assert_array_equal(a, b)
  with pytest.raises(ConfigError, match=rf'text = .*uses the token .*, id {used}, and the embedding has {used} row'):
    open_data(folder, ours, vocab_size=used)
  with pytest.raises(ConfigError, match=r'model\.vocab_size = 2: smaller'):
    check_vocabulary(ours, 2)
