"""Conversations from their rows to data, and the stores of both kinds of dialogue: what counts and what is refused."""
import collections
import gzip
import itertools
import json
import logging

import numpy as np
import pytest

from llm_jax.batch import LanguageModelBatch
from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data import dataset, token_store
from llm_jax.data.packing import chats
from llm_jax.data.sources import dialogues, documents
from llm_jax.data.tokenizers import byte_level, chat_templates
from tests.data.dialogue_files import (
  ANSWERS,
  QUESTIONS,
  conversations,
  dialogue,
  open_data,
  preferences,
  train_tokenizer,
  write,
  write_files,
)
from tests.data.test_token_store import files


@pytest.fixture(scope='module')
def bpe():
  return train_tokenizer()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_files(tmp_path_factory.mktemp('dialogues'))


def counted_pairs(row) -> list[tuple[int, int]]:
  counted = row['weights'] == 1
  assert set(np.unique(row['weights'])) <= {0, 1}
  return list(zip(row['tokens'][counted].tolist(), row['targets'][counted].tolist(), strict=True))


# ---------------------------------------------------------------------------------------------- conversations
@pytest.mark.parametrize('packing', ['concat', 'best_fit'])
@pytest.mark.parametrize('seq_len', [16, 256])
def test_only_what_the_assistant_says_is_learnt_and_each_of_it_once(packing, seq_len, folder, bpe):
  expected = collections.Counter()
  for i in range(40):
    ids, counts = chat_templates.render(dialogue(i), 'chatml', bpe)
    expected.update((int(ids[j - 1]), int(ids[j])) for j in np.flatnonzero(counts))
  found, targets = collections.Counter(), 0
  for split in ('train', 'validation'):
    data = open_data(folder, bpe, conversations(folder), split=split, seq_len=seq_len, packing=packing)
    for row in data.rows:
      found.update(counted_pairs(row))
    documents = list(data.byte_documents())
    assert data.num_bytes == sum(map(len, documents)) and data.num_documents == len(documents)
    assert data.num_targets == sum(int(row['weights'].sum()) for row in data.rows)
    assert isinstance(data.to_batch(data.padding), LanguageModelBatch)
    assert all(ids[0] == bpe.special_ids['<|im_start|>'] for ids in data.token_documents())
    targets += data.num_targets
  assert found == expected and targets == expected.total()


def test_answers_are_the_bytes_that_are_learnt(folder, bpe):
  texts = [text for split in ('train', 'validation')
           for text in open_data(folder, bpe, conversations(folder), split=split).byte_documents()]
  said = [''.join(m['content'] for m in dialogue(i) if m['role'] == 'assistant').encode() for i in range(40)]
  assert sorted(texts) == sorted(said)


def test_mixed_with_text(folder, bpe):
  text = config.Jsonl(str(folder / 'text.jsonl'), val_fraction=0.25)
  mixed, alone = open_data(folder, bpe, text, conversations(folder)), open_data(folder, bpe, text)
  assert mixed.num_targets == alone.num_targets + open_data(folder, bpe, conversations(folder)).num_targets
  rows = [mixed.row(i) for i in range(20)]
  used = [row['weights'].sum() / (row['segment_ids'] > 0).sum() for row in rows]
  assert sum(share == 1 for share in used) == 10 and all(share < 0.8 for share in used if share < 1)
  seen = collections.Counter(pair for ids in mixed.tokens_seen(range(20)) for pair in itertools.pairwise(ids.tolist()))
  assert sum((collections.Counter(counted_pairs(row)) for row in rows), collections.Counter()) <= seen
  assert len(list(mixed.token_documents())) == len(list(mixed.byte_documents())) == mixed.num_documents


def test_conversations_longer_than_the_context_are_counted(folder, bpe, caplog):
  lengths = [len(chat_templates.render(dialogue(i), 'chatml', bpe)[0]) for i in range(40)]
  seq_len = int(np.median(lengths))
  with caplog.at_level(logging.WARNING):
    open_data(folder, bpe, conversations(folder, val_fraction=0.0), seq_len=seq_len)
    open_data(folder, bpe, conversations(folder, val_fraction=0.0), seq_len=1_000)
  longer = sum(length > seq_len + 1 for length in lengths)
  assert 0 < longer < 40
  assert [record.getMessage() for record in caplog.records] == [
    f'data.sources[0] (train): {longer} of 40 conversations are longer than seq_len={seq_len} and are cut']


