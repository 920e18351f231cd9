"""Every format gives its documents, every bad row is named, and the splits are disjoint."""
import codecs
import gzip
import itertools
import json
import os
import pathlib
import random
import textwrap

import numpy as np
import pytest
import zstandard

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data import fingerprints
from llm_jax.data.sources import documents, formats

TEXTS = [f'document {i}: naïve "text"\nwith lines\n' * (1 + i % 3) for i in range(40)]


def write_jsonl(path: pathlib.Path, texts=TEXTS, field='text') -> str:
  content = ''.join(json.dumps({'id': i, field: text}) + '\n' for i, text in enumerate(texts)).encode()
  pack = {'.gz': gzip.compress, '.zst': zstandard.compress}.get(path.suffix, bytes)
  path.write_bytes(pack(content))
  return str(path)


def write_parquet(path: pathlib.Path, texts=TEXTS) -> str:
  import pyarrow
  import pyarrow.parquet
  pyarrow.parquet.write_table(pyarrow.table({'id': list(range(len(texts))), 'text': texts}), path, row_group_size=7)
  return str(path)


def write_array_record(path: pathlib.Path, texts=TEXTS) -> str:
  from array_record.python.array_record_module import ArrayRecordWriter
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for text in texts:
    writer.write(text if isinstance(text, bytes) else text.encode())
  writer.close()
  return str(path)


def write_folder(path: pathlib.Path, texts=TEXTS) -> str:
  for i, text in enumerate(texts):
    (path / f'{i % 3}').mkdir(parents=True, exist_ok=True)
    (path / f'{i % 3}' / f'{i}.txt').write_text(text)
  (path / 'notes.md').write_text('not a text file')
  return str(path)


def opened(source: config.Source, tmp_path: pathlib.Path) -> documents.DocumentSource:
  return documents.open_source(source, tmp_path / 'cache')


FORMATS = {
  'txt': lambda p: config.Text(write_folder(p / 'texts'), 0.3),
  'txt_glob': lambda p: config.Text(write_folder(p / 'texts') + '/*/*.txt', 0.3),
  'jsonl': lambda p: config.Jsonl(write_jsonl(p / 'a.jsonl'), val_fraction=0.3),
  'jsonl_gz': lambda p: config.Jsonl(write_jsonl(p / 'a.jsonl.gz', field='body'), 'body', val_fraction=0.3),
  'jsonl_zst': lambda p: config.Jsonl(write_jsonl(p / 'a.jsonl.zst'), val_fraction=0.3),
  'parquet': lambda p: config.Parquet(write_parquet(p / 'a.parquet'), val_fraction=0.3),
  'array_record': lambda p: config.ArrayRecord(write_array_record(p / 'a.array_record'), 0.3),
}


@pytest.mark.parametrize('name', FORMATS)
def test_every_document_is_in_one_split(name, tmp_path):
  source = opened(FORMATS[name](tmp_path), tmp_path)
  train, validation = dict(source.documents('train')), dict(source.documents('validation'))
  assert not train.keys() & validation.keys() and 4 < len(validation) < 20
  assert sorted([*train.values(), *validation.values()]) == sorted(TEXTS)
  assert list(source.documents('train')) == list(train.items())  # again the same


def test_token_file(tmp_path):
  written = [list(range(i, i + 3 + i % 4)) for i in range(1, 30)]
  separated = [[*document, 0] for document in written]
  flat = np.array(list(itertools.chain(*separated)), np.uint16)
  flat.tofile(tmp_path / 'a.bin')
  source = opened(config.TokenFile(str(tmp_path / 'a.bin'), separator=0, val_fraction=0.3), tmp_path)
  both = [*source.documents('train'), *source.documents('validation')]
  assert sorted(ids.tolist() for _, ids in both) == sorted(written)
  one = opened(config.TokenFile(str(tmp_path / 'a.bin'), val_fraction=0.25), tmp_path)
  [(_, train)], [(_, validation)] = one.documents('train'), one.documents('validation')
  assert np.array_equal(np.concatenate([train, validation]), flat) and len(validation) == round(len(flat) / 4)
  (tmp_path / 'odd.bin').write_bytes(b'123')
  with pytest.raises(ConfigError, match='multiple of 2'):
    list(opened(config.TokenFile(str(tmp_path / 'odd.bin')), tmp_path).documents('train'))


