"""Wrong input that only the data, the devices or the workdir can show: one line, exit code 2, nothing compiled."""
import pathlib

import pytest

from launch import train
from tests.train import runs

MESH = '--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.context=2'
SHAKESPEARE = pathlib.Path(__file__).parents[2] / 'experiments' / 'shakespeare_char.py'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr('llm_jax.train.compile.compile_step', lambda *_: pytest.fail('something was compiled'))


def refused(capsys, config: str, workdir: pathlib.Path, *flags: str) -> str:
  """The one line that the command line ends with."""
  with pytest.raises(SystemExit) as exit:
    train.main(['launch.train', f'--config={config}', f'--workdir={workdir}', *MESH, *flags])
  assert exit.value.code == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert lines[-1].startswith('error: ') and not any('Traceback' in line for line in lines)
  return lines[-1]


@pytest.mark.parametrize('content, message', [
  (b'{"text": "a"}\nnot json\n', 'bad.jsonl:2'),
  (b'{"text": "a"}\n{"text": "\xff"}\n', 'not UTF-8'),
  (b'{"text": "a"}\n{"title": "b"}\n', 'bad.jsonl:2'),
  (b'', 'empty'),
])
def test_bad_rows_name_file_and_line(content, message, tmp_path, capsys):
  path = tmp_path / 'bad.jsonl'
  path.write_bytes(content)
  line = refused(capsys, runs.tiny('experiment', path), tmp_path / 'run')
  assert 'config.stages[0].data.sources[0].source' in line and message in line


def test_text_that_is_not_utf8(tmp_path, capsys):
  (tmp_path / 'bad.txt').write_bytes(b'abc\xff')
  assert 'bad.txt:1' in refused(capsys, f'{SHAKESPEARE}:{tmp_path / "bad.txt"}', tmp_path / 'run')


def test_a_mesh_that_does_not_divide_the_devices(tmp_path, capsys):
  line = refused(capsys, runs.tiny('experiment', runs.write_corpus(tmp_path)), tmp_path / 'run', '--config.mesh.data=3')
  assert 'config.mesh.data = 3' in line and '8' in line


def test_a_folder_of_another_run_is_left_alone(tmp_path, capsys):
  corpus, run = runs.write_corpus(tmp_path), tmp_path / 'run'
  (run / 'checkpoints' / 'first' / '00000005').mkdir(parents=True)
  for text in ('{"seed": 7}\n', '{"version": "0.2.0", "seed": 7}\n'):
    (run / 'config.json').write_text(text)
    assert str(run) in refused(capsys, runs.tiny('experiment', corpus), run)
    assert (run / 'config.json').read_text() == text


def test_a_folder_of_an_older_version_is_refused_in_one_line_that_names_it(tmp_path, capsys):
  corpus, run = runs.write_corpus(tmp_path), tmp_path / 'run'
  (run / 'checkpoints' / 'first' / '00000005').mkdir(parents=True)
  (run / 'config.json').write_text('{"seed": 1, "stages": [{"init": ["scratch"], "context": 32}]}')  # as 0.1 wrote it
  line = refused(capsys, runs.tiny('experiment', corpus), run)
  assert 'was written by llm_jax 0.1, whose configuration this version' in line and 'name another folder' in line


def test_a_folder_where_nothing_was_saved_is_free(tmp_path, capsys):
  """A first attempt that failed does not bind the folder to its configuration."""
  (tmp_path / 'bad.jsonl').write_text('not json\n')
  for seed in (1, 2):
    line = refused(capsys, runs.tiny('experiment', tmp_path / 'bad.jsonl'), tmp_path / 'run', f'--config.seed={seed}')
    assert 'bad.jsonl:1' in line
