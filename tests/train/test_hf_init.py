"""A stage that starts from a Hugging Face folder."""
import json
import shutil

import numpy as np
import pytest

from launch import train
from llm_jax import hf, paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.train import stage as stage_module
from tests.hf import hf_models

EXPERIMENT = '''
from llm_jax.config.experiment import Bytes, Constant, HuggingFace, Mesh, Text, experiment, presets, stage

def get_config():
  return experiment(
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=72, vocab_size=263, eps={eps}),
    tokenizer=Bytes(), mesh=Mesh(data=2, fsdp=4),
    stages=({before}stage('start', Text({text!r}), steps=0, seq_len=16, batch_size=8, learning_rate=Constant(1e-3),
                          init=HuggingFace({folder!r})),))
'''

PREFERENCES = '''
from llm_jax.config.experiment import (
  DPO, Bytes, Checkpoints, Constant, HuggingFace, Mesh, Preferences, experiment, presets, stage)

def get_config():
  return experiment(
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=72, vocab_size=263, eps=1e-6),
    tokenizer=Bytes(), mesh=Mesh(data=2, fsdp=4), checkpoints=Checkpoints(every=1, keep=2),
    stages=(stage('start', Preferences({pairs!r}, val_fraction=0.0, template='plain'),
                  steps=2, seq_len=64, batch_size=8,
                  learning_rate=Constant(1e-3), objective=DPO(), init=HuggingFace({folder!r})),))
'''


def start(tmp_path, eps, before='', **changes):
  (tmp_path / 'text.txt').write_text('some text, and some more of it. ' * 20)
  hf_models.make(hf_models.llama(vocab_size=263)).save_pretrained(tmp_path / 'hf')
  if changes:  # the weights of another model beside the same config.json
    hf_models.make(hf_models.llama(vocab_size=263, **changes)).save_pretrained(tmp_path / 'other')
    (tmp_path / 'other' / 'model.safetensors').replace(tmp_path / 'hf' / 'model.safetensors')
  (tmp_path / 'experiment.py').write_text(
    EXPERIMENT.format(text=str(tmp_path / 'text.txt'), folder=str(tmp_path / 'hf'), eps=eps, before=before))
  return train.main(['launch.train', f'--config={tmp_path}/experiment.py', f'--workdir={tmp_path}/run'])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))


def test_the_stage_begins_with_the_folder(tmp_path):
  assert start(tmp_path, eps=1e-6) == 0
  checkpoint = CheckpointStore(tmp_path / 'run' / 'checkpoints' / 'start').latest_valid()
  got, want = dict(paths.leaves(checkpoint.read())), dict(paths.leaves(hf.load_pretrained(tmp_path / 'hf')[1]))
  assert got.keys() == want.keys() and checkpoint.metadata.lineage.parent == f'hf:{tmp_path / "hf"}'
  for name in got:
    np.testing.assert_array_equal(got[name], want[name], name)


def test_another_content_of_the_folder_is_refused_when_the_stage_goes_on(tmp_path, capsys):
  """The same shapes and names, other weights: the checkpoint knows what it began with."""
  assert start(tmp_path, eps=1e-6) == 0
  run = tmp_path / 'run'
  [recorded] = [CheckpointStore(run / 'checkpoints' / 'start').latest_valid().metadata.lineage.folder]
  assert sorted(recorded) == ['config.json', 'model.safetensors']
  (run / 'metrics.jsonl').unlink()  # the result is not written yet
  weights = tmp_path / 'hf' / 'model.safetensors'
  content = bytearray(weights.read_bytes())
  content[-1] ^= 1
  weights.write_bytes(content)
  command = ['launch.train', f'--config={tmp_path}/experiment.py', f'--workdir={run}']
  assert train.main(command) == 1
  told = capsys.readouterr().err
  assert f'{tmp_path / "hf"} has changed since' in told
  assert f'then model.safetensors {recorded["model.safetensors"][:12]}; now model.safetensors' in told
  content[-1] ^= 1
  weights.write_bytes(content)
  assert train.main(command) == 0