def test_a_single_document_splits_off_its_tail(tmp_path):
  text = ''.join(random.Random(0).choices('abcdefg \n', k=1000))
  (tmp_path / 'one.txt').write_text(text)
  source = opened(config.Text(str(tmp_path / 'one.txt'), 0.1), tmp_path)
  [(_, train)], [(_, validation)] = source.documents('train'), source.documents('validation')
  assert train + validation == text and len(validation) == 100
  row = opened(config.Jsonl(write_jsonl(tmp_path / 'a.jsonl', [text]), val_fraction=0.5), tmp_path)
  assert [t for _, t in row.documents('train')] == [text[:500]]


def test_held_out_text_that_another_source_trains_on_is_known(tmp_path):
  """It is, exactly where documents that one holds out are training text of the other."""
  folder = write_folder(tmp_path / 'texts', [f'document {i}' for i in range(200)])
  line = write_jsonl(tmp_path / 'a.jsonl')
  (tmp_path / 'link.jsonl').symlink_to(line)
  named = [config.Text(folder, 0.3), config.Text(folder, 0.6), config.Text(f'{folder}/*/*.txt', 0.3),
           config.Text(f'{tmp_path}/*/*/*.txt', 0.3), config.Text(f'{folder}/0', 0.3),
           config.Jsonl(line, val_fraction=0.3), config.Jsonl(line, val_fraction=0.0),
           config.Jsonl(str(tmp_path / 'link.jsonl'), val_fraction=0.5)]
  made = [opened(source, tmp_path) for source in named]
  count = 0
  for mine in made:
    for other in made:
      shared = contents(mine, 'train') & contents(other, 'validation')
      assert mine.trains_on(other) == bool(shared)
      count += bool(shared)
  assert 10 < count < 30
  # One document holds out its tail, a folder holds out documents by their hash.
  one_file = opened(config.Text(f'{folder}/0/0.txt', 0.3), tmp_path)
  its_folder = opened(config.Text(f'{folder}/0', 0.3), tmp_path)
  assert one_file.trains_on(its_folder) and its_folder.trains_on(one_file)
  assert not one_file.trains_on(one_file) and not its_folder.trains_on(its_folder)


def contents(source: documents.DocumentSource, split: documents.Split) -> set[tuple[str, str]]:
  return {(source.kind, text) for _, text in source.documents(split)}


def test_needles_and_ids_of_one_document_hold_out_its_tail(tmp_path):
  (tmp_path / 'ids').mkdir()
  for name in ('text.txt', 'ids/a.bin', 'ids/b.bin'):
    (tmp_path / name).write_text('hello world. ' * 100)
  text = config.Text(str(tmp_path / 'text.txt'), 0.3)
  needles, text = opened(config.NeedleTexts(text), tmp_path), opened(text, tmp_path)
  assert list(needles.documents('validation')) == list(text.documents('validation'))
  assert not needles.trains_on(text) and not text.trains_on(needles)

  def ids(name: str, separator: int | None) -> documents.DocumentSource:
    return opened(config.TokenFile(str(tmp_path / name), separator=separator, val_fraction=0.3), tmp_path)

  one = ids('ids/a.bin', separator=None)
  both = ids('ids', separator=None)
  assert one.trains_on(both) and not one.trains_on(one) and not both.trains_on(both)
  one = ids('ids/a.bin', separator=104)
  both = ids('ids', separator=104)
  assert not one.trains_on(both) and not both.trains_on(one)


@pytest.mark.parametrize('pattern, new', [('', '0/00.txt'), ('/0/*.txt', '0/00.txt'), ('/[0-8]/1*.txt', '2/1.txt'),
                                          ('/**/*.txt', 'new/0.txt')])
