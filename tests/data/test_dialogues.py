"""Conversations and preferences from their rows to batches: what counts, what is refused, and that nothing moves."""
import collections
import gzip
import itertools
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.batch import LanguageModelBatch, PreferenceBatch
from llm_jax.config import run as config
from llm_jax.config.errors import ConfigError
from llm_jax.data import byte_level, chat, dialogues, pipeline, sources, token_store
from llm_jax.data.batches import Placement, TrainSource, held_out_batches, typed
from tests.data.test_batches import OneProcess
from tests.data.test_token_store import files

CONTROL = ('<|im_start|>', '<|im_end|>')
QUESTIONS = [f'What is {i} and {i}? ' + 'Think. ' * (i % 4) for i in range(40)]
ANSWERS = [f'It is {2 * i}.' + ' Truly.' * (i % 5) for i in range(40)]


def dialogue(i: int) -> list[dict[str, str]]:
  rounds = [{'role': 'user', 'content': QUESTIONS[i]}, {'role': 'assistant', 'content': ANSWERS[i]}]
  again = [{'role': 'user', 'content': 'Sure?'}, {'role': 'assistant', 'content': f'Yes, {i}.'}]
  return [*([{'role': 'system', 'content': 'Add.'}] if i % 3 == 0 else []), *rounds, *(again if i % 2 else [])]


def pair(i: int) -> dict:
  """Prompt and answers as texts or as messages."""
  prompt = QUESTIONS[i] if i % 2 else dialogue(i - i % 2 + 1)[:-1]
  chosen = ANSWERS[i] if i % 3 else [{'role': 'assistant', 'content': ANSWERS[i]}]
  return {'prompt': prompt, 'chosen': chosen, 'rejected': f'No idea about {i}.'}


def write(path: pathlib.Path, rows: list) -> str:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.fixture(scope='module')
def bpe() -> byte_level.RankTokenizer:
  return byte_level.train([*QUESTIONS, *ANSWERS], 320, 'cl100k', control=CONTROL)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('dialogues')
  write(folder / 'chat.jsonl', [{'messages': dialogue(i)} for i in range(40)])
  write(folder / 'pairs.jsonl', [pair(i) for i in range(40)])
  write(folder / 'text.jsonl', [{'text': ' '.join(QUESTIONS[i:i + 4])} for i in range(36)])
  return folder


def conversations(folder, **options) -> config.Conversations:
  return config.Conversations(str(folder / 'chat.jsonl'), **{'held_out': 0.25, **options})


def preferences(folder, **options) -> config.Preferences:
  return config.Preferences(str(folder / 'pairs.jsonl'), **{'held_out': 0.25, **options})


def open_data(folder, tokenizer, *parts, split='train', context=64, packing='best_fit', seed=0) -> pipeline.Dataset:
  data = config.Data(tuple(config.Weighted(part) for part in parts), packing)
  return pipeline.open_dataset(data, tokenizer, context=context, seed=seed, split=split, cache_dir=folder / 'cache')


def counted_pairs(row) -> list[tuple[int, int]]:
  counted = row['weights'] == 1
  assert set(np.unique(row['weights'])) <= {0, 1}
  return list(zip(row['tokens'][counted].tolist(), row['targets'][counted].tolist(), strict=True))


# ---------------------------------------------------------------------------------------------- conversations
@pytest.mark.parametrize('packing', ['split', 'best_fit'])
@pytest.mark.parametrize('context', [16, 256])
def test_only_what_the_assistant_says_is_learnt_and_each_of_it_once(packing, context, folder, bpe):
  expected = collections.Counter()
  for i in range(40):
    ids, counts = chat.render(dialogue(i), 'chatml', bpe)
    expected.update((int(ids[j - 1]), int(ids[j])) for j in np.flatnonzero(counts))
  found, targets = collections.Counter(), 0
  for split in ('train', 'held_out'):
    data = open_data(folder, bpe, conversations(folder), split=split, context=context, packing=packing)
    for row in data.rows:
      found.update(counted_pairs(row))
    documents = list(data.byte_documents())
    assert data.num_bytes == sum(map(len, documents)) and data.num_documents == len(documents)
    assert data.num_targets == sum(int(row['weights'].sum()) for row in data.rows)
    assert not data.pairs
    assert all(ids[0] == bpe.control_ids['<|im_start|>'] for ids in data.token_documents())
    targets += data.num_targets
  assert found == expected and targets == expected.total()


