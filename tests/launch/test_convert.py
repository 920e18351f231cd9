"""launch.convert: folders to runs and back; what goes in comes out, and `transformers` reads it."""
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from launch import convert, sample
from launch.sampler import text_ends
from llm_jax import hf
from llm_jax.checkpoints.checkpoint import open_checkpoint
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config import presets
from llm_jax.config.data import Data, Weighted
from llm_jax.config.experiment import Bytes, Constant, StandardLibrary
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.base import load_tokenizer
from llm_jax.data.tokenizers.byte_level import ByteTokenizer, train
from llm_jax.hf.tensor_file import OpenFile
from llm_jax.hf.tokenizer import tokenizer_files
from llm_jax.hf.weights import parameter_shapes
from llm_jax.tracking.run_config import read_config, write_config
from tests.checkpoints.checkpoint_states import make_metadata
from tests.hf import hf_models
from tests.hf import published_tokenizers as published


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A Llama with its tokenizer, as on the Hub."""
  folder = tmp_path_factory.mktemp('hub')
  tokenizer = train(['a few words of text, and a few more'] * 9, 300, 'llama3')
  model = hf_models.make(hf_models.llama(vocab_size=tokenizer.vocab_size, num_key_value_heads=4))
  model.generation_config.eos_token_id, model.generation_config.bos_token_id = [tokenizer.eot, 3], tokenizer.eot
  model.save_pretrained(folder)
  for name, content in tokenizer_files(tokenizer).items():
    (folder / name).write_bytes(content)
  return folder


def run(*flags):
  return convert.main([str(flag) for flag in flags])


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_becomes_a_run_and_a_folder_again(folder, tmp_path, capsys):
  assert run(f'--from_hf={folder}', f'--to={tmp_path / "run"}') == 0
  assert 'import' in capsys.readouterr().err
  checkpoint = open_checkpoint(tmp_path / 'run' / 'checkpoints' / 'imported' / '00000000')
  config, params = hf.load_pretrained(folder)
  jax.tree.map(np.testing.assert_array_equal, checkpoint.read(), params)
  assert checkpoint.metadata.final and checkpoint.metadata.tokenizer == load_tokenizer(
    tmp_path / 'run' / 'tokenizer').fingerprint
  assert read_config(tmp_path / 'run').model == config

  assert run(f'--checkpoint={tmp_path / "run"}', f'--to_hf={tmp_path / "out"}') == 0
  before, after = files(folder), files(tmp_path / 'out')
  for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json'):
    assert after[name] == before[name]
  theirs, ours = (hf_models.tensors(at) for at in (folder, tmp_path / 'out'))
  assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs) and ours.keys() == theirs.keys()
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out', trust_remote_code=False)
  assert again.generation_config.eos_token_id[1] == 3
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / 'out').decode([40, 41]) == load_tokenizer(
    tmp_path / 'run' / 'tokenizer').decode([40, 41])


def test_the_run_can_be_sampled(folder, tmp_path, capsys):
  assert run(f'--from_hf={folder}', f'--to={tmp_path / "run"}') == 0
  flags = ['--prompt=a few', '--max_new_tokens=4', '--temperature=0']
  assert sample.main([f'--checkpoint={tmp_path / "run"}', *flags]) == 0
  assert capsys.readouterr().out.startswith('a few')


def test_an_imported_model_is_asked_as_transformers_asks_it(tmp_path, capsys):
  """Behind what its tokenizer begins with, which is not the end, up to any of its ends; and with fewer positions than
  1,024."""
  published.write_folder('llama3', tmp_path / 'hub', chat_template=None)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hub')
  model = hf_models.make(hf_models.llama(vocab_size=len(tokenizer), max_position_embeddings=512))
  prompt = tokenizer('a few', return_tensors='pt').input_ids
  assert prompt[0, 0] == tokenizer.bos_token_id != tokenizer.eos_token_id
  say = lambda ends: model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=ends)[0, 1:].tolist()
  ends = [tokenizer.eos_token_id, say(None)[prompt.shape[1] + 3]]  # one that it is sure to meet
  model.generation_config.bos_token_id, model.generation_config.eos_token_id = tokenizer.bos_token_id, ends
  model.save_pretrained(tmp_path / 'hub')
  assert run(f'--from_hf={tmp_path / "hub"}', f'--to={tmp_path / "run"}') == 0
  flags = ['--prompt=a few', '--max_new_tokens=12', '--temperature=0']
  assert sample.main([f'--checkpoint={tmp_path / "run"}', *flags]) == 0
  said = say(ends)
  assert said[-1] in ends and capsys.readouterr().out == tokenizer.decode(said[:-1]) + '\n'


@pytest.mark.parametrize('in_config, in_generation', [(None, -1), (1, -1), (-1, None), (-1, [-1])])
def test_an_id_of_minus_one_is_none(in_config, in_generation, folder, tmp_path, capsys):
  """The first conversions of Llama have it. What another file says is followed, else the tokenizer's end of text."""
  hub = tmp_path / 'hub'
  shutil.copytree(folder, hub)
  for name, bos in (('config.json', in_config), ('generation_config.json', in_generation)):
    values = json.loads((hub / name).read_text()) | {'bos_token_id': bos, 'pad_token_id': -1}
    (hub / name).write_text(json.dumps(values))
  assert run(f'--from_hf={hub}', f'--to={tmp_path / "run"}') == 0
  tokenizer = load_tokenizer(tmp_path / 'run' / 'tokenizer')
  assert text_ends(tmp_path / 'run' / 'tokenizer', tokenizer)[0] == tokenizer.eot
  assert sample.main([f'--checkpoint={tmp_path / "run"}', '--prompt=a', '--max_new_tokens=2', '--temperature=0']) == 0
  assert run(f'--checkpoint={tmp_path / "run"}', f'--to_hf={tmp_path / "out"}') == 0
  assert transformers.AutoConfig.from_pretrained(tmp_path / 'out').bos_token_id == (1 if in_config == 1 else None)


