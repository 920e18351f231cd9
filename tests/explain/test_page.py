"""The page: whole in itself, of a bounded size, and with the numbers of the model."""
import base64
import json
import shutil
import subprocess
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import explain as command
from llm_jax.config.experiment import presets
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.decode.sampling import Sampling, distribution
from llm_jax.explain.explanation import Explanation, token_text, tokens_that_fit
from llm_jax.explain.lens import TEMPERATURES, Reading, candidates, lens
from llm_jax.explain.page import make_page
from llm_jax.explain.script import SCRIPT
from llm_jax.explain.slots import cache_slots
from llm_jax.explain.trace import LayerTrace, Trace, trace
from llm_jax.modules.cache import CacheBytes
from tests.hf import hf_models
from tests.launch.sample_runs import MODEL, params, write_run
from tests.report.html_page import HOSTILE, Page


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run') / 'work'
  folder.mkdir()
  return write_run(folder)


@pytest.fixture(scope='module')
def page(workdir, tmp_path_factory):
  """The page of two steps of a run, about a text that must do it no harm."""
  path = tmp_path_factory.mktemp('page') / 'page.html'
  flags = [f'--checkpoint={workdir}', f'--against={workdir}', '--against_stage=first', '--against_step=3']
  assert command.main([*flags, f'--text={HOSTILE[:40]}\n a', f'--out={path}']) == 0
  return Page(path.read_text(encoding='utf-8'))


def data_of(page):
  return json.loads(next(text for tag, text in page.texts if tag == 'script'))


def test_it_loads_nothing_and_runs_its_own_script_alone(page):
  [policy] = page.all('meta', **{'http-equiv': 'Content-Security-Policy'})
  assert policy['content'].startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
  assert not any('src' in attributes or 'href' in attributes for _, attributes in page.tags)
  assert len(page.all('script')) == 2 and not page.all('img') and len(page.all('canvas')) == 4


def test_its_numbers_are_those_of_the_model(page, workdir):
  newer, older = data_of(page)
  assert newer['tokens'] == older['tokens'] == [256, *HOSTILE[:40].encode(), *b'\n a']
  want = trace(MODEL, params(5), newer['tokens'])
  [layer] = want.layers
  packed = np.frombuffer(zlib.decompress(base64.b64decode(newer['weights'])), np.uint8)
  time = len(newer['tokens'])
  assert packed.size == 2 * time * (time + 1) // 2
  got = (packed / 255) ** 2
  np.testing.assert_allclose(got, layer.weights_HTS[:, np.tril(np.ones((time, time), bool))].flatten(), atol=0.004)
  np.testing.assert_allclose(newer['attention'][0], np.linalg.norm(layer.attention_TD, axis=-1), rtol=1e-3)
  assert newer['attention'] != older['attention']


def test_two_models_are_compared_token_by_token(page):
  """The last column is the difference of log-probabilities, here of the model itself."""
  text = ' '.join(page.text('td').split())
  tokens = data_of(page)[0]['tokens']
  means = []
  for seed in (5, 3):
    log_probs = jax.nn.log_softmax(trace(MODEL, params(seed), tokens).logits_TV[:-1])
    means.append(float(jnp.take_along_axis(log_probs, jnp.array(tokens[1:])[:, None], axis=-1).mean()))
  assert f'mean {means[0]:.3f} {means[1]:.3f} {means[1] - means[0]:+.3f}' in text


def test_it_prints_its_own_check(workdir, tmp_path, capsys):
  assert command.main([f'--checkpoint={workdir}', '--text=abc def', '--max_tokens=4',
                       f'--out={tmp_path / "page.html"}']) == 0
  out, err = capsys.readouterr()
  line = out.splitlines()[0]
  assert 'weights · values · W_o = what attention added, to ' in line
  assert float(line.partition(', to ')[2].split()[0]) <= 1e-6
  assert 'the first 4 tokens are shown, 4 are left out' in err


def test_a_notebook_shows_it(workdir):
  shown = command.show(workdir, 'abc')._repr_html_()
  [frame] = Page(shown).all('iframe')
  assert frame['srcdoc'].startswith('<!DOCTYPE html>')


@pytest.mark.parametrize('flags, message', [
  (['--text='], '--text'), (['--text=a', '--max_tokens=0'], '--max_tokens'), (['--text=a', '--out=no/x.html'], '--out'),
  (['--text=a', '--against_step=3'], '--against_step'), (['--text=a', '--checkpoint=nowhere'], 'nowhere')])
def test_wrong_flags_are_one_line(flags, message, workdir, capsys):
  with pytest.raises(SystemExit) as stop:
    command.main([f'--checkpoint={workdir}', *flags])
  error = capsys.readouterr().err
  assert stop.value.code == 2 and error.count('\n') == 1 and message in error


