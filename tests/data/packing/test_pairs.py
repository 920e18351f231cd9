"""Preferences from their rows to batches: what counts, what is cut or left out, and that nothing moves."""
import json
import logging

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.batch import LanguageModelBatch, PreferenceBatch
from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data.batch_source import DataPosition
from llm_jax.data.batches import Placement, TrainSource, validation_batches
from llm_jax.data.sources import dialogues
from llm_jax.data.tokenizers import byte_level, chat_templates
from tests.data.dialogue_files import (
  ANSWERS,
  conversations,
  open_data,
  pair,
  preferences,
  train_tokenizer,
  write,
  write_files,
)
from tests.data.test_batches import OneProcess


@pytest.fixture(scope='module')
def bpe():
  return train_tokenizer()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_files(tmp_path_factory.mktemp('dialogues'))


@pytest.mark.parametrize('template', ['chatml', 'plain'])
@pytest.mark.parametrize('mask_formatting', [True, False])
def test_rows_are_pairs(template, mask_formatting, folder, bpe):
  data = open_data(
    folder, bpe, preferences(folder, template=template, mask_formatting=mask_formatting, val_fraction=0.0), seq_len=200
  )
  assert data.rows_per_epoch == 40 and data.num_documents == 80
  assert data.num_targets == sum(int(side['weights'].sum()) for row in data.rows for side in row.values())
  end = '' if mask_formatting else bpe.decode(chat_templates.end_of_turn(template, bpe)[:1])
  prompts = [dialogues.read_preference(json.dumps(pair(i)).encode(), 'x', 'chatml').chosen.messages[:-1]
             for i in range(40)]
  for i, row in enumerate(data.rows):
    prompt = chat_templates.prompt_ids(prompts[i], template, bpe)
    for name, answer in (('chosen', ANSWERS[i]), ('rejected', f'No idea about {i}.')):
      side = row[name]
      ids, _ = chat_templates.render([*prompts[i], {'role': 'assistant', 'content': answer}], template, bpe)
      n = len(ids) - 1
      assert np.array_equal(side['tokens'][:n], ids[:-1]) and np.array_equal(side['targets'][:n], ids[1:])
      assert np.array_equal(side['positions'][:n], np.arange(n)) and np.array_equal(ids[:len(prompt)], prompt)
      assert side['segment_ids'].tolist() == [1] * n + [0] * (200 - n)
      assert not side['weights'][:len(prompt) - 1].any() and side['weights'][len(prompt) - 1] == 1
      learnt = bpe.decode(side['targets'][side['weights'] == 1])
      assert learnt == (' ' if template == 'plain' else '') + answer + end
      assert {field: (value.dtype.name, value.shape) for field, value in side.items()} == {
        'tokens': ('int32', (200,)), 'targets': ('int32', (200,)), 'weights': ('float32', (200,)),
        'positions': ('int32', (200,)), 'segment_ids': ('int32', (200,))}


def test_pairs_that_are_equal_within_the_context_are_left_out(bpe, caplog, tmp_path):
  rows = [{'prompt': 'a', 'chosen': 'b' * n + 'c', 'rejected': 'b' * n + end}
          for n, end in ((60, 'd'), (60, ''), (5, ''), (5, 'd'), (20, ''), (19, ''))]
  source = config.Preferences(write(tmp_path / 'p.jsonl', rows), 'plain', val_fraction=0.0)
  ours = byte_level.ByteTokenizer()  # an answer begins after 21 ids
  with caplog.at_level(logging.WARNING):
    data = open_data(tmp_path, ours, source, seq_len=40)
  assert [record.getMessage() for record in caplog.records] == [
    'data.sources[0] (train): 3 of 6 pairs left out, their answers are equal within seq_len=40',
    'data.sources[0] (train): 1 of 3 pairs are longer than seq_len=40 and are cut']
  assert data.rows_per_epoch == 3
  assert not any(np.array_equal(row['chosen']['targets'], row['rejected']['targets']) for row in data.rows)
  with pytest.raises(ConfigError, match='seq_len = 25: within it all pairs of answers are equal: raise it'):
    open_data(tmp_path, ours, config.Preferences(write(tmp_path / 'q.jsonl', rows[:2]), 'plain', val_fraction=0.0),
              seq_len=25)


