"""Texts with classes from their rows to batches: marks, cuts, packing, and what is refused."""
import json

import numpy as np
import pytest

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data import token_store
from llm_jax.data.packing.labelled import LabelledRows, cut
from llm_jax.data.packing.rows import RowSettings
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers import byte_level

LABELS = ('neg', 'pos', '3')
SPECIAL_TOKENS = ('<s>', '<d>', '<x>')
ROWS = [{'text': f'text number {i} ' + 'and more ' * (i % 5), 'other': f'second {i} ' * (1 + i % 4),
         'label': LABELS[i % 3] if i % 3 < 2 else 3} for i in range(30)]


@pytest.fixture(scope='module')
def bpe():
  return byte_level.train([row['text'] for row in ROWS], 300, 'cl100k', special_tokens=SPECIAL_TOKENS)


def write(folder, rows):
  path = folder / 'rows.jsonl'
  path.write_text(''.join(row if isinstance(row, str) else json.dumps(row) + '\n' for row in rows))
  return str(path)


def opened(tmp_path, tokenizer, rows=ROWS, split='train', **options):
  source = config.LabelledJsonl(write(tmp_path, rows), LABELS, **{'val_fraction': 0.0, **options})
  return token_store.open_store(documents.open_source(source, tmp_path / 'cache'), split, tokenizer, tmp_path / 'cache')


def texts_of(row):
  """(ids, label) of every text of a row, by its segments."""
  text, found = row['text'], []
  for segment in range(1, text['segment_ids'].max() + 1):
    mine = text['segment_ids'] == segment
    [label] = [i for i in row['labels'][mine] if i >= 0]
    found.append((text['tokens'][mine].tolist(), int(label)))
  return found


def test_texts_with_their_marks_and_classes(tmp_path, bpe):
  start, _, extract = (bpe.special_ids[mark] for mark in SPECIAL_TOKENS)
  rows = LabelledRows(opened(tmp_path, bpe, special_tokens=SPECIAL_TOKENS), RowSettings(bpe, 64, seed=0))
  got = sorted(each for i in range(len(rows)) for each in texts_of(rows[i]))
  want = [([start, *bpe.encode(row['text']), extract], i % 3) for i, row in enumerate(ROWS)]
  assert got == sorted(want) and len(rows) < len(ROWS) / 2 and rows.num_cut == 0
  assert sorted(rows.labels) == sorted(label for _, label in want)


def test_pairs_have_a_delimiter(tmp_path, bpe):
  start, delimiter, extract = (bpe.special_ids[mark] for mark in SPECIAL_TOKENS)
  rows = LabelledRows(opened(tmp_path, bpe, pair='other', special_tokens=SPECIAL_TOKENS),
                      RowSettings(bpe, 64, seed=None))
  got = sorted(each for i in range(len(rows)) for each in texts_of(rows[i]))
  assert got == sorted(([start, *bpe.encode(row['text']), delimiter, *bpe.encode(row['other']), extract], i % 3)
                       for i, row in enumerate(ROWS))


def test_a_row_is_what_attention_and_the_language_model_need(tmp_path, bpe):
  rows = LabelledRows(opened(tmp_path, bpe), RowSettings(bpe, 48, seed=0))
  for i in range(len(rows)):
    text, labels, at = rows[i]['text'], rows[i]['labels'], 0
    for ids, label in texts_of(rows[i]):
      n, part = len(ids), slice(at, at + len(ids))
      assert ids[0] == ids[-1] == bpe.eot  # the marks that are not named
      assert labels[at + n - 1] == label and (labels[at:at + n - 1] == -1).all()
      np.testing.assert_array_equal(text['targets'][part], [*ids[1:], bpe.eot])
      np.testing.assert_array_equal(text['positions'][part], np.arange(n))
      np.testing.assert_allclose(text['weights'][part], [1 / (n - 1)] * (n - 1) + [0])
      at += n
    assert (labels[at:] == -1).all() and not text['weights'][at:].any() and not text['segment_ids'][at:].any()


@pytest.mark.parametrize(('sizes', 'length', 'kept'), (
  ((7,), 6, (4,)), ((9, 2), 10, (5, 2)), ((2, 9), 10, (2, 5)), ((9, 9), 10, (4, 3)), ((9, 8), 5, (1, 1)),
  ((3, 3), 9, (3, 3))))