@pytest.mark.parametrize('pad, in_file, expected', [
  (5, 'config.json', 5), (5, 'generation_config.json', 5),
  (3, 'config.json', None), (9_999, 'generation_config.json', None)])  # an end of text, and an id that is none
def test_a_padding_token_of_its_own_is_kept(pad, in_file, expected, folder, tmp_path):
  """Several texts can be classified at a time, which transformers refuses of a model without one."""
  hub = tmp_path / 'hub'
  shutil.copytree(folder, hub)
  (hub / in_file).write_text(json.dumps(json.loads((hub / in_file).read_text()) | {'pad_token_id': pad}))
  assert run(f'--from_hf={hub}', f'--to={tmp_path / "run"}') == 0
  assert run(f'--checkpoint={tmp_path / "run"}', f'--to_hf={tmp_path / "out"}') == 0
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['pad_token_id'] == expected
  model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'out')
  ids = torch.tensor([[40, 41, 42], [40, 41, 5]])
  if expected is None:
    with pytest.raises(ValueError, match='no padding token'):
      model(ids)
    return
  alone = model(ids[1:, :2]).logits
  torch.testing.assert_close(model(ids).logits[1:], alone)


@pytest.mark.parametrize('file, entries, message', [
  ('generation_config.json', {'bos_token_id': 300}, 'bos_token_id = 300: the vocabulary ends at'),
  ('config.json', {'eos_token_id': [3, 5_000]}, 'config.json: eos_token_id = 5000: the vocabulary ends at'),
  ('generation_config.json', {'bos_token_id': '<s>'}, "generation_config.json: bos_token_id = '<s>': give the id"),
  ('generation_config.json', {'eos_token_id': 2.0}, 'generation_config.json: eos_token_id = 2.0: give the id'),
  ('config.json', {'bos_token_id': True}, 'config.json: bos_token_id = True: give the id'),
])
def test_an_id_that_is_none_of_the_models_is_refused(file, entries, message, folder, tmp_path, capsys):
  hub = tmp_path / 'hub'
  shutil.copytree(folder, hub)
  (hub / file).write_text(json.dumps(json.loads((hub / file).read_text()) | entries))
  with pytest.raises(SystemExit):
    run(f'--from_hf={hub}', f'--to={tmp_path / "run"}')
  assert message in capsys.readouterr().err.strip().splitlines()[-1]
  assert not (tmp_path / 'run').exists()


