"""A store gives back its documents; kills, rivals and damage do not change what it holds."""
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data import token_store
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers import byte_level

TEXTS = [f'Document number {i}. ' * (1 + i % 7) for i in range(60)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
  monkeypatch.setattr(token_store, 'BATCH_BYTES', 200)


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
  file = tmp_path / 'a.jsonl'
  file.write_text(''.join(json.dumps({'text': text}) + '\n' for text in TEXTS))
  return file


def open_store(path, tmp_path, tokenizer=None, split='train', progress=None, **options):
  source = documents.open_source(config.Jsonl(str(path), **{'val_fraction': 0.0, **options}), tmp_path / 'cache')
  return token_store.open_store(source, split, tokenizer or byte_level.ByteTokenizer(), tmp_path / 'cache', progress)


def stored_documents(store) -> list[list[int]]:
  return [store.tokens[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
  [file] = [p for p in folder.rglob(name) if p.is_file()]
  return file


def files(folder: pathlib.Path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_documents_come_back_between_ends_of_text(path, tmp_path, bpe):
  calls = []
  store = open_store(path, tmp_path, bpe, progress=lambda *numbers: calls.append(numbers))
  assert stored_documents(store) == [[bpe.eot, *bpe.encode(text), bpe.eot] for text in TEXTS]
  assert store.tokens.dtype == np.uint16 and store.num_tokens == len(store.tokens)
  assert store.num_bytes == sum(len(text) for text in TEXTS) and store.num_documents == len(TEXTS)
  assert len(calls) > 10 and calls == sorted(calls) and calls[-1][0] == store.num_bytes
  again = open_store(path, tmp_path, bpe, progress=lambda *_: pytest.fail('the cache was not used'))
  assert np.array_equal(again.tokens, store.tokens) and again.fingerprint == store.fingerprint


def test_vocabularies_beyond_16_bits(path, tmp_path, bpe):
  big = byte_level.RankTokenizer(bpe.ranks, bpe.pattern, ('',) * 70_000 + ('<|end|>',), '<|end|>')
  store = open_store(path, tmp_path, big)
  assert store.tokens.dtype == np.uint32 and store.tokens[0] == big.eot > 65_535


def test_each_tokenizer_split_and_fraction_has_its_own(path, tmp_path, bpe):
  stores = [open_store(path, tmp_path), open_store(path, tmp_path, bpe), open_store(path, tmp_path, val_fraction=0.3),
            open_store(path, tmp_path, split='validation', val_fraction=0.3)]
  assert len({store.fingerprint for store in stores}) == 4
  assert sorted(stored_documents(stores[2]) + stored_documents(stores[3])) == sorted(stored_documents(stores[0]))


KILLED = '''
import os, sys
from llm_jax.config import experiment as config
from llm_jax.data import token_store
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers import byte_level
token_store.BATCH_BYTES = 200
path, cache, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0
def killed_at(function):
  def call(*args):
    global calls
    calls += 1
    if calls == at:
      os.kill(os.getpid(), 9)
    return function(*args)
  return call
# every place where bytes reach the disk
token_store._sync = killed_at(token_store._sync)
token_store.os.replace = killed_at(token_store.os.replace)
source = documents.open_source(config.Jsonl(path, val_fraction=0.0), cache)
token_store.open_store(source, 'train', byte_level.ByteTokenizer(), cache)
print(calls)
'''


def build_killed_at(path, cache, at: int) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-c', KILLED, str(path), str(cache), str(at)], capture_output=True, text=True)


@pytest.mark.parametrize('inside', [1, pytest.param(9, marks=pytest.mark.slow)])
def test_killed_anywhere_it_goes_on(path, tmp_path, inside):
  """At the beginning, at the end, and so many times in between."""
  whole = build_killed_at(path, tmp_path / 'whole', -1)
  steps = int(whole.stdout)
  expected = files(tmp_path / 'whole' / 'tokens')
  assert steps > 20
  rng = random.Random(0)
  for at in [1, 3, steps - 1, steps, *rng.sample(range(5, steps - 2), inside)]:
    cache = tmp_path / str(at)
    assert build_killed_at(path, cache, at).returncode == -9
    read = []
    store = open_store_counting(path, cache, read)
    assert files(cache / 'tokens') == expected and store.num_documents == len(TEXTS)
    assert len(read) <= len(TEXTS) - (at // 3 - 1)  # what was on disk is not read again: three writes a batch


def open_store_counting(path, cache, read: list) -> token_store.TokenStore:
  source = documents.open_source(config.Jsonl(str(path), val_fraction=0.0), cache)
  plain = source.read
  source.read = lambda reader: read.append(1) or plain(reader)
  return token_store.open_store(source, 'train', byte_level.ByteTokenizer(), cache)


@pytest.mark.parametrize('name', ['tokens', 'documents', 'journal'])
def test_what_a_killed_run_left_is_checked(name, path, tmp_path):
  whole, part = tmp_path / 'whole', tmp_path / 'part'
  build_killed_at(path, whole, -1)
  build_killed_at(path, part, 20)
  file = find(part, name)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)
  read = []
  open_store_counting(path, part, read)
  assert files(part / 'tokens') == files(whole / 'tokens') and read


def flip(path: pathlib.Path, bit: int) -> None:
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def test_no_flipped_bit_of_the_journal_builds_another_store(path, tmp_path, caplog):
  """Wherever it is, in a count too; the line is named, and what it tells of is tokenised again."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  build_killed_at(path, whole, -1)
  build_killed_at(path, killed, 20)
  journal = find(killed, 'journal').read_bytes()
  for bit in random.Random(0).sample(range(8 * len(journal)), 40):
    part = shutil.copytree(killed, tmp_path / 'part')
    flip(find(part, 'journal'), bit)
    caplog.clear()
    open_store_counting(path, part, [])
    assert files(part / 'tokens') == files(whole / 'tokens')
    assert 'is not as it was written; tokenising again from there' in caplog.text or bit // 8 == len(journal) - 1
    shutil.rmtree(part)


def test_the_mutation_of_the_journals_checksum(path, tmp_path, monkeypatch):
  """Were lines believed as they are, a changed count would build another store: the test above has a point."""
  monkeypatch.setattr(token_store, '_journal_entry', lambda line: json.loads(line.partition(b' ')[2]))
  whole, part = tmp_path / 'whole', tmp_path / 'part'
  build_killed_at(path, whole, -1)
  build_killed_at(path, part, 20)
  journal = find(part, 'journal')
  [*_, last] = re.finditer(rb'"readers": (\d)', journal.read_bytes())
  flip(journal, 8 * last.start(1))
  open_store_counting(path, part, [])
  assert files(part / 'tokens') != files(whole / 'tokens')


@pytest.mark.parametrize('name', ['tokens', 'documents', 'meta.json'])
def test_a_damaged_store_is_built_again(name, path, tmp_path):
  tokens = np.array(open_store(path, tmp_path).tokens)
  expected = files(tmp_path / 'cache')
  file = find(tmp_path / 'cache', name)
  for damage in (lambda b: b[:-1], lambda b: b'', lambda b: bytes([b[0] ^ 1]) + b[1:], lambda b: b + b'\0', None):
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    built = []
    again = open_store(path, tmp_path, progress=lambda *_, built=built: built.append(1))
    assert built and np.array_equal(again.tokens, tokens) and files(tmp_path / 'cache') == expected


BUILD = '''
import sys, time
from llm_jax.config import experiment as config
from llm_jax.data import token_store
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers import byte_level
token_store.BATCH_BYTES, calls = 200, []
source = documents.open_source(config.Jsonl(sys.argv[1], val_fraction=0.0), sys.argv[2])
progress = lambda *numbers: (calls.append(numbers), time.sleep(0.01))
store = token_store.open_store(source, 'train', byte_level.ByteTokenizer(), sys.argv[2], progress)
'''


def test_many_processes_build_it_once(path, tmp_path):
  code = BUILD + 'print(len(calls), store.num_tokens)'
  command = [sys.executable, '-c', code, str(path), str(tmp_path / 'cache')]
  runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
  counts = [tuple(map(int, run.communicate()[0].split())) for run in runs]
  assert sorted(calls > 0 for calls, _ in counts) == [False] * 3 + [True] and len({tokens for _, tokens in counts}) == 1


def test_skipped_rows_are_counted_also_after_a_restart(path, tmp_path):
  lines = path.read_bytes().splitlines()
  lines[3:3], lines[40:40] = [b'not json'], [b'{"text": 1}', b'not json']
  path.write_bytes(b'\n'.join(lines))
  with pytest.raises(ConfigError, match=r'a\.jsonl:4'):
    open_store(path, tmp_path)

  def stop(done, total):
    if done > 1500:
      raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    open_store(path, tmp_path, on_error='skip', progress=stop)
  store = open_store(path, tmp_path, on_error='skip')
  assert store.skipped == {'not JSON': 2, "field 'text' is not text": 1} and store.num_documents == len(TEXTS)
  assert open_store(path, tmp_path, on_error='skip').skipped == store.skipped


def test_splits_without_text(path, tmp_path):
  with pytest.raises(ConfigError, match='val_fraction = 1e-09: sets no text of the Jsonl aside: raise it'):
    open_store(path, tmp_path, split='validation', val_fraction=1e-9)
  path.write_text('{"text": ""}\n' * 5)
  with pytest.raises(ConfigError, match='no text'):
    open_store(path, tmp_path)


def test_cache_folder(path, tmp_path, monkeypatch):
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'elsewhere'))
  source = documents.open_source(config.Jsonl(str(path)))
  token_store.open_store(source, 'train', byte_level.ByteTokenizer())
  assert list((tmp_path / 'elsewhere' / 'tokens').iterdir())
  (tmp_path / 'file').touch()
  with pytest.raises(ConfigError, match='not writable.*LLM_JAX_CACHE'):
    token_store.open_store(source, 'train', byte_level.ByteTokenizer(), tmp_path / 'file')


def test_a_source_that_changes_while_it_is_read_is_refused(path, tmp_path):
  """Also where it is what its fingerprint says before and after."""
  content = path.read_bytes()
  source = documents.open_source(config.Jsonl(str(path), val_fraction=0.0), tmp_path / 'cache')
  path.write_bytes(content.replace(b'Document', b'Forgery!'))

  def restore(done, total):
    path.write_bytes(content)

  with pytest.raises(ConfigError, match='Jsonl.* changed while it was read'):
    token_store.open_store(source, 'train', byte_level.ByteTokenizer(), tmp_path / 'cache', restore)
  assert stored_documents(open_store(path, tmp_path)) == [[256, *text.encode(), 256] for text in TEXTS]


def test_token_files(tmp_path, bpe):
  documents_ = [bpe.encode(text) for text in TEXTS]
  np.concatenate([[*ids, bpe.eot] for ids in documents_]).astype(np.uint32).tofile(tmp_path / 'a.bin')
  file = config.TokenFile(str(tmp_path / 'a.bin'), 'uint32', bpe.eot, val_fraction=0.0)
  source = documents.open_source(file, tmp_path)
  store = token_store.open_store(source, 'train', bpe, tmp_path / 'cache')
  assert stored_documents(store) == [[bpe.eot, *ids, bpe.eot] for ids in documents_]
  assert store.num_bytes == sum(len(text) for text in TEXTS)
  with pytest.raises(ConfigError, match='beyond the vocabulary of 257'):
    token_store.open_store(source, 'train', byte_level.ByteTokenizer(), tmp_path / 'cache')


def test_memory_is_bounded_by_one_row(tmp_path):
  """Twelve rows of 4 MB need no more memory than four."""
  peaks = []
  for count in (4, 12):
    path = tmp_path / f'{count}.jsonl'
    with open(path, 'w') as file:
      for _ in range(count):
        file.write('{"text": "' + 'word ' * 800_000 + '"}\n')
    tracemalloc.start()
    open_store(path, tmp_path)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert 10e6 < peaks[1] < 1.1 * peaks[0], peaks
