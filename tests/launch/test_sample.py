"""launch.sample: text from a checkpoint, and one line for everything that can be wrong."""
import contextlib
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from launch import runtime, sampler, streaming
from launch.saved_models import find_checkpoint, read_params
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.experiment import Bytes
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.decode.beam import beam_search
from llm_jax.decode.generate import generate
from llm_jax.decode.sampling import Greedy, Sampling
from llm_jax.tracking.run_config import read_config
from tests.checkpoints.checkpoint_states import assert_same, make_metadata
from tests.launch.sample_runs import MODEL, call, decode, params, text_of, write_run


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


def test_continues_the_prompt_with_the_average(workdir, capsys):
  assert call(workdir, '--prompt=def ', '--temperature=0', '--max_new_tokens=12') == 0
  out, err = capsys.readouterr()
  assert out == f'def {text_of(params(5), "def ", 12)}\n'
  assert '00000005, averaged parameters' in err


@pytest.mark.parametrize('flag', ['--prompt=ab', '--beams=2', '--log_probs', '--draft'])
def test_computes_in_the_dtype_that_is_asked_for(workdir, capsys, monkeypatch, flag):
  dtypes = []

  def spy(decode):
    def run(*args, execution, **kwargs):
      dtypes.append(execution.compute_dtype)
      if flag != '--prompt=ab':
        raise SystemExit(0)  # one kind is enough to decode
      return decode(*args, execution=execution, **kwargs)
    return run

  for name in ('generate', 'stream', 'beam_search', 'stream_speculated'):
    monkeypatch.setattr(sampler, name, spy(getattr(sampler, name)))
  flag = f'--draft={workdir}' if flag == '--draft' else flag
  for dtype in ((), ('--dtype=bfloat16',)):
    with contextlib.suppress(SystemExit):
      assert call(workdir, '--prompt=ab', '--max_new_tokens=4', flag, *dtype) == 0
  assert dtypes == [jnp.float32, jnp.bfloat16]


def test_another_step(workdir, capsys):
  assert call(workdir, '--prompt=é', '--temperature=0', '--max_new_tokens=12', '--stage=first', '--step=3') == 0
  assert capsys.readouterr().out == f'é{text_of(params(3), "é", 12)}\n'


def test_seed_decides_and_samples_differ(workdir, capsys):
  outputs = []
  for seed in (1, 1, 2):
    call(workdir, '--prompt=a', '--max_new_tokens=12', f'--seed={seed}', '--num_samples=2')
    outputs.append(capsys.readouterr().out)
  assert outputs[0] == outputs[1] != outputs[2]
  _, first, second = outputs[0].split('--- sample ')
  assert first[1:] != second[1:]


def test_sampling_flags(workdir, capsys):
  flags = ['--prompt=a', '--max_new_tokens=12', '--temperature=1.5', '--min_p=0.02', '--repetition_penalty=1.3']
  assert call(workdir, *flags, '--seed=3') == 0
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0)
  sampling = Sampling(1.5, min_p=0.02, repetition_penalty=1.3)
  assert capsys.readouterr().out == f'a{text_of(params(5), "a", 12, sampling, key)}\n'
  assert call(workdir, '--prompt=a', '--max_new_tokens=12', '--temperature=0', '--repetition_penalty=1.3') == 0
  assert capsys.readouterr().out == f'a{text_of(params(5), "a", 12, Greedy(1.3))}\n'


def test_beams(workdir, capsys):
  assert call(workdir, '--prompt=a', '--max_new_tokens=6', '--beams=3', '--num_samples=2') == 0
  [found] = beam_search(MODEL, params(5), [[256, 97]], 6, 3, stop_tokens=(256,)).tokens
  assert capsys.readouterr().out == ''.join(
      f'--- sample {i + 1}\na{decode(tokens)}\n' for i, tokens in enumerate(found[:2]))


def test_a_draft_changes_nothing(workdir, capsys):
  flags = ['--prompt=def ', '--temperature=0', '--max_new_tokens=12']
  assert call(workdir, *flags, f'--draft={workdir}', '--draft_tokens=3') == 0
  out, err = capsys.readouterr()
  assert out == f'def {text_of(params(5), "def ", 12)}\n' and err.count('averaged parameters') == 2


def test_log_probs(workdir, capsys):
  assert call(workdir, '--prompt=a', '--temperature=0', '--max_new_tokens=3', '--log_probs') == 0
  out = generate(MODEL, params(5), [[256, 97]], 3, stop_tokens=(256,), log_probs=True)
  expected = [f'{p:9.4f}  {decode([token])!r}' for token, p in zip(out.tokens[0], out.log_probs[0], strict=True)]
  assert capsys.readouterr().out.split('\n') == [f'a{decode(out.tokens[0])}', *expected, '']


def test_stop_text_ends_the_answer(workdir, capsys):
  whole = text_of(params(5), 'def ', 12)
  stop = whole[5:7]
  assert call(workdir, '--prompt=def ', '--temperature=0', '--max_new_tokens=12', f'--stop={stop}', '--stop=never') == 0
  assert capsys.readouterr().out == f'def {whole[:whole.index(stop)]}\n'


@pytest.mark.parametrize('stops,pieces,expected', [
    (['ab'], ['xa', 'bc'], 'x'), (['ab'], ['xa', 'ac'], 'xaac'), (['abd', 'b'], ['a', 'bc'], 'a'),
    (['aab'], ['a', 'a', 'a', 'b', 'c'], 'a'), ([], ['a', 'b'], 'ab'), (['abc'], ['xab'], 'xab')])
def test_stops_across_pieces(stops, pieces, expected):
  assert ''.join(streaming.up_to_stop(stops, pieces)) == expected


