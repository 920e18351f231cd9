"""The notebook runs from top to bottom, with fewer steps and in a folder of its own."""
import ast
import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / 'notebooks' / 'quickstart.ipynb'


def test_it_is_committed_as_it_was_written():
  """Without outputs; and all that it imports is there."""
  for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
    assert not cell.get('outputs'), 'commit the notebook without outputs'
    if cell.cell_type == 'code':
      statements = ast.parse(''.join(line for line in cell.source.splitlines(True) if not line.startswith(('%', '!'))))
      imports = [each for each in statements.body if isinstance(each, ast.Import | ast.ImportFrom)]
      exec(compile(ast.Module(imports, []), str(NOTEBOOK), 'exec'), {})


@pytest.mark.slow
def test_quickstart_notebook(tmp_path, monkeypatch):
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  for cell in notebook.cells:
    cell.source = cell.source.replace('steps = 60', 'steps = 6').replace("root / 'runs' / 'notebook'", f'pathlib.Path({str(tmp_path)!r})')
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(NOTEBOOK.parent)}}).execute()
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  text = ''.join(output.get('text', '') for output in outputs)
  assert 'bits per byte' in text and 'def ' in text
  assert any('image/png' in output.get('data', {}) for output in outputs), 'the curves are drawn'
  assert (tmp_path / 'report.html').exists()