def test_conversations_that_rows_cut_are_counted(folder, bpe, caplog):
  """Under 'concat' a row may end inside any of them, and what is said then stands in a row without its question."""
  with caplog.at_level(logging.WARNING):
    [rows] = open_data(folder, bpe, conversations(folder, val_fraction=0.0),
                       seq_len=150, packing='concat').parts.values()
  lengths = np.diff(rows.store.offsets)
  pieces = collections.Counter(document for row in range(len(rows)) for document, start, _ in rows.packing.pieces(row)
                               if start < lengths[document] - 1)  # else it is the last token, which predicts nothing
  cut = sum(count > 1 for count in pieces.values())
  assert 5 < cut < 30 and max(lengths) < 150 and len(pieces) == 40
  assert [record.getMessage() for record in caplog.records] == [
    f'data.sources[0] (train): {cut} of 40 conversations go on in another row of seq_len=150, where answers lack their '
    "questions: use packing='best_fit'"]


def test_compressed_rows_under_another_field(folder, bpe, tmp_path):
  rows = b''.join(json.dumps({'turns': dialogue(i)}).encode() + b'\n' for i in range(8))
  (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(rows))
  source = config.Conversations(str(tmp_path / 'a.jsonl.gz'), field='turns', val_fraction=0.0)
  assert open_data(tmp_path, bpe, source).num_documents == 8


def test_a_single_conversation_is_not_divided(bpe, tmp_path):
  write(tmp_path / 'one.jsonl', [{'messages': dialogue(1)}])
  source = documents.open_source(config.Conversations(str(tmp_path / 'one.jsonl'), val_fraction=0.5), tmp_path)
  found = [document for split in ('train', 'validation') for _, document in source.documents(split)]
  assert found == [chats.Dialogue(dialogue(1))]


def test_tokenizers_are_trained_on_what_is_said(folder):
  for source, said in ((conversations(folder, val_fraction=0.0), '\n'.join(m['content'] for m in dialogue(3))),
                       (preferences(folder, val_fraction=0.0), 
                        '\n'.join([QUESTIONS[1], ANSWERS[1], 'No idea about 1.']))):
    texts = list(dataset.training_texts(config.Data((config.Weighted(source),)), folder / 'cache'))
    assert said in texts and len(texts) == 40


# ---------------------------------------------------------------------------------------------- their store
def test_stores_of_text_are_named_as_before(folder, bpe):
  """Their fingerprint is built of what it always was: caches stay valid."""
  from llm_jax.data import fingerprints
  source = documents.open_source(config.Jsonl(str(folder / 'text.jsonl')), folder / 'cache')
  store = token_store.open_store(source, 'train', bpe, folder / 'cache')
  assert store.counts is None and store.fingerprint == fingerprints.of({
    'format': 1, 'source': source.fingerprint, 'split': 'train', 'val_fraction': 0.01, 'tokenizer': bpe.fingerprint})
  assert not (folder / 'cache' / 'tokens' / store.fingerprint[:32] / 'counts').exists()


def test_every_option_has_a_store_of_its_own(folder, bpe, monkeypatch):
  opened = [conversations(folder), conversations(folder, template='plain'), preferences(folder),
            preferences(folder, template='plain'), preferences(folder, mask_formatting=False)]
  stores = [token_store.open_store(documents.open_source(source, folder / 'cache'), 'train', bpe, folder / 'cache')
            for source in opened]
  monkeypatch.setattr(chat_templates, 'FORMAT', chat_templates.FORMAT + 1)
  newer = token_store.open_store(documents.open_source(opened[0], folder / 'cache'), 'train', bpe, folder / 'cache')
  assert len({store.fingerprint for store in (*stores, newer)}) == 6
  assert all(len(store.counts) == store.num_tokens == len(store.tokens) for store in stores)


