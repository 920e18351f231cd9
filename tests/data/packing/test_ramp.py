"""A ramp that changes the sequence length reads on where the one before it stopped."""
import collections
import json

import numpy as np
import pytest

from llm_jax.config import experiment as config
from llm_jax.config.ramp import make_phases
from llm_jax.data import dataset
from llm_jax.data.tokenizers import byte_level

LENGTHS = 8, 24, 8, 16
RAMP = tuple(config.Ramp(tokens, batch_size, seq_len)
             for tokens, batch_size, seq_len in ((1_000, 5, 24), (2_000, 3, 24), (3_500, 6, 8), (4_500, 2, 16)))
PHASES = make_phases(4, 8, 1, RAMP)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """`many` holds documents of many lengths, `one` a single text, both long enough for the ramp's first 4,500 tokens."""
  folder = tmp_path_factory.mktemp('ramp')
  rng = np.random.default_rng(0)
  (folder / 'many.jsonl').write_text(''.join(
    json.dumps({'text': ''.join(map(chr, rng.integers(97, 122, rng.integers(1, 90))))}) + '\n' for _ in range(300)))
  (folder / 'one.txt').write_text(''.join(map(chr, rng.integers(97, 122, 9_000))))
  return folder


def targets_of(folder, packing, schedule, samples, *sources):
  """The place in the store of every target of the first samples, by source and sequence length."""
  parts = (config.Weighted(sources[0], schedule), *map(config.Weighted, sources[1:]))
  opened = {seq_len: dataset.open_dataset(
    config.Data(parts, packing), byte_level.ByteTokenizer(), seq_len=seq_len, seed=3, split='train', steps=400,
    phases=PHASES, cache_dir=folder / 'cache') for seq_len in set(LENGTHS)}
  found = collections.defaultdict(list)
  for sample in range(samples):
    data = opened[next(phase.seq_len for phase in reversed(PHASES) if phase.first_sample <= sample)]
    source, row = data.locate(sample)
    part = list(data.parts.values())[source]
    rows, place = part._find(row)
    for document, start, length in rows.packing.pieces(place):
      first, last = part.store.offsets[document:document + 2]
      found[source].extend(range(first + start + 1, min(first + start + length + 1, last)))
    assert np.array_equal(data.row(sample)['tokens'], rows[place]['tokens'])
  return opened[8], found


@pytest.mark.parametrize('packing', ['concat', 'best_fit'])
def test_no_target_twice_before_the_source_is_used_up(folder, packing):
  many = config.Jsonl(str(folder / 'many.jsonl'), val_fraction=0.0)
  one = config.Text(str(folder / 'one.txt'), val_fraction=0.0)
  sources = [many, one] if packing == 'concat' else [many]
  opened, found = targets_of(folder, packing, ((0, 1.0), (1, 3.0)), PHASES[-1].first_sample + 40, *sources)
  for source, part in enumerate(opened.parts.values()):
    assert 2_000 < len(found[source]) == len(set(found[source])) < part.num_targets


def test_nothing_is_left_out_of_an_epoch_and_the_next_one_is_whole(folder):
  """Of packing='concat' the first targets are every token of the source once, those after them every token once
  more."""
  many = config.Jsonl(str(folder / 'many.jsonl'), val_fraction=0.0)
  opened, found = targets_of(folder, 'concat', 1.0, 2_400, many)
  [targets] = found.values()
  store = next(iter(opened.parts.values())).store
  every = set(range(store.num_tokens)) - set(store.offsets[:-1].tolist())
  assert set(targets[:len(every)]) == every == set(targets[len(every):2 * len(every)])
  assert PHASES[-1].first_token < len(every)


def test_a_small_source_is_gone_through_again_and_again(tmp_path):
  """Used up in the first section, it goes on in the next one of its sequence length with the rows that follow."""
  (tmp_path / 'small.txt').write_text(''.join(map(chr, np.random.default_rng(0).integers(97, 122, 800))))
  source = config.Weighted(config.Text(str(tmp_path / 'small.txt'), val_fraction=0.0))
  opened = dataset.open_dataset(config.Data((source,)), byte_level.ByteTokenizer(), seq_len=8, seed=3, split='train',
                                 steps=400, phases=PHASES, cache_dir=tmp_path / 'cache')
  sections = [range(0, PHASES[1].first_sample), range(PHASES[3].first_sample, PHASES[4].first_sample)]
  rows = [opened.locate(sample)[1] for samples in sections for sample in samples]
  n = opened.rows_per_epoch
  assert len(rows) > 2 * n + 20
  for start in range(0, len(rows) - n, n):
    assert sorted(row % n for row in rows[start:start + n]) == list(range(n))
