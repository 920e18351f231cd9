"""Another number of tokens than a model was made with, and a tokenizer that has more of them."""
import copy
import json

import numpy as np
import pytest
import torch
import transformers

from launch import convert, train
from llm_jax import hf, paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.data.tokenizers.byte_level import train as train_tokenizer
from tests.hf import hf_models

CASES = ('gpt2', 'gpt2 untied, exact gelu, narrow', 'openai gpt', 'llama gqa', 'llama llama3, tied', 'gemma2',
         'deepseek')


def resize_theirs(case, size):
  model = hf_models.make(copy.deepcopy(hf_models.CASES[case]))  # the size is written into it
  model.resize_token_embeddings(size, mean_resizing=True)
  return hf_models.in_files(model)


@pytest.mark.parametrize('size', [hf_models.VOCAB + 9, hf_models.VOCAB - 9])
@pytest.mark.parametrize('case', CASES)
def test_rows_are_those_of_transformers(case, size, tmp_path):
  """Their new rows are the mean with noise whose covariance is 1e-9 of that of the rows: 3e-6 here."""
  want = resize_theirs(case, size)
  hf_models.make(hf_models.CASES[case]).save_pretrained(tmp_path / 'hub')
  assert convert.main([f'--from_hf={tmp_path / "hub"}', f'--to_hf={tmp_path / "new"}', f'--vocab_size={size}']) == 0
  got = hf_models.tensors(tmp_path / 'new')
  assert got.keys() == want.keys()
  for name, tensor in want.items():
    np.testing.assert_allclose(got[name], tensor, rtol=0, atol=3e-5, err_msg=name)
  resized = [name for name, tensor in got.items() if tensor.shape[0] == size]
  assert len(resized) == 1 + (not hf_models.CASES[case].tie_word_embeddings)
  for name in resized:
    np.testing.assert_array_equal(got[name][:hf_models.VOCAB], want[name][:hf_models.VOCAB])
    assert size < hf_models.VOCAB or len(np.unique(got[name][hf_models.VOCAB:], axis=0)) == 1
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'new')
  assert model(torch.tensor([[1, 2]])).logits.shape[-1] == size


EXPERIMENT = '''
from llm_jax.config.experiment import *
from llm_jax import hf
import dataclasses

def get_config():
  model, size = hf.read_config({folder!r}), {size}
  return experiment(
    model=model if size is None else dataclasses.replace(model, vocab_size=size),
    tokenizer=hf.read_tokenizer({folder!r}), mesh=Mesh(data=2, fsdp=4),
    stages=(stage('start', Jsonl({text!r}, val_fraction=0.0), steps=1, seq_len=16, batch_size=8,
                  learning_rate=Constant(0.0), optimizer=AdamW(weight_decay=0.0), evals=(),
                  init=HuggingFace({folder!r}, resize_vocabulary=size is not None)),))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A Llama whose tokenizer has three tokens that its embedding lacks, and text for it."""
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  tokenizer = train_tokenizer(['a few words of text and more of it, with sums'] * 9, 280, 'llama3')
  hub = tmp_path / 'hub'
  size = tokenizer.vocab_size
  hf_models.make(hf_models.llama(vocab_size=size, eos_token_id=tokenizer.eot)).save_pretrained(hub)
  for name, content in hf.tokenizer_files(tokenizer).items():
    (hub / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(hub)
  theirs.add_tokens(['<extra>', '<more>', '<most>'])
  theirs.save_pretrained(hub)
  assert hf.read_config(hub).vocab_size == size == len(theirs) - 3
  return hub


def start(folder, tmp_path, text, size=None):
  texts = ['a few words'] * 9 + [text]
  (tmp_path / 'text.jsonl').write_text(''.join(json.dumps({'text': each}) + '\n' for each in texts))
  (tmp_path / 'experiment.py').write_text(
    EXPERIMENT.format(folder=str(folder), text=str(tmp_path / 'text.jsonl'), size=size))
  return train.main(['launch.train', f'--config={tmp_path}/experiment.py', f'--workdir={tmp_path}/run'])


def test_a_tokenizer_with_more_ids_trains_until_a_text_uses_one(folder, tmp_path, capsys):
  assert start(folder, tmp_path, 'of text') == 0
  second = tmp_path / 'second'
  second.mkdir()
  with pytest.raises(SystemExit):
    start(folder, second, 'a <more> of it')
  size = hf.read_config(folder).vocab_size
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert said.startswith('error: config.stages[0].data.sources[0].source.text = ')
  assert f"it uses the token '<more>', id {size + 1}, and the embedding has {size} rows" in said
  assert said.endswith(f'launch.convert --vocab_size={size + 3}')


def test_a_stage_enlarges_the_vocabulary(folder, tmp_path):
  """On a mesh: old rows as they were, new ones their mean; then every text can be read."""
  size = hf.read_config(folder).vocab_size
  new = -(-(size + 3) // 8) * 8
  assert start(folder, tmp_path, 'a <more> of it', new) == 0
  found = dict(paths.leaves(CheckpointStore(tmp_path / 'run' / 'checkpoints' / 'start').latest_valid().read()))
  config, params = hf.load_pretrained(folder)
  want = dict(paths.leaves(hf.resize_vocabulary(config, params, new)[1]))
  assert want['embedding/w'].shape == (new, 32) == want['head/w'].shape and found.keys() == want.keys()
  for path in found:
    np.testing.assert_array_equal(found[path], want[path], err_msg=path)
  mean = params['head']['w'].mean(0, dtype='float32')
  np.testing.assert_array_equal(want['head/w'][size:], np.tile(mean, (new - size, 1)))


def test_a_wrong_size_is_one_line(folder, tmp_path, capsys):
  with pytest.raises(SystemExit):
    convert.main([f'--from_hf={folder}', f'--to_hf={tmp_path / "new"}', '--vocab_size=0'])
  assert '--vocab_size = 0: use a positive number' in capsys.readouterr().err