def test_long_pairs_are_cut_at_the_end_or_left_out(folder, bpe, caplog, tmp_path):
  """As trl's DPOTrainer with max_length = seq_len + 1: `keep_start`, and prompts that fill it are dropped."""
  rows = [{'prompt': 'a' * n, 'chosen': 'b' * m, 'rejected': 'c'} for n, m in ((1, 1), (1, 60), (200, 1), (9, 2))]
  source = config.Preferences(write(tmp_path / 'p.jsonl', rows), 'plain', val_fraction=0.0)
  ours = byte_level.ByteTokenizer()  # `eot User: a\n\nAssistant: b eot`: a prompt of n + 19 ids, an answer of m + 2
  with caplog.at_level(logging.WARNING):
    data = open_data(tmp_path, ours, source, seq_len=40)
  assert [record.getMessage() for record in caplog.records] == [
    'data.sources[0] (train): 1 of 4 pairs left out, their prompt fills seq_len=40',
    'data.sources[0] (train): 1 of 3 pairs are longer than seq_len=40 and are cut']
  kept = list(data.rows)
  assert data.rows_per_epoch == len(kept) == 3
  assert [int(row['chosen']['weights'].sum()) for row in kept] == [2, 41 - 20, 3]
  assert [int(row['rejected']['weights'].sum()) for row in kept] == [2, 2, 2]
  assert data.num_targets == 2 + 21 + 3 + 6
  assert kept[1]['chosen']['segment_ids'].all() and kept[1]['chosen']['targets'][-1] == ord('b')
  with pytest.raises(ConfigError, match=r'^seq_len = 5: no answer begins within it in any of 4 pairs'):
    open_data(tmp_path, ours, source, seq_len=5)


def test_batches_of_pairs(folder, bpe):
  data = open_data(folder, bpe, preferences(folder), seq_len=48)
  source = TrainSource(data, 4)
  whole = [source.next() for _ in range(30)]
  assert all(isinstance(batch, PreferenceBatch) and isinstance(batch.chosen, LanguageModelBatch) for batch in whole)
  for k, batch in enumerate(whole):
    for r in range(4):
      row = data.row(4 * k + r)
      for side in ('chosen', 'rejected'):
        assert all(np.array_equal(getattr(getattr(batch, side), f)[r], row[side][f]) for f in row[side])
  position = DataPosition.from_json(json.loads(json.dumps(source.position().to_json())))
  following = [source.next() for _ in range(3)]
  source.close()
  again = TrainSource(open_data(folder, bpe, preferences(folder), seq_len=48), 4, prefetch=1, threads=1)
  again.restore(position)
  assert all(jax.tree.all(jax.tree.map(np.array_equal, again.next(), batch)) for batch in following)
  with pytest.raises(ConfigError, match='^seq_len = '):
    TrainSource(open_data(folder, bpe, preferences(folder), seq_len=49), 4).restore(position)
  again.close()
  seen = list(data.tokens_seen(range(5)))
  assert len(seen) == 10 and len(list(data.token_documents())) == len(list(data.byte_documents())) == data.num_documents


def test_held_out_pairs_are_padded_with_weight_zero(folder, bpe):
  data = open_data(folder, bpe, preferences(folder), split='validation', seq_len=48)
  count = data.rows_per_epoch
  assert 3 < count < 20
  batches = list(validation_batches(data, count - 1))
  assert len(batches) == 2
  assert sum(float(side.weights.sum()) for b in batches for side in (b.chosen, b.rejected)) == data.num_targets
  assert not batches[1].chosen.segment_ids[1:].any() and not batches[1].rejected.weights[1:].any()


@pytest.mark.parametrize('make', [conversations, preferences])
@pytest.mark.parametrize('processes', [1, 2, 4])
def test_every_process_reads_only_its_rows(make, processes, folder, bpe):
  devices, data = jax.devices()[:8], open_data(folder, bpe, make(folder), seq_len=48)
  sharding = NamedSharding(Mesh(np.array(devices).reshape(4, 2), ('x', 'y')), PartitionSpec('x', 'y'))
  numpy_source, placed_source = TrainSource(data, 8), TrainSource(data, 8, sharding)
  whole = [numpy_source.next() for _ in range(3)]
  for batch in whole:
    placed = placed_source.next()
    assert jax.tree.structure(placed) == jax.tree.structure(placed_source.abstract())
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == sharding and np.array_equal(x, y), placed, batch))
    assert jax.tree.all(jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), placed,
                                     placed_source.abstract()))
  numpy_source.close()
  placed_source.close()
  each = len(devices) // processes
  for p in range(processes):
    placement = Placement(data, 8, OneProcess(sharding, devices[p * each:(p + 1) * each]))
    assert len(placement.rows) == 8 // processes
    for k, batch in enumerate(whole):
      expected = jax.tree.map(lambda field, rows=placement.rows: field[rows], batch)
      local = data.to_batch(placement.read(8 * k))
      assert jax.tree.all(jax.tree.map(np.array_equal, local, expected))


