"""experiments/finetune.py: from a folder of transformers to another."""
import json
import pathlib

import numpy as np
import pytest
import torch
import transformers

import llm_jax
from launch import convert, train
from launch.experiment_file import load_run
from llm_jax import hf
from llm_jax.adapters import choose
from llm_jax.adapters.choose import choose_adapters
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.sources import Conversations
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.sources import documents
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.data.tokenizers.byte_level import train as train_tokenizer
from llm_jax.tracking.metrics import read_metrics
from tests.hf import hf_models
from tests.hf import published_tokenizers as published

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


MARKED = published.LLAMA2.replace(
  "{{ ' ' + content.strip() + ' ' + eos_token }}",
  "{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}")


def test_a_model_behind_a_beginning_of_its_own(tmp_path, monkeypatch):
  """Imported, scored, trained on and exported: the losses are those of transformers on the texts and chats that its own
  tokenizer writes, and the tokenizer goes out as it came in."""
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  folder = published.write_folder('llama2', tmp_path / 'model', chat_template=MARKED)
  vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder))
  hf_models.make(hf_models.llama(vocab_size=vocab_size, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
  chats = [[{'role': 'user', 'content': f'How are {i} cats?'}, {'role': 'assistant', 'content': f'The {i} are well.'}]
           for i in range(120)]
  (folder / 'chats.jsonl').write_text(''.join(json.dumps({'messages': chat}) + '\n' for chat in chats))
  run, exported = tmp_path / 'run', tmp_path / 'exported'
  assert train.main(['launch.train', f'--config={EXPERIMENT}:{folder}', f'--workdir={run}', '--config.dtype=float32',
                     *(f'--config.stages[0].{field}' for field in SMALL)]) == 0
  assert convert.main([f'--checkpoint={run}', f'--to_hf={exported}']) == 0
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert (exported / name).read_bytes() == (folder / name).read_bytes()

  source = Conversations(str(folder / 'chats.jsonl'), 'model', val_fraction=0.05)
  held_out = [dialogue.messages for _, dialogue in documents.open_source(source).documents('validation')]
  [final] = [row['nll'] for row in read_metrics(run) if row['kind'] == 'final']
  assert final == pytest.approx(chat_loss(exported, held_out), abs=1e-5)

  for place in (folder, exported):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    ids = transformers.AutoTokenizer.from_pretrained(place)('the user sees a cat', return_tensors='pt').input_ids
    assert ids[0, 0] == 1
    with torch.no_grad():
      expected = float(theirs(ids, labels=ids).loss)
    assert text_loss(place, 'the user sees a cat') == pytest.approx(expected, abs=1e-5)


def chat_loss(folder, chats) -> float:
  """Nats per token that the assistant says, by transformers alone."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  total = count = 0.0
  for chat in chats:
    found = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = torch.tensor(found['input_ids']), torch.tensor(found['assistant_masks'])
    with torch.no_grad():
      losses = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction='none')
    total += float((losses * mask[1:]).sum())
    count += float(mask[1:].sum())
  return total / count


def text_loss(folder, text) -> float:
  """Nats per token of a document, by ours alone, without the end that stands behind it."""
  tokenizer = make_tokenizer(hf.read_tokenizer(folder))
  config, params = hf.load_pretrained(folder)
  ids = np.array([*tokenizer.begin, *tokenizer.encode(text)])
  logits = np.array(llm_jax.Transformer(config).apply({'params': params}, ids[None])[0, :-1], np.float64)
  normalizers = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
  return float((normalizers - np.take_along_axis(logits, ids[1:, None], -1)[:, 0]).mean())


@pytest.mark.parametrize('make', [lambda **ids: hf_models.llama(max_position_embeddings=64, **ids),
                                  lambda **ids: hf_models.gpt2(n_positions=48, **ids)])
def test_sequences_are_as_long_as_the_model_allows(make, folder):
  """A model of fewer positions than 1,024, such as GPT-1; another length is refused only after it is set."""
  ids = json.loads((folder / 'config.json').read_text())
  model = make(vocab_size=ids['vocab_size'], eos_token_id=ids['eos_token_id'])
  hf_models.make(model).save_pretrained(folder)
  config = f'{EXPERIMENT}:{folder}'
  allowed = hf.read_config(folder).meant_length
  assert allowed in (48, 64)
  assert load_run(config).stages[0].seq_len == allowed
  assert load_run(config, [('stages[0].seq_len', '32')]).stages[0].seq_len == 32
  with pytest.raises(ConfigError, match=r'^config\.stages\[0\]\.seq_len = 65'):
    load_run(config, [('stages[0].seq_len', '65')])


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


@pytest.mark.parametrize('name, memory, want', (
  ('llama3_2_1b', 80, None), ('llama3_2_1b', 15, 'bfloat16'), ('llama3_1_8b', 24, 'bfloat16'),
  ('llama3_1_8b', 15, 'nf4'), ('llama3_1_70b', 80, 'nf4')))
def test_the_memory_decides_what_is_trained(name, memory, want, capsys):
  """80 GiB are those of an H100, 24 of an L4, 15 of a T4."""
  found = choose_adapters(getattr(presets, name)(), memory=memory * 2**30)
  assert (found and found.base) == want
  assert f'{memory}.0 GiB of memory' in capsys.readouterr().err


@pytest.mark.slow
def test_sft_and_dpo_with_adapters(folder, tmp_path, monkeypatch):
  """experiments/finetune_dpo.py where the memory is small, then merged."""
  monkeypatch.setattr(choose, 'device_memory', lambda: 1e6)
  pairs = [{'prompt': f'What is {i} plus one?', 'chosen': f'It is {i + 1}.', 'rejected': 'No.'} for i in range(100)]
  (folder / 'pairs.jsonl').write_text(''.join(json.dumps(pair) + '\n' for pair in pairs))
  run = tmp_path / 'run'
  small = [f'--config.stages[{stage}].{field}' for stage in (0, 1) for field in SMALL]
  small += [f'--config.stages[{stage}].adapters.rank=4' for stage in (0, 1)]
  assert train.main(['launch.train', f'--config={EXPERIMENT.with_name("finetune_dpo.py")}:{folder}', f'--workdir={run}',
                     *small]) == 0
  losses = [row['loss'] for row in read_metrics(run) if row['kind'] == 'train' and row['stage'] == 'dpo']
  assert losses[0] == pytest.approx(np.log(2), abs=1e-6) and losses[-1] < losses[0]
  assert convert.main([f'--checkpoint={run}', '--merge', f'--to_hf={tmp_path / "aligned"}']) == 0
  transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'aligned')