def test_an_imported_chat_model_answers_as_with_transformers(tmp_path, capsys):
  special_tokens = '<|im_start|>', '<|im_end|>'
  tokenizer = train(['system user assistant, a few words of text'], 300, 'llama3', special_tokens=special_tokens)
  model = hf_models.make(hf_models.llama(vocab_size=tokenizer.vocab_size))
  model.generation_config.eos_token_id = [tokenizer.eot, tokenizer.special_ids['<|im_end|>']]
  model.save_pretrained(tmp_path / 'hub')
  for name, content in tokenizer_files(tokenizer, 'chatml').items():
    (tmp_path / 'hub' / name).write_bytes(content)
  assert run(f'--from_hf={tmp_path / "hub"}', f'--to={tmp_path / "run"}') == 0
  messages = [{'role': 'system', 'content': 'few words'}, {'role': 'user', 'content': 'a text'}]
  prompt = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hub').apply_chat_template(
    messages, add_generation_prompt=True, return_tensors='pt', return_dict=True)['input_ids']
  said = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1]:].tolist()
  said = [token for token in said if token not in model.generation_config.eos_token_id]
  for template in ((), ('--template=chatml',)):  # its own, and the named one that it is
    capsys.readouterr()
    assert sample.main([f'--checkpoint={tmp_path / "run"}', *template, '--system=few words', '--prompt=a text',
                        '--max_new_tokens=8', '--temperature=0']) == 0
    assert said and capsys.readouterr().out == tokenizer.decode(said) + '\n'


def test_a_run_of_ours_is_exported_with_its_tokenizer(tmp_path, capsys):
  """A stage's average, in bfloat16, in several files, without the head of one that classified."""
  model = presets.gpt2(16, 1, 2, vocab_size=257, max_length=48)
  stage = Stage('train', Data((Weighted(StandardLibrary()),)), 5, 32, 8, Constant(1e-3))
  random = np.random.default_rng(0)
  params, ema = ({path: jax.numpy.asarray(random.standard_normal(shape), 'float32') for path, shape in
                  parameter_shapes(model).items()} for _ in range(2))
  write_config(tmp_path, Run(model, (stage,), Bytes()))
  ByteTokenizer().save(tmp_path / 'tokenizer')
  head = {'classifier/w': jax.numpy.ones((16, 2))}
  with CheckpointStore(tmp_path / 'checkpoints' / 'train') as store:
    store.save(
      5, {'params': params | head, 'ema': ema | head}, make_metadata(tokenizer=ByteTokenizer().fingerprint), wait=True
    )
  assert run(f'--checkpoint={tmp_path}', f'--to_hf={tmp_path / "out"}', '--dtype=bfloat16', '--max_shard_gb=1e-5') == 0
  assert len(list((tmp_path / 'out').glob('*.safetensors'))) > 1
  assert "head 'classifier' is left out" in capsys.readouterr().err
  _, got = hf.load_pretrained(tmp_path / 'out')
  wide = np.asarray(ema['embedding/w'])
  np.testing.assert_array_equal(got['embedding']['w'], wide.astype('bfloat16').astype(np.float32))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  assert theirs.generation_config.eos_token_id == 256
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')('é')['input_ids'] == [256, *'é'.encode()]


def test_layouts_and_heads(folder, tmp_path):
  """Hugging Face to Meta's layout and back; then with fewer key and value heads."""
  assert run(f'--from_hf={folder}', f'--to_meta={tmp_path / "meta"}') == 0
  assert run(f'--from_meta={tmp_path / "meta"}', f'--to_hf={tmp_path / "hf"}') == 0
  theirs, ours = (hf_models.tensors(at) for at in (folder, tmp_path / 'hf'))
  assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs) and ours.keys() == theirs.keys()
  assert run(f'--from_hf={folder}', f'--to_hf={tmp_path / "mqa"}', '--num_kv_heads=1') == 0
  assert hf.load_pretrained(tmp_path / 'mqa')[0].pattern[0].attention.num_kv_heads == 1