def test_margins_are_read_to_the_bit(bpe, tmp_path):
  """They stand in a store of ids, behind what is learnt, and change nothing else of a row."""
  margins = [3, 2 / 3, 0.0, 1.0]
  rows = [{'prompt': f'a{i}', 'chosen': 'b', 'rejected': 'c', 'margin': margin} for i, margin in enumerate(margins)]
  path = write(tmp_path / 'p.jsonl', rows)
  source = config.Preferences(path, 'plain', val_fraction=0.0, margin='margin')
  without = config.Preferences(path, 'plain', val_fraction=0.0, ignore=('margin',))
  data = open_data(tmp_path, bpe, source, seq_len=24)
  bare = open_data(tmp_path, bpe, without, seq_len=24)
  assert [row['margins'] for row in data.rows] == [np.float32(margin) for margin in margins]
  assert data.num_targets == bare.num_targets
  for row, other in zip(data.rows, bare.rows, strict=True):
    for side in ('chosen', 'rejected'):
      for name, value in other[side].items():
        np.testing.assert_array_equal(row[side][name], value)
  assert data.to_batch(data.padding).margins == 0


@pytest.mark.parametrize('margin', [-1, True, 'much', None, float('nan')])
def test_what_is_no_margin(margin, bpe, tmp_path):
  row = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'margin': margin}
  source = config.Preferences(write(tmp_path / 'p.jsonl', [row]), 'plain', val_fraction=0.0, margin='margin')
  with pytest.raises(ConfigError, match='margin is'):
    open_data(tmp_path, bpe, source, seq_len=24)


def test_soft_labels_stand_beside_margins(bpe, tmp_path):
  numbers = [(3, 0.5), (0, 1), (1.5, 0.9), (2, 0)]
  rows = [{'prompt': f'a{i}', 'chosen': 'b', 'rejected': 'c', 'm': margin, 'p': label}
          for i, (margin, label) in enumerate(numbers)]
  path = write(tmp_path / 'p.jsonl', rows)
  open_with = lambda **fields: open_data(tmp_path, bpe, config.Preferences(path, 'plain', val_fraction=0.0, **fields),
                                         seq_len=24)
  both, alone = open_with(margin='m', soft_label='p'), open_with(soft_label='p', ignore=('m',))
  assert [(row['margins'], row['soft_labels']) for row in both.rows] == [
    (np.float32(margin), np.float32(label)) for margin, label in numbers]
  assert [row['soft_labels'] for row in alone.rows] == [np.float32(label) for _, label in numbers]
  assert both.num_targets == alone.num_targets
  batch = both.to_batch(both.row(0))
  assert (batch.margins, batch.soft_labels) == numbers[both.locate(0)[1]]


@pytest.mark.parametrize('label', [-0.1, 1.5, True, 'A', None, float('nan')])
def test_what_is_no_soft_label(label, bpe, tmp_path):
  row = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'p': label}
  source = config.Preferences(write(tmp_path / 'p.jsonl', [row]), 'plain', val_fraction=0.0, soft_label='p')
  with pytest.raises(ConfigError, match='p is .*: give a number from 0 to 1'):
    open_data(tmp_path, bpe, source, seq_len=24)


def test_soft_labels_are_for_those_that_read_them():
  def made(objective, *sources):
    return config.stage('a', config.mix(*sources) if len(sources) > 1 else sources[0], steps=1, seq_len=8,
                        batch_size=1, learning_rate=config.Constant(1e-3), objective=objective, init=config.Params('b'))
  soft, hard = config.Preferences('a', soft_label='p'), config.Preferences('b')
  assert made(config.RewardModel(), soft).data.has_soft_labels and made(config.DPO(), soft).data.has_soft_labels
  with pytest.raises(ConfigError, match='takes every chosen answer for the better one'):
    made(config.IPO(), soft)
  with pytest.raises(ConfigError, match='to all sources or to none'):
    made(config.DPO(), soft, hard)


def test_margins_are_for_reward_models_alone(tmp_path):
  def made(objective, *sources):
    return config.stage('a', config.mix(*sources) if len(sources) > 1 else sources[0], steps=1, seq_len=8,
                        batch_size=1, learning_rate=config.Constant(1e-3), objective=objective)
  with_margin, without = config.Preferences('a', margin='m'), config.Preferences('b')
  assert made(config.RewardModel(), with_margin).data.has_margins
  with pytest.raises(ConfigError, match='does not read how much better'):
    made(config.ORPO(), with_margin)
  with pytest.raises(ConfigError, match='to all sources or to none'):
    made(config.RewardModel(), with_margin, without)