def test_a_new_file_moves_no_other(tmp_path, pattern, new):
  folder = write_folder(tmp_path / 'texts')
  for name in '12' if pattern == '/[0-8]/1*.txt' else '':  # so that all files found so far are in one folder
    (tmp_path / 'texts' / name).rename(tmp_path / f'moved {name}')
  source = config.Text(folder + pattern, 0.3)
  before = dict(opened(source, tmp_path).documents('validation'))
  (tmp_path / 'texts' / new).parent.mkdir(exist_ok=True)
  (tmp_path / 'texts' / new).write_text('new')
  after = dict(opened(source, tmp_path).documents('validation'))
  assert before and before.items() <= after.items()


def test_a_byte_order_mark_is_no_text(tmp_path):
  """Of Windows editors: at the beginning of a file, of JSON lines too, and nowhere else."""
  mark = codecs.BOM_UTF8
  (tmp_path / 'a.txt').write_bytes(mark + b'hello\r\n')
  (tmp_path / 'b.txt').write_bytes(b'hello\r\n')
  texts = {name: opened(config.Text(str(tmp_path / f'{name}.txt'), val_fraction=0.0), tmp_path) for name in 'ab'}
  assert [text for source in texts.values() for _, text in source.documents('train')] == ['hello\r\n'] * 2
  for name, open_file in (('c.jsonl', open), ('d.jsonl.gz', gzip.open)):
    with open_file(tmp_path / name, 'wb') as file:
      file.write(mark + b'{"text": "one"}\n{"text": "\xef\xbb\xbftwo"}\n')
    source = opened(config.Jsonl(str(tmp_path / name), val_fraction=0.0), tmp_path)
    assert [text for _, text in source.documents('train')] == ['one', '\N{ZERO WIDTH NO-BREAK SPACE}two']


BAD_LINES = {
  'invalid UTF-8': (b'{"text": "\xff"}', 'not UTF-8'), 'not JSON': (b'{"text": ', 'not JSON'),
  'NUL': (b'{"text": "a\x00b"}', 'not JSON'), 'only NULs': (b'\x00' * 50, 'not JSON'),
  'missing field': (b'{"body": "a"}', "no field 'text'.*body"), 'number': (b'{"text": 3}', "'text' is not text: a int"),
  'null': (b'{"text": null}', 'is not text: a NoneType'), 'list': (b'["text"]', 'not a JSON object: a list'),
  'half a pair': (b'{"text": "\\ud800"}', 'not Unicode'), 'deep': (b'[' * 200_000, 'not JSON'),
}


@pytest.mark.parametrize('name', BAD_LINES)
def test_bad_line_is_named_or_counted(name, tmp_path):
  line, message = BAD_LINES[name]
  good = [b'{"text": "good %d"}' % i for i in range(6)]
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\n'.join([*good[:3], b'', line, *good[3:]]))  # the bad line is line 5
  source = opened(config.Jsonl(str(path), val_fraction=0.0), tmp_path)
  with pytest.raises(ConfigError, match=message) as caught:
    list(source.documents('train'))
  assert caught.value.value == f'{path}:5' and '\n' not in str(caught.value)
  skipping = opened(config.Jsonl(str(path), val_fraction=0.0, on_error='skip'), tmp_path)
  assert [text for _, text in skipping.documents('train')] == [f'good {i}' for i in range(6)]
  assert sum(skipping.skipped.values()) == 1
  assert skipping.fingerprint != source.fingerprint


def test_row_longer_than_the_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(formats, 'LONGEST_ROW', 1000)
  monkeypatch.setattr(formats, 'CHUNK', 64)
  path = write_jsonl(tmp_path / 'a.jsonl', ['first', 'x' * 5000, 'last'])
  with pytest.raises(ConfigError, match=r'a\.jsonl:2.*row too long'):
    list(opened(config.Jsonl(path, val_fraction=0.0), tmp_path).documents('train'))
  skipping = opened(config.Jsonl(path, val_fraction=0.0, on_error='skip'), tmp_path)
  assert [text for _, text in skipping.documents('train')] == ['first', 'last']
  assert skipping.skipped == {'row too long': 1}


