"""launch.sample: text from a checkpoint, and one line for everything that can be wrong."""
import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from launch import sample
from llm_jax.config import door
from llm_jax.config.experiment import Bytes, Constant, StandardLibrary, presets
from llm_jax.config.run import Data, Run, Stage, Weighted
from llm_jax.data.tokenizers import make_tokenizer
from llm_jax.decode.generate import generate
from llm_jax.modules.transformer import Transformer
from llm_jax.train.checkpoint import CheckpointStore

MODEL = presets.gpt2(16, 1, 2, vocab_size=257, max_length=48)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run with two stages, of which the first has checkpoints: step 3 with other parameters, step 5 with an average."""
  folder = tmp_path_factory.mktemp('run')
  stage = lambda name, init: Stage(name, Data((Weighted(StandardLibrary()),)), 5, 32, 8, Constant(1e-3), init=init)
  run = Run(MODEL, (stage('first', ('scratch',)), stage('second', ('params', 'first'))), Bytes())
  (folder / 'config.json').write_text(json.dumps(door.to_json(run)))
  tokenizer = make_tokenizer(Bytes(), None)
  tokenizer.save(folder / 'tokenizer')
  with CheckpointStore(folder / 'checkpoints' / 'first', keep=2) as store:
    store.save(3, {'params': params(3)}, {'tokenizer': tokenizer.fingerprint})
    store.save(5, {'params': params(4), 'ema': params(5)}, {'tokenizer': tokenizer.fingerprint}, wait=True)
  return folder


def params(seed):
  make = jax.jit(lambda key: Transformer(MODEL).init(key, jnp.zeros((1, 1), jnp.int32))['params'])
  return jax.tree.map(lambda w: 5 * w, make(jax.random.key(seed)))


def text_of(weights, prompt, new, **options):
  """What the model itself says, decoded in one piece."""
  [tokens] = generate(MODEL, weights, [[256, *prompt.encode()]], new, stop_tokens=(256,), **options).tokens
  return bytes(token for token in tokens if token != 256).decode(errors='replace')


def call(workdir, *flags):
  return sample.main([f'--checkpoint={workdir}', *flags])


def test_continues_the_prompt_with_the_average(workdir, capsys):
  assert call(workdir, '--prompt=def ', '--temperature=0', '--max_new_tokens=12') == 0
  out, err = capsys.readouterr()
  assert out == f'def {text_of(params(5), "def ", 12)}\n'
  assert '00000005, averaged parameters' in err


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


def test_reads_a_pipe(workdir, capsys, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('x\ny'))
  assert call(workdir, '--temperature=0', '--max_new_tokens=4') == 0
  assert capsys.readouterr().out == f'x\ny{text_of(params(5), chr(120) + chr(10) + chr(121), 4)}\n'


def test_reads_a_person(workdir, capsys, monkeypatch):
  class Terminal(io.StringIO):
    isatty = lambda self: True
  monkeypatch.setattr('sys.stdin', Terminal('p\nq\n'))
  assert call(workdir, '--temperature=0', '--max_new_tokens=4') == 0
  out = capsys.readouterr().out
  assert all(f'{prompt}{text_of(params(5), prompt, 4)}\n' in out for prompt in 'pq')


def test_cuts_to_the_positions_that_there_are(workdir, capsys):
  assert call(workdir, f'--prompt={"long" * 20}', '--temperature=0', '--max_new_tokens=30') == 0
  out, err = capsys.readouterr()
  assert out.startswith('long' * 20) and '48 positions: 24 new tokens at most, of the prompt only its last 24' in err


def test_characters_are_never_cut_in_two():
  tokenizer = make_tokenizer(Bytes(), None)
  sampler = object.__new__(sample.Sampler)
  sampler.tokenizer = tokenizer
  text = 'aé漢🙂'
  pieces = list(sampler.decode([token] for token in [*text.encode(), 0xf0, 256]))
  assert ''.join(pieces) == text + '\N{REPLACEMENT CHARACTER}' and set('é漢🙂') <= set(pieces)


@pytest.mark.parametrize('flags,words', [
    (['--step=4'], 'has 5, 3'), (['--stage=frist'], "did you mean 'first'?"),
    (['--stage=second'], 'no checkpoint of stage'), (['--temperature=-1'], 'temperature = -1.0'),
    (['--top_p=2'], 'top_p = 2.0'), (['--max_new_tokens=0'], 'max_new_tokens'), (['--num_samples=0'], 'num_samples')])
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


def test_help_imports_no_jax():
  code = ('import sys\nfrom launch import sample\ntry: sample.main(["--help"])\nexcept SystemExit: pass\n'
          'assert "jax" not in sys.modules and "numpy" not in sys.modules')
  subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL)
