"""`launch.evaluate`: scores of a small run on local files, and what is refused before its parameters are read."""
import json
import os
import re
import subprocess
import sys

import pytest

from launch import evaluate
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.hf.tokenizer import tokenizer_files
from llm_jax.retrieve.index import Index, save
from llm_jax.retrieve.passages import Passage
from tests.harness import small_tasks
from tests.harness.test_parity import VOCAB, byte_tokenizer
from tests.hf import hf_models
from tests.launch.sample_runs import write_run

ARC = [{'id': f'q{i}', 'question': f'What is {i} and {i}?', 'answerKey': 'A',
        'choices': {'text': [str(2 * i), 'no'], 'label': ['A', 'B']}} for i in range(6)]


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture
def arc(tmp_path):
  path = tmp_path / 'arc.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in ARC))
  return path


def call(workdir, *flags):
  return evaluate.main([f'--checkpoint={workdir}', *flags])


def test_an_official_task_on_a_local_file(workdir, arc, tmp_path, capsys):
  flags = ('--tasks=arc_easy', f'--data=arc_easy={arc}', '--max_length=48', '--limit=4')
  assert call(workdir, *flags, f'--output={tmp_path}/a') == 0
  out = capsys.readouterr().out
  assert 'arc_easy  0      none    acc' in out and '±' in out
  results = json.loads((tmp_path / 'a' / 'results.json').read_text())
  own = results['llm_jax']
  assert results['results']['arc_easy']['acc,none'] == own['scores'][0]['value']
  assert own['first_prompt'] == 'Question: What is 0 and 0?\nAnswer:' and own['first_ids'][:2] == [256, ord('Q')]
  assert own['bos_rule'].startswith("'<|endoftext|>' before every text") and own['requests'] == {'arc_easy': 8}
  samples = (tmp_path / 'a' / 'samples_arc_easy.jsonl').read_text().splitlines()
  assert len(samples) == 4 and json.loads(samples[0])['arguments'][0][1] == ' 0'
  page = (tmp_path / 'a' / 'page.html').read_text()
  assert 'What is 0 and 0?' in page and 'before every text' in page and 'http' not in page.split('<body>')[1]

  assert call(workdir, *flags, f'--output={tmp_path}/b', f'--baseline={tmp_path}/a', '--cluster=answerKey') == 0
  assert 'not distinguishable: +0.0000' in capsys.readouterr().out


def test_the_hf_backend_finds_the_same(workdir, tmp_path, capsys):
  tasks = small_tasks.write(tmp_path)
  flags = ['--tasks=letters', f'--data=letters={tasks}/rows.jsonl', f'--include_path={tasks}', '--truncate']
  assert call(workdir, *flags, '--against=hf', f'--output={tmp_path}/out') == 0
  assert 'hf backend: the same on 8 questions' in capsys.readouterr().out
  assert json.loads((tmp_path / 'out' / 'results.json').read_text())['llm_jax']['against_hf']['agrees']


def test_a_strategy_between_the_harness_and_the_model(workdir, tmp_path, capsys):
  tasks = small_tasks.write(tmp_path)
  flags = ['--tasks=written', f'--data=written={tasks}/rows.jsonl', f'--include_path={tasks}', '--truncate']
  flags += ['--limit=2', '--strategy=self_consistency:n=3', f'--output={tmp_path}/out']
  assert call(workdir, *flags) == 0
  assert 'written  0      none    exact_match' in capsys.readouterr().out
  assert json.loads((tmp_path / 'out' / 'results.json').read_text())['llm_jax']['strategy'] == 'self_consistency'


def test_passages_before_the_questions(workdir, tmp_path, capsys):
  """The answers are those of the same task whose questions hold the passage."""
  tasks = small_tasks.write(tmp_path)
  rows = small_tasks.rows()
  save(tmp_path / 'index', Index(tuple(Passage('a', i, row['question'][:8]) for i, row in enumerate(rows)), 'texts'))
  flags = ['--tasks=letters', f'--data=letters={tasks}/rows.jsonl', f'--include_path={tasks}', '--max_length=256']
  with pytest.raises(SystemExit):
    call(workdir, *flags, f'--strategy=retrieval:index={tmp_path}/index')
  assert 'learned positions' in capsys.readouterr().err
  flags = [*flags[:3], '--limit=3', '--max_length=48', '--truncate']
  with pytest.raises(SystemExit):
    call(workdir, *flags, f'--strategy=retrieval:index={tmp_path}/index')
  assert 'with its passages takes up to' in capsys.readouterr().err