@pytest.mark.parametrize('over', [-1, 0, 1, 2])
def test_a_row_about_as_long_as_the_limit_takes_no_other_with_it(tmp_path, monkeypatch, over):
  """The limit counts the line's end."""
  path = tmp_path / 'a.jsonl'
  row = json.dumps({'text': 'x' * 100})
  path.write_text(f'{row}\n{json.dumps({"text": "next"})}\n')
  monkeypatch.setattr(formats, 'LONGEST_ROW', len(row) - over)
  skipping = opened(config.Jsonl(str(path), val_fraction=0.0, on_error='skip'), tmp_path)
  assert [text for _, text in skipping.documents('train')] == ['x' * 100] * (over < 0) + ['next']
  assert skipping.skipped.total() == (over >= 0)


def test_empty_documents_and_blank_lines_are_left_out(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\n\n{"text": ""}\n{"text": "a"}\n  \n{"text": "b"}')
  assert [t for _, t in opened(config.Jsonl(str(path), val_fraction=0.0), tmp_path).documents('train')] == ['a', 'b']


def test_damaged_files(tmp_path):
  cut = pathlib.Path(write_jsonl(tmp_path / 'a.jsonl.gz'))
  cut.write_bytes(cut.read_bytes()[:-20])
  (tmp_path / 'a.parquet').write_bytes(b'PAR1 not really')
  (tmp_path / 'a.array_record').write_bytes(b'not really')
  (tmp_path / 'a.txt').write_bytes(b'fine\nfine\nbroken \xff\n')
  for source, message in [
      (config.Jsonl(str(cut)), r'a\.jsonl\.gz:\d+.*damaged gzip'),
      (config.Parquet(str(tmp_path / 'a.parquet')), 'not a Parquet file'),
      (config.ArrayRecord(str(tmp_path / 'a.array_record')), 'not an ArrayRecord file'),
      (config.Text(str(tmp_path / 'a.txt')), r'a\.txt:3.*not UTF-8')]:
    with pytest.raises(ConfigError, match=message):
      list(opened(source, tmp_path).documents('train'))


def test_wrong_columns_and_records(tmp_path):
  path = write_parquet(tmp_path / 'a.parquet')
  for field, message in [('body', "no column 'body': found"), ('id', "column 'id' is not text: it is int64")]:
    with pytest.raises(ConfigError, match=message):
      list(opened(config.Parquet(path, field), tmp_path).documents('train'))
  with pytest.raises(ConfigError, match=r'b\.parquet:2.*null'):
    path = write_parquet(tmp_path / 'b.parquet', ['a', 'b', None])
    list(opened(config.Parquet(path, val_fraction=0.0), tmp_path).documents('train'))
  path = write_array_record(tmp_path / 'a.array_record', ['a', b'\xff'])
  with pytest.raises(ConfigError, match=r'array_record:1.*not UTF-8'):
    list(opened(config.ArrayRecord(path, val_fraction=0.0), tmp_path).documents('train'))


def test_nothing_there(tmp_path):
  (tmp_path / 'empty.jsonl').touch()
  (tmp_path / 'folder').mkdir()
  for source, message in [
      (config.Text(str(tmp_path / 'none.txt')), 'no such file'),
      (config.Text(str(tmp_path / 'folder')), 'holds no file'),
      (config.Jsonl(str(tmp_path / 'empty.jsonl')), 'every file is empty'),
      (config.Jsonl(str(tmp_path / '*.json')), 'no such file')]:
    with pytest.raises(ConfigError, match=message):
      opened(source, tmp_path)


@pytest.mark.parametrize('val_fraction', [1.0, 1.5, -0.1, float('nan')])
def test_a_fraction_is_held_out(val_fraction):
  with pytest.raises(ConfigError, match='source.val_fraction = .*fraction'):
    config.Weighted(config.Text('a', val_fraction=val_fraction))


def test_fingerprint_sees_edits_renames_and_losses(tmp_path):
  folder = tmp_path / 'shards'
  folder.mkdir()
  for name in 'abc':
    write_jsonl(folder / f'{name}.jsonl', [f'{name}{i}' for i in range(5)])

  def find():
    return opened(config.Jsonl(str(folder)), tmp_path).fingerprint

  seen = [find()]
  assert find() == seen[0]
  b = (folder / 'b.jsonl').read_bytes()
  (folder / 'b.jsonl').write_bytes(b.replace(b'b3', b'b4'))  # same size
  seen.append(find())
  (folder / 'b.jsonl').write_bytes(b[:-1])
  seen.append(find())
  (folder / 'b.jsonl').rename(folder / 'd.jsonl')
  seen.append(find())
  (folder / 'd.jsonl').unlink()
  seen.append(find())
  assert len(set(seen)) == 5
  (folder / 'b.jsonl').write_bytes(b)
  moved = folder.rename(tmp_path / 'moved')
  assert opened(config.Jsonl(str(moved)), tmp_path).fingerprint == seen[0]  # where it lies does not matter


def test_remembered_hash_does_not_hide_an_edit(tmp_path, monkeypatch):
  """A big file's hash is remembered; an edit that restores size and date is still seen."""
  monkeypatch.setattr(fingerprints, 'SETTLED_SECONDS', -1.0)
  path = tmp_path / 'big'
  path.write_bytes(b'a' * (2 << 20))
  before, status = fingerprints.of_file(path, tmp_path / 'cache'), path.stat()
  assert list((tmp_path / 'cache' / 'hashes').iterdir()) and fingerprints.of_file(path, tmp_path / 'cache') == before
  path.write_bytes(b'a' * ((2 << 20) - 1) + b'b')
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert fingerprints.of_file(path, tmp_path / 'cache') != before


def test_standard_library(tmp_path):
  source = opened(config.StandardLibrary(), tmp_path)
  train, validation = dict(source.documents('train')), dict(source.documents('validation'))
  assert not train.keys() & validation.keys()
  sizes = [sum(len(text.encode()) for text in documents.values()) for documents in (train, validation)]
  assert sum(sizes) > 8_000_000 and 0.005 < sizes[1] / sizes[0] < 0.2
  names = train.keys() | validation.keys()
  assert {'dataclasses.py', 'json/decoder.py'} <= names
  assert not any('/test/' in name or 'site-packages' in name for name in names)
  assert {**train, **validation}['textwrap.py'] == pathlib.Path(textwrap.__file__).read_text()


def test_the_standard_librarys_sources_hold_out_the_same_files_by_default(tmp_path):
  kinds = (config.StandardLibrary, config.StandardLibraryChats, config.StandardLibraryPreferences,
           config.StandardLibraryRatedAnswers, config.StandardLibraryFunctions)
  made = [opened(kind(), tmp_path) for kind in kinds]
  assert not any(mine.trains_on(other) for mine in made for other in made)
  assert made[0].trains_on(opened(config.StandardLibraryChats(val_fraction=0.1), tmp_path))


def test_several_frames_of_zstandard_are_one_file(tmp_path):
  lines = [json.dumps({'text': text}).encode() + b'\n' for text in TEXTS]
  frames = [zstandard.compress(b''.join(lines[i:i + 7])) for i in range(0, len(lines), 7)]
  (tmp_path / 'a.jsonl.zst').write_bytes(b''.join(frames))
  source = opened(config.Jsonl(str(tmp_path / 'a.jsonl.zst'), val_fraction=0.0), tmp_path)
  assert [text for _, text in source.documents('train')] == TEXTS


@pytest.mark.parametrize('damage', [lambda body: body[:-9], lambda body: body[:40] + b'\0\1\2\3' + body[44:],
                                    lambda body: body + b'more', lambda body: b'{"text": "not packed"}\n'])
def test_a_damaged_file_of_zstandard_is_named(tmp_path, damage):
  path = tmp_path / 'a.jsonl.zst'
  write_jsonl(path)
  path.write_bytes(damage(path.read_bytes()))
  source = opened(config.Jsonl(str(path), val_fraction=0.0), tmp_path)
  with pytest.raises(ConfigError, match=r'a\.jsonl\.zst:\d+.*damaged zst file.*fetch it again'):
    list(source.documents('train'))
