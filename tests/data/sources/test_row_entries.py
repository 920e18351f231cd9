"""Entries of rows and messages: what says that it is not learnt is not, and what nothing reads is refused by name."""
import json

import numpy as np
import pytest
import transformers

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data import token_store
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import make_tokenizer
from tests.data.dialogue_files import open_data, train_tokenizer, write
from tests.hf import published_tokenizers as published

SYSTEM = {'role': 'system', 'content': 'Add.'}


def user(text, **entries):
  return {'role': 'user', 'content': text, **entries}


def said(text, **entries):
  return {'role': 'assistant', 'content': text, **entries}


@pytest.fixture(scope='module')
def bpe():
  return train_tokenizer()


def stored(rows, tokenizer, folder, **options):
  source = config.Conversations(write(folder / 'a.jsonl', rows), val_fraction=0.0, **options)
  return token_store.open_store(documents.open_source(source, folder), 'train', tokenizer, folder)


def learnt(store, tokenizer):
  """What is learnt of each document."""
  for start, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
    ids, counts = store.tokens[start:end], store.target_counts[start:end]
    yield tokenizer.decode(np.array(ids)[np.array(counts) == 1])


MARKS = [{'weight': 0}, {'weight': 0.0}, {'train': False}, {'trainable': False}, {'weight': 1, 'train': False}]


@pytest.mark.parametrize('mark', MARKS, ids=str)
@pytest.mark.parametrize('template', ['chatml', 'plain'])
def test_marked_answers_are_read_and_not_learnt(template, mark, bpe, tmp_path):
  """The tokens are those of the conversation without marks; of the targets each answer's own are gone, no others."""
  turns = [SYSTEM, user('q'), said('one'), user('no'), said('two, with words'), user('so'), said('three')]
  end = '<|im_end|>' if template == 'chatml' else '<|endoftext|>'
  space = '' if template == 'chatml' else ' '
  for wrong in ((2,), (4,), (6,), (2, 4), (4, 6)):
    messages = [{**turn, **(mark if i in wrong else {'weight': 1} if turn['role'] == 'assistant' else {})}
                for i, turn in enumerate(turns)]
    store = stored([{'messages': messages}], bpe, tmp_path, template=template)
    ids, _ = chat_templates.render(turns, template, bpe)
    np.testing.assert_array_equal(store.tokens, ids)
    right = [turns[i]['content'] for i in (2, 4, 6) if i not in wrong]
    assert list(learnt(store, bpe)) == [''.join(f'{space}{text}{end}' for text in right)]
    assert store.num_bytes == len(''.join(right))


def test_marks_that_change_nothing(bpe, tmp_path):
  rows = [{'messages': [user('q', weight=0, train=False), said('a', weight=1, train=True)], 'weight': 1, 'train': None},
          {'messages': [user('q'), said('a')], 'train': True, 'tools': None, 'system': None, 'tags': []}]
  assert list(learnt(stored(rows, bpe, tmp_path), bpe)) == ['a<|im_end|>'] * 2


def test_rows_of_which_nothing_is_learnt_are_left_out(bpe, tmp_path):
  rows = [{'messages': [user('q'), said(f'{i}')], **mark} for i, mark in enumerate(MARKS)]
  rows += [{'messages': [user('q'), said('x', weight=0)]}, {'messages': [user('q'), said('kept')]}]
  store = stored(rows, bpe, tmp_path)
  assert store.num_documents == 1 and list(learnt(store, bpe)) == ['kept<|im_end|>']
  data = open_data(tmp_path, bpe, config.Conversations(str(tmp_path / 'a.jsonl'), val_fraction=0.0))
  assert data.num_targets == len(bpe.encode('kept')) + 1


@pytest.mark.parametrize('row, message', [
  ({'messages': [user('q'), said('a', weight=0.5)]}, r'messages\[1\]\.weight is 0\.5: nothing is learnt by halves'),
  ({'messages': [user('q'), said('a', weight=True)]}, r'messages\[1\]\.weight is True: '),
  ({'messages': [user('q'), said('a', train='no')]}, r"messages\[1\]\.train is 'no': give true or false"),
  ({'messages': [user('q', train=True), said('a')]}, r'messages\[0\]\.train is True: only what the assistant says'),
  ({'messages': [user('q'), said('a')], 'weight': 2}, 'weight is 2: nothing is learnt by halves'),
  ({'messages': [user('q', name='Ann'), said('a')]}, r"messages\[0\]\.name = 'Ann': .*ignore=\('name',\)"),
  ({'messages': [user('q'), said('a', mood='merry')]}, r"messages\[1\]\.mood = 'merry': .* not write it"),
  ({'messages': [user('q'), said('a')], 'score': 0}, 'score is not read'),
  ({'messages': [user('q'), said('a')], 'id': 'x1'}, r"id is not read: take it out of .*ignore=\('id',\)"),
])
def test_what_is_not_read_is_refused_by_name(row, message, bpe, tmp_path):
  with pytest.raises(ConfigError, match=rf'a\.jsonl:2.*{message}'):
    stored([{'messages': [user('q'), said('a')]}, row], bpe, tmp_path)


