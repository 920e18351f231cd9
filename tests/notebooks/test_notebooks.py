"""The notebooks run from top to bottom, with fewer steps and in a folder of their own."""
import ast
import pathlib

import nbclient
import nbformat
import pytest
import transformers

from llm_jax.data.tokenizers.byte_level import train as train_tokenizer
from llm_jax.hf.tokenizer import tokenizer_files
from llm_jax.tracking.metrics import read_metrics
from tests.hf import hf_models

FOLDER = pathlib.Path(__file__).parents[2] / 'notebooks'


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.ipynb')), ids=lambda path: path.stem)
def test_it_is_committed_as_it_was_written(path):
  """Without outputs; and all that it imports is there."""
  for cell in nbformat.read(path, as_version=4).cells:
    assert not cell.get('outputs'), 'commit the notebook without outputs'
    if cell.cell_type == 'code':
      statements = ast.parse(''.join(line for line in cell.source.splitlines(True) if not line.startswith(('%', '!'))))
      imports = [each for each in statements.body if isinstance(each, ast.Import | ast.ImportFrom)]
      exec(compile(ast.Module(imports, []), str(path), 'exec'), {})


def execute(name, tmp_path, monkeypatch, **replaced):
  """Runs a notebook with other values of some names; returns its cells.   replaced: name -> what it is set to."""
  notebook = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  for name, value in replaced.items():
    [cell] = [cell for cell in notebook.cells if f'\n{name} = ' in f'\n{cell.source}']
    lines = [f'{name} = {value}' if line.startswith(f'{name} = ') else line for line in cell.source.splitlines()]
    cell.source = '\n'.join(lines)
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(FOLDER)}}).execute()
  return notebook.cells


def printed(cells):
  return ''.join(output.get('text', '') for cell in cells for output in cell.get('outputs', ()))


def has_picture(cells):
  return any('image/png' in output.get('data', {}) for cell in cells for output in cell.get('outputs', ()))


@pytest.mark.slow
def test_quickstart_notebook(tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  cells = execute('quickstart', tmp_path, monkeypatch, steps=6, workdir=f'pathlib.Path({str(workdir)!r})')
  assert 'bits per byte' in printed(cells) and 'def ' in printed(cells)
  assert has_picture(cells)
  assert (workdir / 'report.html').exists()


@pytest.mark.slow
def test_lora_notebook(tmp_path, monkeypatch):
  """On a tiny model from a folder; the merged one is loaded by transformers."""
  tokenizer = train_tokenizer(['system user assistant, def f(x): return x'] * 9, 320, 'llama3',
                              special_tokens=('<|im_start|>', '<|im_end|>'))
  hf_models.make(hf_models.llama(vocab_size=tokenizer.vocab_size)).save_pretrained(tmp_path / 'model')
  for name, content in tokenizer_files(tokenizer, 'chatml').items():
    (tmp_path / 'model' / name).write_bytes(content)
  workdir = tmp_path / 'run'
  cells = execute('lora', tmp_path, monkeypatch, steps=10, model_name=repr(str(tmp_path / 'model')),
                  workdir=f'pathlib.Path({str(workdir)!r})')
  assert 'all parameters' in printed(cells) and has_picture(cells)
  merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'run-merged')
  assert merged.config.vocab_size == tokenizer.vocab_size


@pytest.mark.slow
def test_rl_notebook(tmp_path, monkeypatch):
  folder = tmp_path / 'rl'
  cells = execute('rl', tmp_path, monkeypatch, text_steps=4, steps=3, batch_size=16, folder=f'pathlib.Path({str(folder)!r})')
  assert 'held-out answers that pass at step 3' in printed(cells) and '402913>' in printed(cells)
  assert has_picture(cells)
  rewards = [record['reward'] for record in read_metrics(folder / 'run') if 'reward' in record]
  assert len(rewards) == 3 and all(0 <= reward <= 1 for reward in rewards)
  assert (folder / 'run' / 'report.html').exists()
