"""BM25 against rank_bm25; passages; the command."""
import json

import numpy as np
import pytest
import rank_bm25

from launch import retrieve
from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.retrieve.bm25 import BM25, words
from llm_jax.retrieve.index import PASSAGES, Index, load, save
from llm_jax.retrieve.passages import cut
from llm_jax.retrieve.ranking import fuse, recall


def corpus(count=60):
  random = np.random.default_rng(0)
  vocabulary = np.array([f'w{i}' for i in range(40)])
  share = 1 / np.arange(1, 41)
  return [' '.join(random.choice(vocabulary, random.integers(3, 40), p=share / share.sum())) for _ in range(count)]


def test_scores_are_those_of_rank_bm25():
  texts = corpus()
  ours, theirs = BM25(texts), rank_bm25.BM25Okapi([words(text) for text in texts])
  for question in ('w0 w5 w30', 'w1 w1 nowhere', 'w39', 'W7, w8!'):
    want = theirs.get_scores(words(question))
    np.testing.assert_allclose(ours.scores(question), want, rtol=0, atol=1e-12)
    assert ours.search(question, 5) == np.argsort(-want, kind='stable')[:5].tolist()
  assert not ours.scores('nowhere').any()


def test_planted_facts_are_found():
  texts = corpus(200)
  places = list(range(0, 200, 10))
  for number, place in enumerate(places):
    texts[place] += f' the code of city{number} is {number * 37}'
  bm25 = BM25(texts)
  found = [bm25.search(f'City{number}?', 1) for number in range(20)]
  assert recall(found, [{place} for place in places]) == 1
  assert recall(found, [{place, 199} for place in places[::-1]]) == 0


def test_fusion_of_rankings():
  assert fuse([[3, 1, 2], [1, 3, 5]], 3) == [1, 3, 2]
  assert fuse([[1, 2], [1, 4]], 2) == [1, 2]


def test_passages_overlap_and_lose_nothing():
  text = ''.join(chr(97 + i % 26) for i in range(100))
  passages = cut([('a', text), ('b', ''), ('c', 'short')], ByteTokenizer(), 40, 10)
  assert [(passage.source, passage.start) for passage in passages] == [('a', 0), ('a', 30), ('a', 60), ('c', 0)]
  assert all(passage.text == text[passage.start:passage.start + 40] for passage in passages[:3])


def test_a_changed_index_is_refused(tmp_path):
  save(tmp_path, Index(tuple(cut([('a', 'one two three')], ByteTokenizer(), 6, 2)), 'a'))
  assert load(tmp_path, 'a').texts[0] == 'one tw'
  with pytest.raises(ConfigError, match='have changed since'):
    load(tmp_path, 'b')
  path = tmp_path / PASSAGES
  path.write_text(path.read_text().replace('one', 'two'))
  with pytest.raises(ConfigError, match='build it again'):
    load(tmp_path)


def test_the_command(tmp_path, capsys):
  texts = tmp_path / 'texts.jsonl'
  texts.write_text('\n'.join(json.dumps({'text': text}) for text in (*corpus(20), 'the cat sat on the mat')))
  assert retrieve.main(['--build', f'--texts={texts}', f'--index={tmp_path / "i"}', '--query=where sat the cat?',
                        '--top=1']) == 0
  *_, where, text = capsys.readouterr().out.splitlines()
  assert where.endswith('texts.jsonl:21, token 0') and text == 'the cat sat on the mat'
  again = [f'--texts={texts}', f'--index={tmp_path / "i"}', '--query=cat']
  assert retrieve.main(again) == 0
  with pytest.raises(SystemExit):
    retrieve.main([*again, '--overlap=31'])
  assert 'have changed since: build it again' in capsys.readouterr().err


@pytest.mark.parametrize('flags, message', [([], '--query'), (['--build'], '--texts'),
                                            (['--query=a', '--top=0'], '--top'), (['--query=a'], 'build it first'),
                                            (['--query=a', '--embed=states'], 'is of --build'),
                                            (['--build', '--texts=a', '--embed=states'], 'needs the model')])
def test_wrong_flags_are_one_line(flags, message, capsys, tmp_path):
  with pytest.raises(SystemExit) as stop:
    retrieve.main([f'--index={tmp_path}', *flags])
  error = capsys.readouterr().err
  assert stop.value.code == 2 and error.count('\n') == 1 and message in error
