"""Search by vectors against NumPy, vectors of a model against its states, and indices that do not fit."""
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import retrieve
from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.retrieve.dense import Dense
from llm_jax.retrieve.embed import WordLlama
from llm_jax.retrieve.index import VECTORS, Index, Vectors, embedded, load, save
from llm_jax.retrieve.passages import Passage
from llm_jax.retrieve.ranking import fuse
from llm_jax.retrieve.states import OwnStates
from tests.launch.sample_runs import MODEL, params, write_run
from tests.modules.decoders import DECODERS, make_params

SCANNED = Execution(unroll=False, kernels='xla')  # compiles faster
SENTENCES = ('The physician examined the sick child.', 'Stocks fell sharply after the announcement.',
             'A recipe for bread with rye flour.', 'The orchestra played a symphony by Mahler.')


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Texts that are numbers of rows."""
  rows: np.ndarray
  name = 'numbers'
  fingerprint = 'f'

  def __call__(self, texts):
    return self.rows[[int(text) for text in texts]]


def test_the_nearest_are_those_of_numpy():
  rng = np.random.default_rng(0)
  vectors = (rng.normal(size=(500, 24)) + 3).astype(np.float32)  # which have much in common
  questions = (rng.normal(size=(50, 24)) + 3).astype(np.float32)
  found = Dense(vectors, Numbers(questions)).search_all([str(i) for i in range(50)], 10)
  moved, wanted = vectors - vectors.mean(0), questions - vectors.mean(0)
  cosines = (wanted @ moved.T) / np.linalg.norm(moved, axis=1) / np.linalg.norm(wanted, axis=1, keepdims=True)
  assert found == np.argsort(-cosines, axis=1)[:, :10].tolist()
  assert len(Dense(vectors[:3], Numbers(questions)).search_all(['0'], 10)[0]) == 3
  assert Dense(vectors, Numbers(questions)).search_all([], 10) == []


@pytest.mark.parametrize('name', ['two lengths', pytest.param('local-global', marks=pytest.mark.slow)])
def test_vectors_are_the_mean_states_of_a_text_alone(name):
  config, weights = DECODERS[name], make_params(DECODERS[name])
  texts = ['ab', 'a longer text than that', '', 'x' * 40]
  tokenizer = ByteTokenizer()
  embed = OwnStates(config, weights, tokenizer, 'w', longest=30, batch_size=3, execution=SCANNED)
  small = lambda ids: [token % config.vocab_size for token in ids]
  tokenizer_ids = lambda text: [tokenizer.eot, *text.encode()][:30]
  with pytest.MonkeyPatch.context() as patch:  # the decoder's vocabulary is smaller than bytes
    patch.setattr(ByteTokenizer, 'encode', lambda self, text: np.array(small(text.encode()), np.int32))
    patch.setattr('llm_jax.retrieve.states.opened', lambda _, ids: small([tokenizer.eot, *map(int, ids)]))
    found = embed(texts)
  for text, vector in zip(texts, found, strict=True):
    ids = jnp.array([small(tokenizer_ids(text))])
    model = Transformer(config.at_length(ids.shape[1]), SCANNED)
    apply = jax.jit(functools.partial(model.apply, method='forward'))
    states = apply({'params': weights}, ids, None, None, None)[0]
    np.testing.assert_allclose(vector, states[0].mean(0), atol=2e-5)


def test_a_package_with_its_own_weights_knows_what_means_the_same():
  dense = Dense(WordLlama()(SENTENCES), WordLlama())
  found = dense.search_all(['Doctors and patients', 'share prices', 'baking', 'classical music'], 1)
  assert found == [[0], [1], [2], [3]]


def made(embed, texts=SENTENCES):
  passages = tuple(Passage('a', i, text) for i, text in enumerate(texts))
  return Index(passages, 'texts', embedded(passages, embed))


def test_an_index_keeps_its_vectors_and_refuses_others(tmp_path):
  index = made(WordLlama())
  save(tmp_path, index)
  found = load(tmp_path)
  np.testing.assert_array_equal(found.vectors.array, index.vectors.array)
  question = ['Doctors and patients']
  words, meaning = (found.retriever(method, WordLlama()).search_all(question, 4) for method in ('bm25', 'dense'))
  assert found.retriever('fused', WordLlama()).search_all(question, 4) == [fuse([words[0], meaning[0]], 4)]
  other = dataclasses.replace(found, vectors=Vectors(index.vectors.array, 'wordllama', 'of another version'))
  with pytest.raises(ConfigError, match='of another model or another version: build it again'):
    other.retriever('dense', WordLlama())
  with pytest.raises(ConfigError, match='the index allows bm25'):
    dataclasses.replace(found, vectors=None).retriever('fused')
  content = bytearray((tmp_path / VECTORS).read_bytes())
  content[-1] ^= 1
  (tmp_path / VECTORS).write_bytes(content)
  with pytest.raises(ConfigError, match='are not those that were saved'):
    load(tmp_path)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


def call(capsys, *flags):
  assert retrieve.main([str(flag) for flag in flags]) == 0
  return capsys.readouterr().out


def refused(capsys, *flags):
  with pytest.raises(SystemExit) as stop:
    retrieve.main([str(flag) for flag in flags])
  assert stop.value.code == 2
  return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_index_by_the_states_of_a_checkpoint(workdir, tmp_path, capsys):
  texts = tmp_path / 'texts.jsonl'
  texts.write_text(''.join(json.dumps({'text': text}) + '\n' for text in SENTENCES))
  model, index = f'--checkpoint={workdir}', f'--index={tmp_path}/i'
  call(capsys, '--build', f'--texts={texts}', index, model, '--embed=states')
  vectors = load(tmp_path / 'i').vectors
  ids = jnp.array([[256, *SENTENCES[0].encode()]])
  states = jax.jit(lambda: Transformer(MODEL).apply({'params': params(5)}, ids, None, None, None, method='forward'))()
  np.testing.assert_allclose(vectors.array[0], states[0][0].mean(0), atol=1e-4)
  out = call(capsys, index, model, f'--query={SENTENCES[2]}', '--method=dense', '--top=1')
  assert out.splitlines()[-1] == SENTENCES[2]
  assert 'name it' in refused(capsys, index, '--query=a')
  assert 'build it again' in refused(capsys, index, model, '--step=3', '--query=a')

  questions = tmp_path / 'questions.jsonl'
  questions.write_text(json.dumps({'question': 'Who fell?', 'answer': 'Stocks'}) + '\n' +
                       json.dumps({'question': 'rye bread', 'answer': 'flour', 'evidence': SENTENCES[2]}))
  out = call(capsys, index, model, f'--questions={questions}').splitlines()
  assert out[0] == '2 questions, 4 passages' and out[2].startswith('bm25    1.000')
  assert [line.split()[0] for line in out[2:5]] == ['bm25', 'dense', 'fused']
  assert [line.split()[0] for line in out[6:]] == ['no', 'random', 'retrieved', 'gold']
  assert call(capsys, index, f'--questions={questions}', '--method=bm25').splitlines()[2].startswith('bm25    1.000')
  questions.write_text(json.dumps({'question': 'Who?', 'answer': 'nobody'}))
  assert 'is in no passage' in refused(capsys, index, f'--questions={questions}')