def test_entries_to_ignore_are_named_in_the_source(bpe, tmp_path):
  rows = [{'messages': [user('q', name='Ann'), said('a')], 'id': i, 'meta': {'from': 'web'}} for i in range(3)]
  assert stored(rows, bpe, tmp_path, ignore=('id', 'meta', 'name')).num_documents == 3


PAIR = {'prompt': [user('q')], 'chosen': 'good', 'rejected': 'bad'}
RATED = {'prompt': [user('q')], 'completion': 'good', 'label': True}


@pytest.mark.parametrize('kind, good, row, message', [
  (config.Preferences, PAIR, {**PAIR, 'score_chosen': 5.0}, 'score_chosen is not read'),
  (config.Preferences, PAIR, {**PAIR, 'chosen': [said('good', weight=0)]}, r'chosen\[0\] is not to be learnt'),
  (config.Preferences, PAIR, {**PAIR, 'prompt': [user('q', name='x')]}, r"prompt\[0\]\.name = 'x': "),
  (config.Preferences, PAIR, {**PAIR, 'train': 0}, 'train is 0: give true or false'),
  (config.RatedAnswers, RATED, {**RATED, 'source': 'web'}, 'source is not read'),
  (config.RatedAnswers, RATED, {**RATED, 'completion': [said('good', train=False)]}, r'completion\[0\] is not to be'),
])
def test_answers_that_are_compared_or_rated(kind, good, row, message, bpe, tmp_path):
  path = tmp_path / 'a.jsonl'

  def count(rows, **options):
    path.write_text(''.join(json.dumps(each) + '\n' for each in rows))
    source = documents.open_source(kind(str(path), val_fraction=0.0, **options), tmp_path)
    return token_store.open_store(source, 'train', bpe, tmp_path).num_documents

  with pytest.raises(ConfigError, match=rf'a\.jsonl:2.*{message}'):
    count([good, row])
  history = [user('p'), said('wrong', weight=0), user('q')]  # a prompt is never learnt
  documents_of_one = count([good])
  assert count([good, {**good, 'weight': 0}, {**good, 'prompt': history}]) == 2 * documents_of_one
  assert count([{**good, 'id': 1}], ignore=('id',)) == documents_of_one


# ---------------------------------------------------------------------------------------------- a model's own template
@pytest.mark.parametrize('kind, end', [('gpt2', '<|endoftext|>'), ('llama2', '</s>'), ('llama3', '<|end_of_text|>')])
def test_marks_with_a_models_own_template(kind, end, tmp_path):
  """The ids are those of apply_chat_template, and those of the marked turns are not learnt: with {% generation %} and
  without."""
  published.write_folder(kind, tmp_path / 'model')
  tokenizer = make_tokenizer(config.HuggingFaceFile(str(tmp_path / 'model' / 'tokenizer.json'), end))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'model')
  turns = [user('the cat'), said('sees'), user('a dog'), said('I am well'), user('so'), said('the end')]
  want = theirs.apply_chat_template(turns, return_dict=True)['input_ids']
  whole = list(learnt(stored([{'messages': turns}], tokenizer, tmp_path, template='model'), tokenizer))[0]
  for wrong in ((1,), (3,), (5,), (1, 3)):
    marked = [{**turn, 'weight': 0} if i in wrong else turn for i, turn in enumerate(turns)]
    store = stored([{'messages': marked}], tokenizer, tmp_path, template='model')
    assert store.tokens[:].tolist() == want
    [found] = learnt(store, tokenizer)
    for i in (1, 3, 5):
      assert (turns[i]['content'] in found) == (i not in wrong) and turns[i]['content'] in whole
    assert found.count(end) == whole.count(end) * (3 - len(wrong)) // 3


def test_what_a_models_own_template_does_not_read_is_refused(tmp_path):
  published.write_folder('gpt2', tmp_path / 'model')
  tokenizer = make_tokenizer(config.HuggingFaceFile(str(tmp_path / 'model' / 'tokenizer.json'), '<|endoftext|>'))
  rows = [{'messages': [user('q'), said('a', reasoning_content='hm', mood='merry')]}]
  with pytest.raises(ConfigError, match=r"messages\[1\]\.reasoning_content = 'hm': the model's chat template does not"):
    stored(rows, tokenizer, tmp_path, template='model')
  with pytest.raises(ConfigError, match=r"messages\[1\]\.mood = 'merry': .*ignore=\('mood',\)"):
    stored(rows, tokenizer, tmp_path, template='model', ignore=('reasoning_content',))
  store = stored(rows, tokenizer, tmp_path, template='model', ignore=('reasoning_content', 'mood'))
  assert list(learnt(store, tokenizer)) == ['a<|im_end|>']