@pytest.mark.parametrize('eps, changes, message', [
  (1e-3, {}, 'error: config.model.pattern[0].norm.eps = 0.001'),
  (1e-6, dict(intermediate_size=88), "error: {}/hf = '6 do not fit': model.layers.0.mlp.down_proj.weight is [32, 88]"),
  (1e-6, dict(num_hidden_layers=1), "error: {}/hf = '9 do not fit': missing model.layers.1."),
])
def test_another_model_is_refused_before_any_stage_runs(eps, changes, message, tmp_path, capsys):
  first = f"stage('first', Text({str(tmp_path / 'text.txt')!r}), steps=1, seq_len=16, batch_size=8, " \
          'learning_rate=Constant(1e-3)), '
  with pytest.raises(SystemExit) as exit:
    start(tmp_path, eps, first, **changes)
  assert exit.value.code == 2
  assert message.format(tmp_path) in capsys.readouterr().err.strip().splitlines()[-1]
  assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.parametrize('content, code, message', [
  (None, 2, 'config.json = None: there is no such file'), (b'{}', 2, 'model_type'),
])
def test_a_folder_that_goes_while_an_earlier_stage_trains(content, code, message, tmp_path, capsys, monkeypatch):
  first = f"stage('first', Text({str(tmp_path / 'text.txt')!r}), steps=1, seq_len=16, batch_size=8, " \
          'learning_rate=Constant(1e-3)), '
  finish, config = stage_module.finish, tmp_path / 'hf' / 'config.json'

  def finish_and_lose(*args):
    finish(*args)
    config.unlink()
    if content is not None:
      config.write_bytes(content)

  monkeypatch.setattr(stage_module, 'finish', finish_and_lose)
  with pytest.raises(SystemExit) as exit:
    start(tmp_path, 1e-6, first)
  assert exit.value.code == code and message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_that_changes_while_the_step_is_compiled_is_refused(tmp_path, capsys, monkeypatch):
  """Else the lineage would tell of weights that the stage did not begin with."""
  change_before_reading(monkeypatch, tmp_path / 'hf' / 'model.safetensors')
  assert start(tmp_path, eps=1e-6) == 1
  assert f'{tmp_path / "hf"} has changed since the stage began with it' in capsys.readouterr().err


def test_a_reference_that_changes_while_the_step_is_compiled_is_refused(tmp_path, capsys, monkeypatch):
  """A stage that goes on compares with what it compared with before."""
  pairs, folder, run = tmp_path / 'pairs.jsonl', tmp_path / 'hf', tmp_path / 'run'
  pairs.write_text(''.join(json.dumps({'prompt': f'ask {i}', 'chosen': f'yes {i}', 'rejected': f'no {i}'}) + '\n'
                           for i in range(40)))
  hf_models.make(hf_models.llama(vocab_size=263)).save_pretrained(folder)
  (tmp_path / 'experiment.py').write_text(PREFERENCES.format(pairs=str(pairs), folder=str(folder)))
  command = ['launch.train', f'--config={tmp_path}/experiment.py', f'--workdir={run}']
  assert train.main(command) == 0
  shutil.rmtree(run / 'checkpoints' / 'start' / '00000002')  # as if it had been stopped after the first step
  (run / 'metrics.jsonl').unlink()
  change_before_reading(monkeypatch, folder / 'model.safetensors')
  assert train.main(command) == 1
  assert f'{folder} has changed since the stage began with it' in capsys.readouterr().err


def change_before_reading(monkeypatch, weights):
  restore_progress = stage_module.restore_progress

  def restore_and_change(*args):
    weights.write_bytes(weights.read_bytes()[:-1] + b'\x00')
    return restore_progress(*args)

  monkeypatch.setattr(stage_module, 'restore_progress', restore_and_change)