def test_answers_are_the_bytes_that_are_learnt(folder, bpe):
  texts = [text for split in ('train', 'held_out')
           for text in open_data(folder, bpe, conversations(folder), split=split).byte_documents()]
  said = [''.join(m['content'] for m in dialogue(i) if m['role'] == 'assistant').encode() for i in range(40)]
  assert sorted(texts) == sorted(said)


def test_mixed_with_text(folder, bpe):
  text = config.Jsonl(str(folder / 'text.jsonl'), held_out=0.25)
  mixed, alone = open_data(folder, bpe, text, conversations(folder)), open_data(folder, bpe, text)
  assert mixed.num_targets == alone.num_targets + open_data(folder, bpe, conversations(folder)).num_targets
  rows = [mixed.row(i) for i in range(20)]
  used = [row['weights'].sum() / (row['segment_ids'] > 0).sum() for row in rows]
  assert sum(share == 1 for share in used) == 10 and all(share < 0.8 for share in used if share < 1)
  seen = collections.Counter(pair for ids in mixed.tokens_seen(range(20)) for pair in itertools.pairwise(ids.tolist()))
  assert sum((collections.Counter(counted_pairs(row)) for row in rows), collections.Counter()) <= seen
  assert len(list(mixed.token_documents())) == len(list(mixed.byte_documents())) == mixed.num_documents


def test_conversations_longer_than_the_context_are_counted(folder, bpe, caplog):
  lengths = [len(chat.render(dialogue(i), 'chatml', bpe)[0]) for i in range(40)]
  context = int(np.median(lengths))
  with caplog.at_level(logging.WARNING):
    open_data(folder, bpe, conversations(folder, held_out=0.0), context=context)
    open_data(folder, bpe, conversations(folder, held_out=0.0), context=1_000)
  longer = sum(length > context + 1 for length in lengths)
  assert 0 < longer < 40
  assert [record.getMessage() for record in caplog.records] == [
    f'data.sources[0] (train): {longer} of 40 conversations are longer than context={context} and are cut']


def test_compressed_rows_under_another_field(folder, bpe, tmp_path):
  rows = b''.join(json.dumps({'turns': dialogue(i)}).encode() + b'\n' for i in range(8))
  (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(rows))
  source = config.Conversations(str(tmp_path / 'a.jsonl.gz'), field='turns', held_out=0.0)
  assert open_data(tmp_path, bpe, source).num_documents == 8


def test_a_single_conversation_is_not_divided(bpe, tmp_path):
  write(tmp_path / 'one.jsonl', [{'messages': dialogue(1)}])
  source = sources.open_source(config.Conversations(str(tmp_path / 'one.jsonl'), held_out=0.5), tmp_path)
  found = [document for split in ('train', 'held_out') for _, document in source.documents(split)]
  assert found == [(dialogues.Dialogue(dialogue(1)),)]


def test_tokenizers_are_trained_on_what_is_said(folder):
  for source, said in ((conversations(folder, held_out=0.0), '\n'.join(m['content'] for m in dialogue(3))),
                       (preferences(folder, held_out=0.0), '\n'.join([QUESTIONS[1], ANSWERS[1], 'No idea about 1.']))):
    texts = list(pipeline.training_texts(config.Data((config.Weighted(source),)), folder / 'cache'))
    assert said in texts and len(texts) == 40


# ---------------------------------------------------------------------------------------------- their store
def test_stores_of_text_are_named_as_before(folder, bpe):
  """Their fingerprint is built of what it always was: caches stay valid."""
  from llm_jax.data import fingerprints
  source = sources.open_source(config.Jsonl(str(folder / 'text.jsonl')), folder / 'cache')
  store = token_store.open_store(source, 'train', bpe, folder / 'cache')
  assert store.counts is None and store.fingerprint == fingerprints.of({
    'format': 1, 'source': source.fingerprint, 'split': 'train', 'held_out': 0.01, 'tokenizer': bpe.fingerprint})
  assert not (folder / 'cache' / 'tokens' / store.fingerprint[:32] / 'counts').exists()