@pytest.fixture
def unread(monkeypatch):
  """Parameters that must not be read."""
  def read(self):
    raise AssertionError('the parameters were read')
  monkeypatch.setattr(SavedCheckpoint, 'read_best', read)


@pytest.mark.parametrize('flags, line', [
  (['--tasks=arc_esy'], "--tasks = 'arc_esy': no such task: the nearest are arc_easy"),
  (['--tasks=humaneval'], "--tasks = 'humaneval': it runs code that the model writes: say --allow_code"),
  (['--tasks=arc_easy', '--data=arc_esy=FILE'], "--data = 'arc_esy': is none of the tasks: use one of arc_easy"),
  (['--tasks=arc_easy', '--data=arc_easy=nowhere'], "--data = 'arc_easy=nowhere': no such file"),
  (['--tasks=arc_easy', '--data=arc_easy'], "--data = 'arc_easy': write it as --data=TASK=FILE"),
  (['--tasks=arc_easy', '--data=arc_easy=FILE', '--chat'], '--chat = True: the model has no chat template'),
  (['--tasks=arc_easy', '--data=arc_easy=FILE', '--system=Hello'], 'say --chat too'),
  (['--tasks=arc_easy', '--data=arc_easy=FILE', '--num_fewshot=3'], 'arc_easy, question 0 = .*: the model reads 48'),
  (['--tasks=arc_easy', '--data=arc_easy=FILE', '--limit=0'], '--limit = 0: use 1 or more'),
  (['--tasks=arc_easy', '--data=arc_easy=FILE', '--baseline=nowhere'], 'holds no results.json'),
  (['--tasks=arc_easy', '--data=arc_easy=FILE', '--strategy=self'], "'self': no such strategy: use zero_shot_cot"),
  (['--tasks=boolq', '--data=boolq=FILE'], "--data = 'boolq=.*does not fit the task .*its columns are id, question"),
  (['--tasks=gsm8k', '--data=gsm8k=FILE', '--num_fewshot=0'], 'does not fit the task|the model reads 48'),
])
def test_what_is_refused_before_the_model_is_read(workdir, arc, unread, capsys, flags, line):
  with pytest.raises(SystemExit) as exit:
    call(workdir, *[flag.replace('FILE', str(arc)) for flag in flags])
  message = capsys.readouterr().err.strip().splitlines()[-1]
  assert exit.value.code == 2 and re.search(line, message), message


@pytest.mark.slow  # the harness reads the definitions of all its tasks
def test_the_harness_itself_knows_our_models(workdir, tmp_path):
  tasks = small_tasks.write(tmp_path)
  definition = (tasks / 'letters.yaml').read_text()
  (tasks / 'letters.yaml').write_text(f'{definition}dataset_path: json\ntest_split: test\ndataset_kwargs:\n'
                                      f'  data_files: {{test: {tasks}/rows.jsonl}}\n')
  command = [sys.executable, '-m', 'launch.harness', 'run', '--model', 'llm_jax', '--model_args',
             f'checkpoint={workdir},max_length=48', '--tasks', 'letters', '--include_path', str(tasks),
             '--output_path', str(tmp_path / 'out'), '--limit', '3']
  done = subprocess.run(command, env={**os.environ, 'HF_DATASETS_CACHE': str(tmp_path / 'cache')}, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  assert done.returncode == 0 and re.search(r'\|letters\|.*\|acc', done.stdout), done.stdout
  [results] = (tmp_path / 'out').rglob('results_*.json')
  assert json.loads(results.read_text())['n-samples']['letters']['effective'] == 3


@pytest.mark.slow
@pytest.mark.parametrize('flags', [(), ('--chat',)])
def test_a_hugging_face_folder(tmp_path, monkeypatch, capsys, flags):
  """With the tokenizer and the chat template that it brings."""
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  folder = tmp_path / 'model'
  config = hf_models.llama(vocab_size=VOCAB, max_position_embeddings=256, bos_token_id=258, eos_token_id=258)
  hf_models.make(config).save_pretrained(folder)
  for name, content in tokenizer_files(byte_tokenizer(), 'chatml').items():
    (folder / name).write_bytes(content)
  tasks = small_tasks.write(tmp_path)
  names = ('choices', 'letters', 'written')
  data = [f'--data={name}={tasks}/rows.jsonl' for name in names]
  call(folder, f'--tasks={",".join(names)}', *data, f'--include_path={tasks}', '--num_fewshot=1', '--against=hf',
       f'--output={tmp_path}/out', *flags)
  assert 'hf backend: the same on 24 questions' in capsys.readouterr().out