@pytest.mark.parametrize('make', [conversations, preferences])
def test_a_build_that_was_killed_goes_on(make, folder, bpe, tmp_path, monkeypatch):
  monkeypatch.setattr(token_store, 'BATCH_BYTES', 200)
  calls = 0

  def build(cache) -> int:
    read, source = [], documents.open_source(make(folder, val_fraction=0.0), cache)
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
  source = documents.open_source(conversations(folder), tmp_path)
  counts = np.array(token_store.open_store(source, 'train', bpe, tmp_path).counts)
  [file] = (tmp_path / 'tokens').rglob('counts')
  file.write_bytes(file.read_bytes()[:-1] + b'\1')
  assert np.array_equal(token_store.open_store(source, 'train', bpe, tmp_path).counts, counts)


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
  ([1], 'not a JSON object: a list; correct the line'),
])
def test_bad_conversations_name_file_and_line(row, message, bpe, tmp_path):
  refused(config.Conversations(write(tmp_path / 'a.jsonl', [{'messages': [USER, ANSWER]}] * 3 + [row]),
  val_fraction=0.0),
          message, bpe, tmp_path)


@pytest.mark.parametrize('row, message', [
  ({'messages': [USER, ANSWER], 'tools': [{'name': 'add'}]}, "tools = .*template 'chatml' does not write them"),
  ({'messages': [USER, ANSWER], 'tools': 'add'}, 'tools is no JSON'),
  ({'messages': [USER, ANSWER], 'tools': 3}, 'tools is a int: give a list'),
  ({'messages': [USER, ANSWER], 'system': 3}, 'system is a int: give a text'),
  ({'messages': [{'role': 'system', 'content': 'x'}, USER, ANSWER], 'system': 'y'}, 'system stands beside a system'),
  ({'messages': [USER, {**ANSWER, 'tool_calls': [{'name': 'add'}]}]},
   r"messages\[1\]\.tool_calls = .*template 'chatml' does not write it"),
  ({'messages': [USER, {**ANSWER, 'reasoning_content': 'hm'}]}, r'messages\[1\]\.reasoning_content = '),
])
def test_what_the_template_does_not_write_is_refused_by_name(row, message, bpe, tmp_path):
  rows = [{'messages': [USER, ANSWER], 'tools': None, 'system': ' '}] * 3
  refused(config.Conversations(write(tmp_path / 'a.jsonl', [*rows, row]), val_fraction=0.0), message, bpe, tmp_path)


def test_a_row_s_system_is_its_first_message(bpe, tmp_path):
  path = write(tmp_path / 'a.jsonl', [{'system': 'Be brief.', 'messages': [USER, ANSWER]}])
  data = open_data(tmp_path, bpe, config.Conversations(path, val_fraction=0.0))
  [ids] = data.token_documents()
  expected = [{'role': 'system', 'content': 'Be brief.'}, USER, ANSWER]
  assert ids.tolist() == chat_templates.render(expected, 'chatml', bpe)[0].tolist()


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
  refused(config.Preferences(write(tmp_path / 'a.jsonl', [GOOD_PAIR] * 3 + [row]), val_fraction=0.0), message, bpe,
          tmp_path)


def refused(source, message, tokenizer, tmp_path) -> None:
  with pytest.raises(ConfigError, match=rf'^data\.sources\[0\]\.source\.path = .*a\.jsonl:4\D.*{message}') as caught:
    open_data(tmp_path, tokenizer, source)
  assert '\n' not in str(caught.value)


def test_one_stage_has_one_template():
  parts = config.Conversations('a'), config.Jsonl('b'), config.Conversations('c', template='llama3')
  with pytest.raises(ConfigError, match=r"^sources = \['chatml', 'llama3'\]: .*choose one of these for all"):
    config.Data(tuple(map(config.Weighted, parts)))
  assert config.Data(tuple(map(config.Weighted, parts[1:]))).template == 'llama3'


def test_answers_that_the_template_makes_equal(tmp_path):
  row = json.dumps({**GOOD_PAIR, 'rejected': ' b\n'}).encode()
  assert dialogues.read_preference(row, 'x', 'chatml')
  with pytest.raises(ConfigError, match='are equal'):
    dialogues.read_preference(row, 'x', 'llama3')


def test_a_template_without_its_tokens_is_refused(folder):
  with pytest.raises(ConfigError, match=r"^data\.sources\[0\]\.source\.template = 'chatml': the tokenizer lacks"):
    open_data(folder, byte_level.ByteTokenizer(), conversations(folder))