def test_a_quantised_run_is_scored_sampled_and_exported(folder, tmp_path, capsys):
  """What is exported is what is sampled; the losses of the table are transformers'."""
  text = tmp_path / 'text'
  text.write_text('a few words of text, and a few more of them')
  assert run(f'--from_hf={folder}', f'--to={tmp_path / "run"}', '--quantize=int8', f'--score={text}') == 0
  before, after = capsys.readouterr().out.splitlines()[-2:]
  assert before.split()[0] == 'float32' and after.split()[0] == 'int8'
  assert int(after.split()[1].replace(',', '')) < 0.5 * int(before.split()[1].replace(',', ''))

  assert run(f'--checkpoint={tmp_path / "run"}', f'--to_hf={tmp_path / "out"}') == 0
  for place, row in ((folder, before), (tmp_path / 'out', after)):
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    ids = tokenizer(text.read_text(), return_tensors='pt')['input_ids']
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place)(ids, labels=ids).loss.item()
    np.testing.assert_allclose(float(row.split()[2]), theirs, atol=1e-4)

  written = []
  for checkpoint in ('run', 'out'):
    capsys.readouterr()
    assert sample.main([f'--checkpoint={tmp_path / checkpoint}', '--prompt=a few', '--max_new_tokens=8',
                        '--temperature=0']) == 0
    written.append(capsys.readouterr().out)
  assert written[0] == written[1]


@pytest.mark.parametrize('flags, message', (
  (('--from_hf={folder}', '--to_hf={new}', '--quantize=int8'), '--quantize = \'int8\': only with --to'),
  (('--from_hf={folder}', '--to={new}', '--score=x'), '--score = \'x\': only with --quantize'),
  (('--from_hf={folder}', '--to={new}', '--quantize=int8', '--score=x'), '--score = \'x\': is no file'),
  ((), 'nothing given: use one of --from_hf, --from_meta, --checkpoint'),
  (('--from_hf={folder}',), 'nothing given: use one of --to, --to_hf, --to_meta'),
  (('--from_hf={folder}', '--from_meta={folder}', '--to={new}'), '--from_hf --from_meta given'),
  (('--from_hf={new}', '--to={new}2'), 'is not a folder'),
  (('--from_hf={folder}', '--to_hf={folder}'), 'something already'),
  (('--from_hf={folder}', '--to={new}', '--step=3'), 'only with --checkpoint'),
  (('--from_hf={folder}', '--to_hf={new}', '--max_shard_gb=inf'), '--max_shard_gb = inf'),
  (('--from_hf={folder}', '--to={new}', '--num_kv_heads=3'), 'num_kv_heads = 3: use a divisor of the 4'),
  (('--from_meta={folder}', '--to={new}'), 'params.json'),
  (('--checkpoint={folder}', '--to_hf={new}'), ''),
))
def test_wrong_input_is_one_line(flags, message, folder, tmp_path, capsys):
  with pytest.raises(SystemExit) as error:
    run(*(flag.format(folder=folder, new=tmp_path / 'new') for flag in flags))
  assert error.value.code == 2
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert last.startswith('error: ') and message in last
  assert not list(tmp_path.iterdir())


def test_a_damaged_companion_is_not_passed_on(folder, tmp_path, capsys):
  broken = tmp_path / 'broken'
  shutil.copytree(folder, broken)
  (broken / 'generation_config.json').write_text('{')
  with pytest.raises(SystemExit) as error:
    run(f'--from_hf={broken}', f'--to={tmp_path / "run"}')
  assert error.value.code == 2 and 'generation_config.json' in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / 'run').exists()


def test_help_starts_no_jax():
  done = subprocess.run([sys.executable, '-X', 'importtime', '-m', 'launch.convert', '--help'], capture_output=True,
                        text=True, timeout=60)
  assert done.returncode == 0 and '--num_kv_heads' in done.stdout
  assert not any(line.split('|')[-1].strip() in ('jax', 'numpy') for line in done.stderr.splitlines())


def test_a_file_that_is_cut_short_while_it_is_read_is_one_line(folder, tmp_path, capsys, monkeypatch):
  hub = tmp_path / 'hub'
  shutil.copytree(folder, hub)
  read = OpenFile.read

  def cut_and_read(file, slot):
    os.truncate(file.path, slot.start)
    return read(file, slot)

  monkeypatch.setattr(OpenFile, 'read', cut_and_read)
  assert run(f'--from_hf={hub}', f'--to={tmp_path / "run"}') == 1
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith(f'error: {hub / "model.safetensors"}: ends at byte') and 'cut short' in last
  assert not (tmp_path / 'run').exists()