def test_cut(sizes, length, kept):
  """The longer text loses its end, then both; the marks stay."""
  parts = [[100 * k + i for i in range(size)] for k, size in enumerate(sizes, 1)]
  ids = np.array([0, *parts[0], *([-1, *parts[1]] if len(sizes) == 2 else []), -2])
  got = cut(ids, ids <= 0, length)
  want = [part[:size] for part, size in zip(parts, kept, strict=True)]
  assert got.tolist() == [0, *want[0], *([-1, *want[1]] if len(sizes) == 2 else []), -2]
  assert len(got) <= length


def test_what_is_too_long_is_cut_and_counted(tmp_path, bpe):
  rows = LabelledRows(opened(tmp_path, bpe, pair='other', special_tokens=SPECIAL_TOKENS),
                      RowSettings(bpe, 16, seed=None))
  lengths = [len(bpe.encode(row['text'])) + len(bpe.encode(row['other'])) + 3 for row in ROWS]
  assert rows.num_cut == sum(length > 16 for length in lengths) > 0
  got = [ids for i in range(len(rows)) for ids, _ in texts_of(rows[i])]
  assert sorted(map(len, got)) == sorted(min(length, 16) for length in lengths)
  assert rows.num_targets == sum(len(ids) - 1 for ids in got)
  with pytest.raises(ConfigError, match='use 5 or more'):
    LabelledRows(rows.store, RowSettings(bpe, 4, seed=None))


@pytest.mark.parametrize(('row', 'reason'), (
  ({'text': 'a', 'label': 'maybe'}, "label 'maybe' is unknown: labels holds ('neg', 'pos', '3')"),
  ({'text': 'a', 'label': True}, 'label True is unknown'),
  ({'text': 'a'}, "no field 'label'"),
  ({'label': 'pos'}, "no field 'text'"),
  ({'text': ' \n', 'label': 'pos'}, "field 'text' is empty"),
  ({'text': 7, 'label': 'pos'}, "field 'text' is not text"),
  ({'text': '\ud800', 'label': 'pos'}, 'not Unicode'),
  ('{"text": "a",\n', 'not JSON'),
))
def test_bad_rows_are_named(tmp_path, bpe, row, reason):
  with pytest.raises(ConfigError) as error:
    opened(tmp_path, bpe, [*ROWS[:4], row])
  assert f'{tmp_path}/rows.jsonl:5' in str(error.value) and reason in str(error.value)


def test_marks_that_the_tokenizer_lacks(tmp_path, bpe):
  with pytest.raises(ConfigError, match='special_tokens'):
    opened(tmp_path, bpe, special_tokens=('<s>', '<d>', '<e>'))


def test_a_class_without_a_text(tmp_path, bpe):
  rows = LabelledRows(opened(tmp_path, bpe, [row for row in ROWS if row['label'] != 'pos']),
                      RowSettings(bpe, 64, seed=0))
  with pytest.raises(ConfigError) as error:
    LabelledRows.check([rows], config.LabelledJsonl('', LABELS))
  assert error.value.field == 'labels' and error.value.value == ('pos',)


def test_labels_of_a_mixture():
  one, other = (config.Weighted(config.LabelledJsonl('x', labels)) for labels in (LABELS, LABELS[:2]))
  assert config.Data((one, one)).labels == LABELS
  for wrong in ((one, other), (one, config.Weighted(config.Text('x')))):
    with pytest.raises(ConfigError, match='texts with classes'):
      config.Data(wrong)
  for labels in (('a',), (), ('a', 'a')):
    with pytest.raises(ConfigError, match='labels'):
      config.LabelledJsonl('x', labels)


def test_functions_of_the_standard_library(tmp_path):
  source = config.StandardLibraryFunctions(('json', 'wsgiref'), val_fraction=0.3)
  splits = {split: list(documents.open_source(source, tmp_path).documents(split)) for split in ('train', 'validation')}
  files = {split: {name for name, _ in found} for split, found in splits.items()}
  assert not files['train'] & files['validation'] and all(files.values())
  assert {name.split('/')[0] for name in files['train']} == {'json', 'wsgiref'}
  found = [example for part in splits.values() for _, example in part]
  assert len({example.text for example in found}) == len(found) > 30
  for name, example in splits['train']:
    assert source.labels[example.label] == name.split('/')[0]
    assert example.text.startswith(('def ', 'async def ')) and len(example.texts) == 1