def test_every_option_has_a_store_of_its_own(folder, bpe, monkeypatch):
  opened = [conversations(folder), conversations(folder, template='plain'), preferences(folder),
            preferences(folder, template='plain'), preferences(folder, mask_formatting=False)]
  stores = [token_store.open_store(sources.open_source(source, folder / 'cache'), 'train', bpe, folder / 'cache')
            for source in opened]
  monkeypatch.setattr(chat, 'FORMAT', 2)
  newer = token_store.open_store(sources.open_source(opened[0], folder / 'cache'), 'train', bpe, folder / 'cache')
  assert len({store.fingerprint for store in (*stores, newer)}) == 6
  assert all(len(store.counts) == store.num_tokens == len(store.tokens) for store in stores)


@pytest.mark.parametrize('make', [conversations, preferences])
def test_a_build_that_was_killed_goes_on(make, folder, bpe, tmp_path, monkeypatch):
  monkeypatch.setattr(token_store, 'BATCH_BYTES', 200)
  calls = 0

  def build(cache) -> int:
    read, source = [], sources.open_source(make(folder, held_out=0.0), cache)
    plain = source.read
    source.read = lambda reader: read.append(1) or plain(reader)
    token_store.open_store(source, 'train', bpe, cache)
    return len(read)

  def sync(file) -> None:
    nonlocal calls
    calls += 1
    if calls == at:
      raise KeyboardInterrupt
    file.flush()

  at = 0
  monkeypatch.setattr(token_store, '_sync', sync)
  assert build(tmp_path / 'whole') == 40
  whole, steps = files(tmp_path / 'whole' / 'tokens'), calls
  assert steps > 40 and 'counts' in whole
  for stop in (1, 2, 3, 4, 5, 18, 19, 20, steps - 1, steps):
    at, calls, cache = stop, 0, tmp_path / str(stop)
    with pytest.raises(KeyboardInterrupt):
      build(cache)
    [building] = (cache / 'tokens').glob('*.building')
    if stop == 20:  # and what was left is damaged
      content = bytearray((building / 'counts').read_bytes())
      content[len(content) // 2] ^= 1
      (building / 'counts').write_bytes(content)
    at, calls = 0, 0
    read = build(cache)
    assert files(cache / 'tokens') == whole and (stop < 18 or read < 40)


def test_a_damaged_mask_is_built_again(folder, bpe, tmp_path):
  source = sources.open_source(conversations(folder), tmp_path)
  counts = np.array(token_store.open_store(source, 'train', bpe, tmp_path).counts)
  [file] = (tmp_path / 'tokens').rglob('counts')
  file.write_bytes(file.read_bytes()[:-1] + b'\1')
  assert np.array_equal(token_store.open_store(source, 'train', bpe, tmp_path).counts, counts)


# ---------------------------------------------------------------------------------------------- preferences
@pytest.mark.parametrize('template', ['chatml', 'plain'])
@pytest.mark.parametrize('mask_formatting', [True, False])
def test_rows_are_pairs(template, mask_formatting, folder, bpe):
  data = open_data(folder, bpe, preferences(folder, template=template, mask_formatting=mask_formatting, held_out=0.0),
                   context=200)
  assert data.pairs and data.rows_per_epoch == 40 and data.num_documents == 80
  assert data.num_targets == sum(int(side['weights'].sum()) for row in data.rows for side in row.values())
  end = '' if mask_formatting else bpe.decode(chat.end_of_turn(template, bpe)[:1])
  prompts = [dialogues.read_preference(json.dumps(pair(i)).encode(), 'x', preferences(folder))[0].messages[:-1]
             for i in range(40)]
  for i, row in enumerate(data.rows):
    prompt = chat.prompt_ids(prompts[i], template, bpe)
    for name, answer in (('chosen', ANSWERS[i]), ('rejected', f'No idea about {i}.')):
      side = row[name]
      ids, _ = chat.render([*prompts[i], {'role': 'assistant', 'content': answer}], template, bpe)
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
  source = config.Preferences(write(tmp_path / 'p.jsonl', rows), 'plain', held_out=0.0)
  ours = byte_level.ByteTokenizer()  # an answer begins after 21 ids
  with caplog.at_level(logging.WARNING):
    data = open_data(tmp_path, ours, source, context=40)
  assert [record.getMessage() for record in caplog.records] == [
    'data.sources[0] (train): 3 of 6 pairs left out, their answers are equal within context=40',
    'data.sources[0] (train): 1 of 3 pairs are longer than context=40 and are cut']
  assert data.rows_per_epoch == 3
  assert not any(np.array_equal(row['chosen']['targets'], row['rejected']['targets']) for row in data.rows)
  with pytest.raises(ConfigError, match='context = 25: within it all pairs of answers are equal: raise it'):
    open_data(tmp_path, ours, config.Preferences(write(tmp_path / 'q.jsonl', rows[:2]), 'plain', held_out=0.0),
              context=25)


def test_one_stage_has_one_template():
  parts = config.Conversations('a'), config.Jsonl('b'), config.Conversations('c', template='llama3')
  with pytest.raises(ConfigError, match=r"^sources = \['chatml', 'llama3'\]: .*choose one of these for all"):
    config.Data(tuple(map(config.Weighted, parts)))
  assert config.Data(tuple(map(config.Weighted, parts[1:]))).template == 'llama3'


def test_long_pairs_are_cut_at_the_end_or_left_out(folder, bpe, caplog, tmp_path):
  """As trl's DPOTrainer with max_length = context + 1: `keep_start`, and prompts that fill it are dropped."""
  rows = [{'prompt': 'a' * n, 'chosen': 'b' * m, 'rejected': 'c'} for n, m in ((1, 1), (1, 60), (200, 1), (9, 2))]
  source = config.Preferences(write(tmp_path / 'p.jsonl', rows), 'plain', held_out=0.0)
  ours = byte_level.ByteTokenizer()  # `eot User: a\n\nAssistant: b eot`: a prompt of n + 19 ids, an answer of m + 2
  with caplog.at_level(logging.WARNING):
    data = open_data(tmp_path, ours, source, context=40)
  assert [record.getMessage() for record in caplog.records] == [
    'data.sources[0] (train): 1 of 4 pairs left out, their prompt fills context=40',
    'data.sources[0] (train): 1 of 3 pairs are longer than context=40 and are cut']
  kept = list(data.rows)
  assert data.rows_per_epoch == len(kept) == 3
  assert [int(row['chosen']['weights'].sum()) for row in kept] == [2, 41 - 20, 3]
  assert [int(row['rejected']['weights'].sum()) for row in kept] == [2, 2, 2]
  assert data.num_targets == 2 + 21 + 3 + 6
  assert kept[1]['chosen']['segment_ids'].all() and kept[1]['chosen']['targets'][-1] == ord('b')
  with pytest.raises(ConfigError, match=r'^context = 5: no answer begins within it in any of 4 pairs'):
    open_data(tmp_path, ours, source, context=5)


def test_batches_of_pairs(folder, bpe):
  data = open_data(folder, bpe, preferences(folder), context=48)
  source = TrainSource(data, 4)
  whole = [source.next() for _ in range(30)]
  assert all(isinstance(batch, PreferenceBatch) and isinstance(batch.chosen, LanguageModelBatch) for batch in whole)
  for k, batch in enumerate(whole):
    for r in range(4):
      row = data.row(4 * k + r)
      for side in ('chosen', 'rejected'):
        assert all(np.array_equal(getattr(getattr(batch, side), f)[r], row[side][f]) for f in row[side])
  position = json.loads(json.dumps(source.position()))
  following = [source.next() for _ in range(3)]
  source.close()
  again = TrainSource(open_data(folder, bpe, preferences(folder), context=48), 4, prefetch=1, threads=1)
  again.restore(position)
  assert all(jax.tree.all(jax.tree.map(np.array_equal, again.next(), batch)) for batch in following)
  with pytest.raises(ConfigError, match='^context = '):
    TrainSource(open_data(folder, bpe, preferences(folder), context=49), 4).restore(position)
  again.close()
  seen = list(data.tokens_seen(range(5)))
  assert len(seen) == 10 and len(list(data.token_documents())) == len(list(data.byte_documents())) == data.num_documents


def test_held_out_pairs_are_padded_with_weight_zero(folder, bpe):
  data = open_data(folder, bpe, preferences(folder), split='held_out', context=48)
  count = data.rows_per_epoch
  assert 3 < count < 20
  batches = list(held_out_batches(data, count - 1))
  assert len(batches) == 2
  assert sum(float(side.weights.sum()) for b in batches for side in (b.chosen, b.rejected)) == data.num_targets
  assert not batches[1].chosen.segment_ids[1:].any() and not batches[1].rejected.weights[1:].any()


@pytest.mark.parametrize('make', [conversations, preferences])
@pytest.mark.parametrize('processes', [1, 2, 4])
def test_every_process_reads_only_its_rows(make, processes, folder, bpe):
  devices, data = jax.devices()[:8], open_data(folder, bpe, make(folder), context=48)
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
      local = typed(placement.read(8 * k))
      assert jax.tree.all(jax.tree.map(np.array_equal, local, expected))


# ---------------------------------------------------------------------------------------------- what is refused
USER, ANSWER = {'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y'}
GOOD_PAIR = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}