def test_cuts_to_the_positions_that_there_are(workdir, capsys):
  assert call(workdir, f'--prompt={"long" * 20}', '--temperature=0', '--max_new_tokens=30') == 0
  out, err = capsys.readouterr()
  assert out.startswith('long' * 20) and '48 positions: 24 new tokens at most, of the prompt only its last 24' in err


def test_characters_are_never_cut_in_two():
  text = 'aé漢🙂'
  pieces = list(streaming.text_pieces(make_tokenizer(Bytes(), None), [256], [*text.encode(), 0xf0]))
  assert ''.join(pieces) == text + '\N{REPLACEMENT CHARACTER}' and set('é漢🙂') <= set(pieces)


def test_a_character_begun_in_what_was_said_before_is_printed_whole():
  tokenizer = make_tokenizer(Bytes(), None)
  assert ''.join(streaming.text_pieces(tokenizer, [256, *b'a\xc3'], [0xa9, *'€b'.encode()])) == 'é€b'
  assert ''.join(streaming.text_pieces(tokenizer, [256, *b'a\xc3'], [])) == ''


def test_spaces_between_words_are_kept():
  """A tokenizer like Llama 2's drops the space of the first word that it decodes."""
  import tokenizers
  words = {'\N{LOWER ONE EIGHTH BLOCK}' + word: i for i, word in enumerate(('a', 'bc', 'def'))}
  peer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words | {'<unk>': 3}, '<unk>'))
  peer.decoder = tokenizers.decoders.Metaspace()
  assert list(streaming.text_pieces(peer, [0], [1, 2, 0])) == [' bc', ' def', ' a', '']


@pytest.mark.parametrize('flags,words', [
    (['--step=4'], 'has 5, 3'), (['--stage=frist'], "did you mean 'first'?"),
    (['--stage=second'], 'no checkpoint of stage'), (['--temperature=-1'], 'temperature = -1.0'),
    (['--top_p=2'], 'top_p = 2.0'), (['--min_p=0'], 'min_p = 0'), (['--max_new_tokens=0'], 'max_new_tokens'),
    (['--num_samples=0'], 'num_samples'), (['--beams=0'], '--beams'), (['--beams=2', '--temperature=1'], '--beams'),
    (['--beams=2', '--num_samples=3'], '--num_samples'), (['--beams=2', '--log_probs'], '--log_probs'),
    (['--beams=2', '--draft=x'], '--draft'), (['--draft_tokens=2'], '--draft'),
    (['--draft=nowhere'], "--draft = 'nowhere': there is no config.json"), (['--draft=heads'], 'no multi-token heads'),
    (['--temperature=0', '--top_k=3'], '--top_k'), (['--stop='], '--stop'),
    (['--seed=99999999999999999999'], '--seed = 99999999999999999999: use'), (['--top_p=0'], 'keeps all tokens')])
def test_wrong_flags(workdir, capsys, flags, words):
  with pytest.raises(SystemExit) as caught:
    call(workdir, '--prompt=a', *flags)
  err = capsys.readouterr().err
  assert caught.value.code == 2 and words in err and err.count('\n') == 1


def test_no_run_there(tmp_path, capsys):
  with pytest.raises(SystemExit) as caught:
    call(tmp_path, '--prompt=a')
  assert caught.value.code == 2 and 'config.json' in capsys.readouterr().err
  (tmp_path / 'config.json').write_text('{"model": ')
  with pytest.raises(SystemExit) as caught:
    call(tmp_path, '--prompt=a')
  assert caught.value.code == 2 and 'damaged' in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(workdir, tmp_path, capsys):
  import shutil
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  manifest = copy / 'checkpoints/first/00000005/manifest.json'
  manifest.write_bytes(manifest.read_bytes()[:-20])
  assert call(copy, '--prompt=a', '--temperature=0', '--max_new_tokens=4') == 0
  out, err = capsys.readouterr()
  assert out == f'a{text_of(params(3), "a", 4)}\n' and '00000005' in err and 'warning' in err
  assert call(copy, '--prompt=a', '--step=5') == 1
  assert 'manifest.json' in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(workdir, monkeypatch):
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, 'w') as out:  # which flushes once more
    monkeypatch.setattr('sys.stdout', out)
    assert call(workdir, '--prompt=a', '--max_new_tokens=4') == 141


def test_interrupt_while_it_loads(workdir, monkeypatch, capsys):
  monkeypatch.setattr(runtime, 'prepare', lambda: os.kill(os.getpid(), signal.SIGINT))
  monkeypatch.setattr('os._exit', sys.exit)
  with pytest.raises(SystemExit) as caught:
    call(workdir, '--prompt=a')
  assert caught.value.code == 130 and capsys.readouterr().err == ''


def test_help_imports_no_jax():
  code = ('import sys\nfrom launch import sample\ntry: sample.main(["--help"])\nexcept SystemExit: pass\n'
          'assert "jax" not in sys.modules and "numpy" not in sys.modules')
  subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL)


def test_a_run_that_saves_beside_it_keeps_the_checkpoint_until_it_is_read(tmp_path):
  run = read_config(write_run(tmp_path))
  stage, checkpoint = find_checkpoint('checkpoint', tmp_path, run)
  with CheckpointStore(tmp_path / 'checkpoints' / stage.name, keep=1) as store:
    store.save(6, {'params': params(6)}, make_metadata(), wait=True)
    assert store.steps() == [6, 5]
    assert_same(read_params(checkpoint), jax.device_get(params(5)))
    store.save(7, {'params': params(7)}, make_metadata(), wait=True)
    assert store.steps() == [7]
