"""The index of documents: the same whether it is made in memory, in files, or by the plain algorithm."""
import bisect
import dataclasses
import logging

import numpy as np
import pytest

from llm_jax.data import fingerprints, made_once
from llm_jax.data.made_once import Arrays, Ascending, lasts_of
from llm_jax.data.packing import index, pieces
from llm_jax.data.packing.index import best_fit_decreasing, document_order
from llm_jax.data.packing.pieces import BestFit, Concat
from llm_jax.data.token_store import TokenStore
from llm_jax.runtime.array_file import ArrayFile

SEQ_LEN = 64


def plain_best_fit(lengths, seq_len):
  """Best-fit decreasing, a piece after the other."""
  rows, rows_by_room, rooms, num_rows = [], [[] for _ in range(seq_len + 1)], [], 0
  for length in lengths:
    place = bisect.bisect_left(rooms, length)
    if place < len(rooms):
      room = rooms[place]
      row = rows_by_room[room].pop()
      if not rows_by_room[room]:
        del rooms[place]
    else:
      room, row = seq_len, num_rows
      num_rows += 1
    left = room - length
    if left:
      if not rows_by_room[left]:
        bisect.insort(rooms, left)
      rows_by_room[left].append(row)
    rows.append(row)
  return rows


@pytest.mark.parametrize('seed', range(40))
def test_pieces_go_where_the_plain_algorithm_puts_them(seed):
  rng = np.random.default_rng(seed)
  seq_len = int(rng.integers(1, 200))
  longest = int(rng.integers(1, seq_len + 1))
  lengths = rng.integers(1, longest + 1, int(rng.integers(1, 3_000)))
  in_order = -np.sort(-lengths)
  assert best_fit_decreasing(in_order, seq_len).tolist() == plain_best_fit(in_order.tolist(), seq_len)
  assert best_fit_decreasing(lengths.tolist(), seq_len).tolist() == plain_best_fit(lengths.tolist(), seq_len)


def test_no_pieces_need_no_rows():
  assert best_fit_decreasing([], 8).tolist() == []


def plain_concat(store, seq_len, seed, window):
  """The pieces of every row, by going through the line of tokens."""
  order = document_order(store.num_documents, seed)
  offsets = np.asarray(store.offsets)
  document_of = np.repeat(order, np.diff(offsets)[order])
  place_in = np.concatenate([np.arange(n) for n in np.diff(offsets)[order]])
  start, stop, _ = window.indices(len(document_of) - 1)
  rows = []
  for first in range(start, stop, seq_len):
    row = []
    for token in range(first, min(first + seq_len, stop)):
      document, place = int(document_of[token]), int(place_in[token])
      if row and row[-1][0] == document and place:
        row[-1] = (document, row[-1][1], row[-1][2] + 1)
      else:
        row.append((document, place, 1))
    rows.append(row)
  return rows


def plain_plan(store, seq_len, seed, window):
  order = document_order(store.num_documents, seed)[window]
  pieces = [(int(document), start, min(seq_len, length - start)) for document in order
            for length in [int(store.offsets[document + 1] - store.offsets[document]) - 1]
            for start in range(0, length, seq_len)]
  pieces.sort(key=lambda piece: -piece[2])
  rows = plain_best_fit([length for _, _, length in pieces], seq_len)
  found = [[] for _ in range(max(rows) + 1)]
  for piece, row in zip(pieces, rows, strict=True):
    found[row].append(piece)
  return found


@pytest.fixture
def store(tmp_path):
  lengths = np.random.default_rng(0).integers(1, 3 * SEQ_LEN, 500)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  return TokenStore(np.zeros(offsets[-1], np.uint16), offsets, 0, 'fingerprint', {}, None, tmp_path)


@pytest.fixture(params=['memory', 'files'])
def place(request, monkeypatch):
  """Where the index is."""
  if request.param == 'files':
    monkeypatch.setattr(made_once, 'LEAST_DOCUMENTS', 0)
    monkeypatch.setattr(made_once, 'BLOCK', 16)
  return request.param


@pytest.mark.parametrize('seed', [None, 7])
@pytest.mark.parametrize('kind, plain', [(Concat, plain_concat), (BestFit, plain_plan)])
@pytest.mark.parametrize('window', [slice(None), slice(30, 400)])
def test_rows_are_the_same_bit_for_bit(store, place, kind, plain, seed, window, tmp_path):
  for _ in range(2):  # made, and read
    packing = kind(store, SEQ_LEN, seed, window)
    rows = [list(packing.pieces(row)) for row in range(packing.num_rows)]
    assert rows == plain(store, SEQ_LEN, seed, window)
    assert all(isinstance(number, int) for piece in rows[0] for number in piece)
  assert (tmp_path / 'packing').exists() == (place == 'files')


@pytest.mark.parametrize('seed', [None, 7])
def test_windows_end_at_the_same_documents(store, place, seed):
  packing = BestFit(store, SEQ_LEN, seed)
  lengths = np.diff(store.offsets)[document_order(store.num_documents, seed)] - 1
  before = np.concatenate([[0], np.cumsum(lengths)])
  for start in (0, 1, 17, 499, 500):
    for tokens in (0, 1, 63, 1_000, 10**9):
      expected = min(int(np.searchsorted(before, before[start] + tokens)), len(lengths))
      assert packing.after(start, tokens) == expected