def noise(layers, heads, time, vocabulary=5_000):
  """An explanation of random numbers, which compress worst."""
  random = np.random.default_rng(0)
  config = presets.gpt2(heads * 4, layers, heads, vocab_size=vocabulary, max_length=time)
  [block] = config.pattern
  vectors = lambda: random.normal(size=(time, 8)).astype(np.float32)
  made = []
  for _ in range(layers):
    weights = np.tril(random.random((heads, time, time)))
    weights /= weights.sum(-1, keepdims=True)
    made.append(LayerTrace(block, weights, None, random.random((heads, time)), vectors(), vectors(), vectors(), None,
                           None, None, 0.0))
  found = Trace(random.integers(0, vocabulary, time), vectors(), tuple(made), vectors(),
                random.normal(size=(time, vocabulary)).astype(np.float32))
  reading = lambda: random_reading(random, time, vocabulary)
  texts = {token: f' word{token}' for token in range(vocabulary)}
  return Explanation('noise', found, tuple(reading() for _ in range(layers + 1)), candidates(found.logits_TV),
                     cache_slots(config, time), CacheBytes(1, 1), texts)


def random_reading(random, time, vocabulary):
  return Reading(random.integers(0, vocabulary, time), random.random(time), random.integers(1, vocabulary, time),
                 -random.random(time))


def test_64_tokens_of_12_layers_with_12_heads_are_less_than_a_megabyte():
  assert len(make_page([noise(12, 12, 64)]).source.encode()) < 1_000_000


def test_longer_texts_are_cut_where_the_page_would_grow():
  config = lambda layers, heads: presets.gpt2(heads * 4, layers, heads, vocab_size=300, max_length=1_000)
  assert [tokens_that_fit(config(*shape)) for shape in ((2, 4), (12, 12), (32, 32))] == [128, 74, 27]
  assert tokens_that_fit(config(32, 32), 500) == 500 and tokens_that_fit(config(1, 1), 2_000) == 1_000


# ------------------------------------------------------------------------------------------- its parts
def test_the_lens_ends_in_the_models_own_prediction():
  config, weights = hf_models.to_ours(hf_models.make(hf_models.CASES['gpt_oss']))
  found = trace(config, weights, np.asarray(hf_models.batch().tokens)[0].tolist())
  readings = lens(config, weights, found)
  assert len(readings) == config.num_layers + 1
  log_probs = np.asarray(jax.nn.log_softmax(found.logits_TV))
  np.testing.assert_array_equal(readings[-1].top_T, found.logits_TV.argmax(-1))
  for place, token in enumerate(found.tokens_T[1:]):
    np.testing.assert_allclose(readings[-1].next_log_prob_T[place], log_probs[place, token], atol=1e-5)
    assert readings[-1].rank_T[place] == 1 + (found.logits_TV[place] > found.logits_TV[place, token]).sum()


def test_slots_of_a_window_roll():
  config, _ = hf_models.to_ours(hf_models.make(hf_models.CASES['gpt_oss']))
  rolling, whole = cache_slots(config, 20)
  assert (rolling.layers, whole.layers) == ((0,), (1,))
  assert rolling.positions_TU[:, 0].tolist() == [0] * 7 + [7] * 7 + [14] * 6  # the window is 7
  assert sorted(rolling.positions_TU[19]) == list(range(13, 20))
  assert whole.positions_TU[4].tolist() == [0, 1, 2, 3, 4] + [-1] * 15


def test_tokens_as_text():
  tokenizer = ByteTokenizer()
  assert [token_text(tokenizer, token) for token in (97, 0xe2)] == ['a', '\\xe2']
  unknown = types.SimpleNamespace(decode_bytes=lambda ids: [][ids[0]])
  assert token_text(unknown, 5) == '#5'


@pytest.mark.parametrize('temperature, top_k, top_p', [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.6, 0, 0.5), (1.0, 20, 0.9),
                                                       (0.3, 64, 0.95)])
def test_the_page_draws_as_the_sampler_does(temperature, top_k, top_p):
  node = shutil.which('node')
  if node is None:
    pytest.skip('needs node, which runs the script of the page')
  logits = np.random.default_rng(1).normal(scale=2, size=(1, 300)).astype(np.float32)
  drawn = candidates(logits)
  arguments = json.dumps([drawn.logits_TN[0].tolist(), float(drawn.rest[0, TEMPERATURES.index(temperature)]),
                          temperature, top_k, top_p])
  program = f'{SCRIPT}\nconsole.log(JSON.stringify(distribution(...{arguments})));'
  got = json.loads(subprocess.run([node, '-e', program], capture_output=True, text=True, check=True).stdout)
  want = distribution(jnp.asarray(logits), Sampling(temperature, top_k or None, top_p))[0]
  assert got['isExact']
  kept = {int(drawn.tokens_TN[0, i]): p for i, p in got['kept']}
  for token, p in kept.items():
    assert abs(p - float(want[token])) <= 1e-5
  assert abs(got['share'] - float(want.sum() - sum(want[token] for token in kept))) <= 1e-5