@pytest.mark.parametrize('row, message', [
  ({'messages': [USER]}, 'messages has no assistant turn: nothing to learn'),
  ({'messages': []}, r'messages = \[\]: empty'),
  ({'messages': 'hello'}, "messages = 'str': give a list"),
  ({'messages': [USER, {'role': 'tool', 'content': 'x'}]}, r"messages\[1\]\.role = 'tool': template 'chatml' lacks it"),
  ({'messages': [USER, {'role': 'assistant', 'content': ''}]}, r"messages\[1\]\.content = '': empty"),
  ({'messages': [ANSWER, USER]}, r"messages\[0\]\.role = 'assistant': expected system or user"),
  ({'messages': [USER, {'role': 'assistant', 'content': '\ud800'}]}, 'not Unicode: half of a surrogate pair at 0'),
  ({'text': 'a'}, r"no field 'messages': found \['text'\]"),
  ([1], 'not a JSON object: a list; mend the line'),
])
def test_bad_conversations_name_file_and_line(row, message, bpe, tmp_path):
  refused(config.Conversations(write(tmp_path / 'a.jsonl', [{'messages': [USER, ANSWER]}] * 3 + [row]), held_out=0.0),
          message, bpe, tmp_path)


@pytest.mark.parametrize('row, message', [
  ({**GOOD_PAIR, 'rejected': 'b'}, 'chosen and rejected are equal: nothing is preferred'),
  ({**GOOD_PAIR, 'chosen': ''}, r"prompt \+ chosen\[1\]\.content = '': empty"),
  ({**GOOD_PAIR, 'rejected': []}, r'prompt \+ rejected has no assistant turn'),
  ({**GOOD_PAIR, 'rejected': None}, 'rejected is a NoneType: give a text'),
  ({'prompt': 'a', 'rejected': 'c'}, r"no field 'chosen': found \['prompt', 'rejected'\]"),
  ({'chosen': 'a', 'rejected': 'c'}, "no field 'prompt'"),
  ({**GOOD_PAIR, 'prompt': ''}, r"prompt\[0\]\.content = '': empty"),
  ({**GOOD_PAIR, 'prompt': [USER, ANSWER]}, 'the prompt does not end with the user'),
  ({**GOOD_PAIR, 'prompt': [{'role': 'tool', 'content': 'x'}]}, r"prompt\[0\]\.role = 'tool'"),
  ({**GOOD_PAIR, 'chosen': [USER, ANSWER]}, r"prompt \+ chosen\[1\]\.role = 'user': expected assistant"),
  ({'prompt': [USER], 'chosen': [USER, ANSWER], 'rejected': 'c'}, 'chosen begins with the prompt: leave'),
])
def test_bad_pairs_name_file_and_line(row, message, bpe, tmp_path):
  refused(config.Preferences(write(tmp_path / 'a.jsonl', [GOOD_PAIR] * 3 + [row]), held_out=0.0), message, bpe,
          tmp_path)


def refused(source, message, tokenizer, tmp_path) -> None:
  with pytest.raises(ConfigError, match=rf'^data\.sources\[0\]\.source\.path = .*a\.jsonl:4\D.*{message}') as caught:
    open_data(tmp_path, tokenizer, source)
  assert '\n' not in str(caught.value)


def test_answers_that_the_template_makes_equal(tmp_path):
  row = json.dumps({**GOOD_PAIR, 'rejected': ' b\n'}).encode()
  assert dialogues.read_preference(row, 'x', config.Preferences('p', 'chatml'))
  with pytest.raises(ConfigError, match='are equal'):
    dialogues.read_preference(row, 'x', config.Preferences('p', 'llama3'))


def test_a_template_without_its_tokens_is_refused(folder):
  with pytest.raises(ConfigError, match=r"^data\.sources\[0\]\.source\.template = 'chatml': the tokenizer lacks"):
    open_data(folder, byte_level.ByteTokenizer(), conversations(folder))
