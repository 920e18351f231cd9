"""launch.convert --push: what the hub then has, and the model card."""
import json
import pathlib
import subprocess
import sys

import huggingface_hub
import pytest

from launch import convert
from launch.model_card import card_of_run
from llm_jax.checkpoints.manifest import NAME as MANIFEST
from llm_jax.config import presets
from llm_jax.config.experiment import (
  DPO,
  Constant,
  HuggingFace,
  HuggingFaceData,
  LinearToZero,
  Params,
  Run,
  StandardLibrary,
  StandardLibraryPreferences,
  mix,
  stage,
)
from llm_jax.data.tokenizers.byte_level import train
from llm_jax.hf.tokenizer import tokenizer_files
from llm_jax.tracking.metrics import MetricsWriter
from llm_jax.tracking.run_config import write_config
from tests.hf import hf_models
from tests.hub_server import serving

ROOT = pathlib.Path(__file__).parents[2]
COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub')
  tokenizer = train(['a few words of text, and a few more'] * 9, 300, 'llama3')
  hf_models.make(hf_models.llama(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eot)).save_pretrained(folder)
  for name, content in tokenizer_files(tokenizer).items():
    (folder / name).write_bytes(content)
  return folder


def call(hub, home, *flags, expect=0, **more) -> str:
  env = {**hub.environment(home), 'JAX_PLATFORMS': 'cpu', 'HF_TOKEN': 'hf_word', **more}
  done = subprocess.run([sys.executable, '-m', 'launch.convert', *map(str, flags)], env=env, cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == expect, done.stdout + done.stderr
  return done.stdout + (done.stderr if expect else '')


def test_what_is_pushed_is_what_would_be_written(folder, tmp_path):
  with serving() as hub:
    shown = call(hub, tmp_path, f'--from_hf={folder}', '--push=us/mine', '--dry_run')
    assert not hub.requests and 'would be written to us/mine:' in shown
    printed = call(hub, tmp_path, f'--from_hf={folder}', '--push=us/mine', '--private')
    repository = hub.repositories['models', 'us/mine']
    [commit] = repository.commits
    pushed = repository.commits[commit]
  assert printed.strip().endswith(commit)
  convert.main([f'--from_hf={folder}', f'--to_hf={tmp_path / "written"}'])
  written = {path.name: path.read_bytes() for path in (tmp_path / 'written').iterdir()}
  card = pushed.pop('README.md').decode()
  pushed.pop('.gitattributes', None)
  assert pushed == written
  listed = {line.split()[0] for line in shown.splitlines()[1:shown.splitlines().index('README.md:')] if line.strip()}
  assert listed == {*written, 'README.md'} and card.strip() in shown
  assert f'converted from `{folder}`' in card and "from_pretrained('us/mine')" in card


@pytest.mark.parametrize('flags, words', [
  (['--push=mine'], "--push = 'mine': write it as OWNER/NAME"),
  (['--push=us/mine', '--to_hf=x'], '--to_hf --push given: use one of'),
  (['--to_hf=x', '--dry_run'], '--dry_run = True: only with --push'),
  (['--push=us/mine', '--revision=v1'], "--revision = 'v1': only with the name of a model on the hub")])
def test_wrong_flags_are_one_line(folder, capsys, flags, words):
  with pytest.raises(SystemExit) as caught:
    convert.main([f'--from_hf={folder}', *flags])
  error = capsys.readouterr().err
  assert caught.value.code == 2 and words in error and error.count('\n') == 1


def test_without_a_network_a_push_is_one_line(folder, tmp_path):
  with serving() as hub:
    printed = call(hub, tmp_path, f'--from_hf={folder}', '--push=us/mine', expect=1 + 1,
                   HF_ENDPOINT='http://127.0.0.1:9')
  assert printed.splitlines()[-1].startswith("error: --push = 'us/mine': the hub cannot be reached")


# ---------------------------------------------------------------------------------------------- the card
def make_run():
  data = HuggingFaceData('us/web', 'sample', revision=COMMIT)
  rows = dict(seq_len=32, batch_size=8)
  return Run(presets.llama(64, 2, 4, vocab_size=4_096), (
    stage('more', mix(data, StandardLibrary()), **rows, steps=100, learning_rate=LinearToZero(3e-4),
          init=HuggingFace('us/base', revision=COMMIT)),
    stage('dpo', StandardLibraryPreferences(), **rows, steps=10, learning_rate=Constant(1e-6), objective=DPO(),
          init=Params('more')),
    stage('other', StandardLibrary(), **rows, steps=10, learning_rate=Constant(1e-6)),
  ))


def write_run(workdir):
  run = make_run()
  workdir.mkdir()
  write_config(workdir, run)
  with MetricsWriter(workdir) as writer:
    for source, share in (('web', 0.75), ('StandardLibrary', 0.25)):
      writer.write('data', 'more', 100, source=source, share=share, epochs=0.5, num_bytes=10_000, num_tokens=2_500)
    writer.write('final', 'more', 100, loss=2.5, bits_per_byte=1.25)
    writer.write('final', 'dpo', 10, loss=0.5, accuracy=0.75)
  (workdir / 'lineage.json').write_text(json.dumps({
    'code': '0.2.0 abc', 'command': 'secret', 'started': '2026-01-01', 'packages': {'jax': '0.10.2'},
    'machine': {'devices': '8 x cpu'}, 'hub': [{'kind': 'model', 'name': 'us/base', 'commit': COMMIT}]}))
  for name in ('more', 'dpo', 'other'):
    (workdir / 'checkpoints' / name / '00000010').mkdir(parents=True)
    (workdir / 'checkpoints' / name / '00000010' / MANIFEST).write_text('{}')
  return run


def test_a_card_tells_the_recipe_the_data_the_scores_and_the_lineage(tmp_path):
  run = write_run(tmp_path / 'run')
  text = card_of_run('us/mine', tmp_path / 'run', run.model, 'dpo', None)
  card = huggingface_hub.ModelCard(text)
  assert card.data.base_model == ['us/base'] and card.data.datasets == ['us/web']
  assert card.data.library_name == 'transformers' and card.data.pipeline_tag == 'text-generation'
  lines = card.text.splitlines()
  assert '# mine' in lines and 'this is stage `dpo`' in card.text
  for line in (
    '| more | LanguageModel | 100 | 25.6K | 32 | LinearToZero, peak 0.0003 | `us/base` at `0123456789ab` |',
    '| dpo | DPO | 10 | 5.12K | 32 | Constant, peak 1e-06 | more |',
    '| more | [us/web](https://huggingface.co/datasets/us/web), sample, split train, commit `0123456789ab` | 75.0% | '
    '0.5 | 2.5K |',
    '| more | StandardLibrary (StandardLibrary) | 25.0% | 0.5 | 2.5K |',
    '| stage | held-out loss | bits per byte | accuracy |',
    '| more | 2.5000 | 1.2500 | \u2013 |',
    '| dpo | 0.5000 | \u2013 | 75.0% |',
    '| code | llm_jax 0.2.0 abc |',
    f'| model on the hub | `us/base` at commit `{COMMIT}` |'):
    assert line in lines, (line, card.text)
  assert 'other' not in card.text and 'secret' not in card.text


def test_a_card_of_a_run_without_scores(tmp_path):
  run = write_run(tmp_path / 'run')
  text = card_of_run('us/mine', tmp_path / 'run', run.model, None, 10)
  assert 'this is stage `other` after 10 steps' in text and 'No stage has been scored.' in text
  assert 'random parameters' in text and 'base_model' not in text
