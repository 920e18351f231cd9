"""experiments/finetune.py: from a folder of transformers to another."""
import json
import pathlib

import numpy as np
import pytest
import torch
import transformers

import llm_jax
from launch import convert, train
from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.tokenizers.byte_level import train as train_tokenizer
from llm_jax.tracking.metrics import read_metrics
from tests.hf import hf_models

EXPERIMENT = pathlib.Path(__file__).parents[2] / 'experiments/finetune.py'
SMALL = ('steps=3', 'seq_len=64', 'batch_size=8', 'microbatches=1', 'evals[0].every=3',
         'learning_rate.peak=0.01', 'learning_rate.warmup=1')


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A Llama of transformers with its tokenizer, and conversations."""
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  folder = tmp_path / 'model'
  chats = [[{'role': 'user', 'content': f'What is {i} plus one?'}, {'role': 'assistant', 'content': f'It is {i + 1}.'}]
           for i in range(200)]
  tokenizer = train_tokenizer([json.dumps(chats)], 400, 'llama3')
  model = hf_models.make(hf_models.llama(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eot))
  model.save_pretrained(folder)
  for name, content in hf.tokenizer_files(tokenizer).items():
    (folder / name).write_bytes(content)
  (folder / 'chats.jsonl').write_text(''.join(json.dumps({'messages': chat}) + '\n' for chat in chats))
  return folder


def test_from_transformers_to_transformers(folder, tmp_path):
  config, params = hf.load_pretrained(folder)
  assert hf.read_config(folder) == config
  run = tmp_path / 'run'
  assert train.main(['launch.train', f'--config={EXPERIMENT}:{folder}', f'--workdir={run}',
                     *(f'--config.stages[0].{field}' for field in SMALL)]) == 0
  found = read_metrics(run)
  losses = [row['loss'] for row in found if row['kind'] == 'train']
  assert losses[-1] < losses[0] and [row['nll'] for row in found if row['kind'] == 'final']
  assert convert.main([f'--checkpoint={run}', f'--to_hf={tmp_path / "chat"}']) == 0
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'chat')
  tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / 'chat').apply_chat_template(
    [{'role': 'user', 'content': 'What is 7 plus one?'}], add_generation_prompt=True, return_dict=False)
  with torch.no_grad():
    logits = theirs(torch.tensor([tokens])).logits
  ours = hf.load_pretrained(tmp_path / 'chat')
  np.testing.assert_allclose(llm_jax.Transformer(ours[0]).apply({'params': ours[1]}, np.array([tokens])), logits,
                             atol=1e-4)


def test_the_end_of_text_is_found_or_asked_for(folder):
  path, name = str(folder / 'tokenizer.json'), '<|endoftext|>'
  assert hf.read_tokenizer(folder) == HuggingFaceFile(path, name)
  config = json.loads((folder / 'config.json').read_text())
  end = config['eos_token_id']
  (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [end]}))
  (folder / 'config.json').write_text(json.dumps(config | {'eos_token_id': 3}))
  assert hf.read_tokenizer(folder) == HuggingFaceFile(path, name)
  (folder / 'generation_config.json').unlink()
  with pytest.raises(ConfigError, match=r'eos_token_id = 3: none of the added tokens in tokenizer\.json: give Hugging'):
    hf.read_tokenizer(folder)