def test_the_number_of_cut_documents(store, place):
  order = document_order(store.num_documents, 7)
  ends = np.cumsum(np.diff(store.offsets)[order])
  starts = np.concatenate([[0], ends[:-1]])
  assert Concat(store, SEQ_LEN, 7).num_cut == sum(a // SEQ_LEN < (b - 2) // SEQ_LEN
                                                  for a, b in zip(starts, ends, strict=True))
  assert BestFit(store, SEQ_LEN, 7).num_cut == int((np.diff(store.offsets) - 1 > SEQ_LEN).sum())


# ---------------------------------------------------------------------------------------------- the files
@pytest.fixture
def kept(monkeypatch, tmp_path):
  """Makes arrays, in files; returns what was made how often."""
  monkeypatch.setattr(made_once, 'LEAST_DOCUMENTS', 2)
  made = []

  def make(depends_on, numbers=(1, 2, 300), count=9):
    def function():
      made.append(depends_on)
      return Arrays({'numbers': np.array(numbers, np.uint16), 'none': np.zeros(0, np.int64)}, {'count': 3})
    return made_once.made_once('kind', {'on': depends_on}, count, function, tmp_path)

  return make, made


def test_arrays_are_made_once_and_by_what_they_depend_on(kept):
  make, made = kept
  first, second, other = make('a'), make('a'), make('b', numbers=[5])
  assert made == ['a', 'b']
  for found in (first, second):
    assert isinstance(found.arrays['numbers'], ArrayFile)
    assert found.arrays['numbers'][:].tolist() == [1, 2, 300] and found.numbers == {'count': 3}
    assert found.arrays['none'][:].tolist() == []
  assert other.arrays['numbers'][:].tolist() == [5]


def test_of_few_documents_nothing_is_kept(kept, tmp_path):
  make, made = kept
  make('a', count=1)
  make('a', count=1)
  assert made == ['a', 'a'] and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['numbers', 'meta.json'])
def test_a_damaged_file_is_made_again(kept, tmp_path, name, caplog):
  make, made = kept
  make('a')
  [folder] = (path for path in (tmp_path / 'packing').iterdir() if path.is_dir())
  content = bytearray((folder / name).read_bytes())
  content[0] ^= 1
  (folder / name).write_bytes(content)
  with caplog.at_level(logging.WARNING):
    assert make('a').arrays['numbers'][:].tolist() == [1, 2, 300]
  assert made == ['a', 'a'] and 'making it again' in caplog.text


def test_what_a_kill_left_is_in_nobodys_way(kept, tmp_path):
  make, made = kept
  fingerprint = fingerprints.of({'format': made_once.FORMAT, 'kind': 'kind', 'on': 'a'})
  left = tmp_path / 'packing' / f'{fingerprint[:32]}.building'
  left.mkdir(parents=True)
  (left / 'numbers').write_bytes(b'half')
  assert make('a').arrays['numbers'][:].tolist() == [1, 2, 300]
  assert made == ['a'] and not left.exists()


def test_a_cache_that_cannot_be_written_costs_memory_alone(kept, tmp_path, caplog):
  make, made = kept
  (tmp_path / 'packing').write_text('a file where the folder should be')
  with caplog.at_level(logging.WARNING):
    assert np.asarray(make('a').arrays['numbers']).tolist() == [1, 2, 300]
  assert made == ['a'] and 'in its memory' in caplog.text


def test_places_are_those_of_searchsorted(tmp_path, monkeypatch):
  monkeypatch.setattr(made_once, 'BLOCK', 8)
  for count in (1, 7, 8, 9, 64, 100):
    numbers = np.cumsum(np.random.default_rng(count).integers(0, 4, count))
    path = tmp_path / f'{count}'
    path.write_bytes(numbers.tobytes())
    ascending = Ascending(ArrayFile(path, numbers.dtype), lasts_of(numbers))
    for value in range(-1, int(numbers[-1]) + 2):
      assert ascending.place_after(value) == np.searchsorted(numbers, value, side='right')


def test_stores_that_differ_have_plans_of_their_own(store, monkeypatch):
  monkeypatch.setattr(made_once, 'LEAST_DOCUMENTS', 0)
  other = dataclasses.replace(store, fingerprint='another', offsets=np.arange(0, 20 * SEQ_LEN, SEQ_LEN))
  assert BestFit(store, SEQ_LEN, 0).num_rows != BestFit(other, SEQ_LEN, 0).num_rows
  assert index.open_line(store, 0).ends[0] != index.open_line(store, 1).ends[0]


def test_the_line_is_opened_when_a_stage_begins_and_not_before(store, place, monkeypatch):
  opened = []
  original = pieces.open_line
  monkeypatch.setattr(pieces, 'open_line', lambda *args: opened.append(args) or original(*args))
  packing = Concat(store, SEQ_LEN, 7)
  assert packing.num_rows == -(-packing.end // SEQ_LEN) and not opened
  packing.open()
  list(packing.pieces(3))
  assert len(opened) == 1
