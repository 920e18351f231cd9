"""Weights & Biases and Trackio: what their own files hold of a run that was killed, resumed, and sent back."""
import json
import logging
import pathlib
import sqlite3
import struct
import subprocess
import sys
import time

import pytest

from launch.experiment_file import check_files
from llm_jax.config import packages, presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Constant, Run, StandardLibrary, TensorBoard, Trackio, WandB, stage
from llm_jax.tracking import wandb as wandb_tracker
from llm_jax.tracking.metrics import MetricsWriter, make_trackers
from llm_jax.tracking.run_config import write_config
from llm_jax.tracking.service import ServiceTracker
from llm_jax.tracking.tracker import TrackedRun
from llm_jax.train.branches import make_branch

BLOCK = 32_768  # bytes, of a file of Weights & Biases


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
  """No account, and nothing that a machine has set."""
  sys.modules.get('wandb') and sys.modules['wandb'].teardown()  # it keeps the environment of the test before
  for name in ('WANDB_MODE', 'WANDB_API_KEY', 'WANDB_DIR', 'WANDB_PROJECT'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
  monkeypatch.setenv('WANDB_CONFIG_DIR', str(tmp_path / 'wandb_config'))
  monkeypatch.setenv('WANDB_CACHE_DIR', str(tmp_path / 'wandb_cache'))


def make_run(*trackers):
  """Stages `first` of 10 steps and `second` of 5."""
  stages = tuple(stage(name, StandardLibrary(), steps=steps, seq_len=8, batch_size=1, learning_rate=Constant(1e-3))
                 for name, steps in (('first', 10), ('second', 5)))
  return Run(presets.llama(16, 1, 1, vocab_size=257), stages, trackers=trackers)


def writer_of(workdir, *trackers, lineage=None, primary=True):
  workdir.mkdir(exist_ok=True)
  run = make_run(*trackers)
  return MetricsWriter(workdir, make_trackers(TrackedRun(run, workdir, lineage or {})), primary=primary)


def train(writer, stage, first, last):
  """Records as a run writes them; a number is a function of its step alone."""
  for step in range(first, last + 1):
    writer.write('train', stage, step, loss=1 / step, skipped=step == 3, note='words stay in the file')
    if step % 5 == 0:
      writer.write('eval', stage, step, loss=2 / step)


# ---------------------------------------------------------------------------------------------- Weights & Biases
def records_of(path: pathlib.Path):
  """The messages in a `.wandb` file: LevelDB's log format behind a header of 7 bytes."""
  from wandb.proto.wandb_internal_pb2 import Record
  data = path.read_bytes()
  assert data[:4] == b':W&B'
  place, whole = 7, b''
  while place + 7 <= len(data):
    if BLOCK - place % BLOCK < 7:
      place += BLOCK - place % BLOCK
      continue
    _, size, kind = struct.unpack_from('<IHB', data, place)
    if place + 7 + size > len(data):  # still being written
      return
    whole += data[place + 7:place + 7 + size]
    place += 7 + size
    if kind in (1, 4):
      record = Record()
      record.ParseFromString(whole)
      yield record
      whole = b''


def wandb_files(workdir):
  """In the order in which they began; complete, for a process of its own writes them."""
  paths = list(workdir.glob('wandb/offline-run-*/*.wandb'))
  until = time.monotonic() + 60
  while not all(list(records_of(path))[-1:] and list(records_of(path))[-1].WhichOneof('record_type') == 'exit'
                for path in paths):
    assert time.monotonic() < until
    time.sleep(0.05)
  return sorted(paths, key=lambda path: next(
    record.run.start_time.ToNanoseconds() for record in records_of(path) if record.WhichOneof('record_type') == 'run'))


def history(path):
  """The rows of a file, without the columns that Weights & Biases adds."""
  rows = []
  for record in records_of(path):
    if record.WhichOneof('record_type') == 'history':
      items = {item.key or '.'.join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
      rows.append({name: value for name, value in items.items() if not name.startswith('_')})
  return rows


def test_a_resumed_run_is_one_run_of_wandb_without_duplicates(tmp_path):
  workdir = tmp_path / 'mine'
  tracker = WandB('project', entity='us', mode='offline')
  with writer_of(workdir, tracker) as writer:
    writer.rewind('first', 0)
    train(writer, 'first', 1, 8)
  with writer_of(workdir, tracker) as writer:  # the run was killed, and goes on from a checkpoint of step 4
    writer.rewind('first', 4)
    train(writer, 'first', 5, 10)
    writer.rewind('second', 0)
    train(writer, 'second', 1, 5)
  before, after = wandb_files(workdir)
  rows = history(before) + history(after)
  axis = {name: [row['global_step'] for row in rows if name in row] for row in rows for name in row}
  assert axis['first/train/loss'] == list(range(1, 11)) and axis['first/eval/loss'] == [5, 10]
  assert axis['second/train/loss'] == list(range(11, 16)) and axis['second/eval/loss'] == [15]
  assert [row['first/train/loss'] for row in rows if 'first/train/loss' in row] == [1 / n for n in range(1, 11)]
  assert [row['first/train/skipped'] for row in rows[:4]] == [0, 0, 1, 0]
  assert not any('note' in name for name in axis)
  runs = [record.run for path in (before, after) for record in records_of(path)
          if record.WhichOneof('record_type') == 'run']
  noted = json.loads((workdir / 'trackers' / 'wandb.json').read_bytes())
  assert {run.run_id for run in runs} == {noted['id']} and {run.project for run in runs} == {'project'}
  assert (runs[0].entity, runs[0].display_name) == ('us', 'mine')


def test_wandb_has_the_configuration_and_draws_over_the_steps(tmp_path):
  with writer_of(tmp_path / 'mine', WandB('project', name='named', mode='offline'), lineage={'code': 'abc'}) as writer:
    train(writer, 'first', 1, 1)
  records = list(records_of(*wandb_files(tmp_path / 'mine')))
  [run] = [record.run for record in records if record.WhichOneof('record_type') == 'run']
  config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in run.config.update}
  assert config['stages']['second']['steps'] == 5 and config['model']['d_model'] == 16
  assert config['lineage'] == {'code': 'abc'} and run.display_name == 'named'
  metrics = [record.metric for record in records if record.WhichOneof('record_type') == 'metric']
  assert any((metric.glob_name, metric.step_metric) == ('*', 'global_step') for metric in metrics)


def test_wandb_that_is_added_later_is_sent_what_there_is(tmp_path):
  workdir = tmp_path / 'mine'
  with writer_of(workdir, TensorBoard()) as writer:
    train(writer, 'first', 1, 8)
  with writer_of(workdir, TensorBoard(), WandB('project', mode='offline')) as writer:
    writer.rewind('first', 5)
    train(writer, 'first', 6, 10)
  [file] = wandb_files(workdir)
  assert [row['global_step'] for row in history(file) if 'first/train/loss' in row] == list(range(1, 11))


@pytest.mark.parametrize('key', [None, '0' * 40])
def test_without_an_account_or_a_network_the_run_is_kept_and_training_goes_on(tmp_path, caplog, monkeypatch, key):
  """The address is of this machine, where nobody listens."""
  monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')
  monkeypatch.setattr('sys.stdin', open('/dev/null'))
  monkeypatch.setattr(wandb_tracker, 'BEGIN_SECONDS', 1)
  if key:
    monkeypatch.setenv('WANDB_API_KEY', key)
  with caplog.at_level(logging.WARNING), writer_of(tmp_path / 'mine', WandB('project')) as writer:
    train(writer, 'first', 1, 3)
  [warning] = [record.getMessage() for record in caplog.records if record.name.startswith('llm_jax')]
  assert 'wandb sync' in warning and '\n' not in warning
  [file] = wandb_files(tmp_path / 'mine')
  assert [row['global_step'] for row in history(file)] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------- Trackio
TRACKIO_RUN = """
import pathlib, sys
from tests.tracking.test_services import Trackio, train, writer_of
workdir = pathlib.Path(sys.argv[1])
for name in (None, 'named'):
  tracker = Trackio('project', name=name)
  with writer_of(workdir / str(name), tracker) as writer:
    train(writer, 'first', 1, 8)
  with writer_of(workdir / str(name), tracker) as writer:
    writer.rewind('first', 4)
    train(writer, 'first', 5, 10)
    train(writer, 'second', 1, 5)
"""


def test_a_resumed_run_is_one_run_of_trackio_without_duplicates(tmp_path, monkeypatch):
  """In a process of its own: Trackio reads its folder when it is imported."""
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
  done = subprocess.run([sys.executable, '-c', TRACKIO_RUN, str(tmp_path)], capture_output=True, text=True,
                        cwd=pathlib.Path(__file__).parents[2])
  assert done.returncode == 0, done.stderr
  [database] = (tmp_path / 'trackio').glob('*.db')
  with sqlite3.connect(database) as connection:
    rows = connection.execute('SELECT run_name, run_id, step, metrics FROM metrics ORDER BY id').fetchall()
    configs = dict(connection.execute('SELECT run_name, config FROM configs').fetchall())
  unnamed = json.loads((tmp_path / 'None' / 'trackers' / 'trackio.json').read_bytes())['id']
  assert {name for name, *_ in rows} == {f'None-{unnamed}', 'named'} == set(configs)
  for name, config in configs.items():
    mine = [(step, json.loads(metrics)) for run, _, step, metrics in rows if run == name]
    assert len({run_id for run, run_id, *_ in rows if run == name}) == 1
    assert [(step, found['first/train/loss']) for step, found in mine if 'first/train/loss' in found] == [
      (n, 1 / n) for n in range(1, 11)]
    assert [step for step, found in mine if 'second/train/loss' in found] == list(range(11, 16))
    assert json.loads(config)['stages']['first']['steps'] == 10


# ---------------------------------------------------------------------------------------------- any service
class Memory:
  """A service that keeps rows, and fails where it is told to."""
  name = 'memory'

  def __init__(self, fails_to_open=False, fails_to_log=False):
    self.fails_to_open, self.fails_to_log = fails_to_open, fails_to_log
    self.opened, self.rows = [], []

  def open(self, run_id, is_new):
    self.opened.append((run_id, is_new))
    if self.fails_to_open:
      raise OSError('no network')

  def log(self, numbers, step, time):
    if self.fails_to_log:
      raise OSError('no network')
    self.rows.append((step, dict(numbers)))

  def close(self):
    pass


def writer_to(service, workdir, primary=True):
  workdir.mkdir(exist_ok=True)
  return MetricsWriter(workdir, [ServiceTracker(service, TrackedRun(make_run(), workdir))], primary=primary)


def test_a_kill_while_steps_come_again_makes_no_duplicates(tmp_path):
  """The second run is killed after it has cut metrics.jsonl, and before it has trained all steps again."""
  service = Memory()
  for first, last in ((1, 8), (3, 5), (3, 10)):
    writer = writer_to(service, tmp_path / 'mine')  # and is never closed
    writer.rewind('first', first - 1)
    train(writer, 'first', first, last)
  assert [step for step, numbers in service.rows if 'first/train/loss' in numbers] == list(range(1, 11))
  assert [step for step, numbers in service.rows if 'first/eval/loss' in numbers] == [5, 10]
  assert [is_new for _, is_new in service.opened] == [True, False, False]


@pytest.mark.parametrize('fails', ['fails_to_open', 'fails_to_log'])
def test_a_service_that_fails_is_one_warning(tmp_path, caplog, fails):
  service = Memory(**{fails: True})
  with caplog.at_level(logging.WARNING), writer_to(service, tmp_path / 'mine') as writer:
    writer.rewind('first', 0)
    train(writer, 'first', 1, 5)
  assert len(caplog.records) == 1 and 'training goes on' in caplog.text
  assert len(service.opened) == 1  # each try may take as long as a network is waited for
  assert len((tmp_path / 'mine' / 'metrics.jsonl').read_text().splitlines()) == 6


def test_only_the_primary_process_opens_a_service(tmp_path):
  service = Memory()
  with writer_to(service, tmp_path / 'mine', primary=False) as writer:
    writer.rewind('first', 0)
    train(writer, 'first', 1, 2)
  assert not service.opened and not list((tmp_path / 'mine').iterdir())


# ---------------------------------------------------------------------------------------------- before anything starts
def test_a_missing_package_is_refused_with_the_line_that_installs_it(monkeypatch):
  find = packages.importlib.util.find_spec
  monkeypatch.setattr(packages.importlib.util, 'find_spec', lambda name: None if name == 'wandb' else find(name))
  with pytest.raises(ConfigError, match=r"config.trackers\[1\] = .*: needs wandb, .*: pip install 'llm_jax\[wandb\]'"):
    check_files(make_run(TensorBoard(), WandB('project')), 'mine.py')
  check_files(make_run(TensorBoard(), Trackio('project')), 'mine.py')


def test_a_folder_of_runs_is_no_package(tmp_path, monkeypatch):
  (tmp_path / 'no_such_package_but_a_folder').mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  assert not packages.is_installed('no_such_package_but_a_folder') and packages.is_installed('json')


@pytest.mark.parametrize('make, words', [
  (lambda: WandB(''), 'project'), (lambda: WandB('a/b'), 'project'), (lambda: WandB('a', mode='on'), 'mode'),
  (lambda: Trackio(' '), 'project'), (lambda: make_run(WandB('a'), WandB('b')), 'name each kind once')])
def test_wrong_trackers_are_refused(make, words):
  with pytest.raises(ConfigError, match=words):
    make()


def test_a_run_that_goes_back_begins_another_one_of_the_service(tmp_path):
  """It has the records until that step; the old one stays as it was."""
  workdir = tmp_path / 'mine'
  before, after = Memory(), Memory()
  with writer_to(before, workdir) as writer:
    train(writer, 'first', 1, 8)
  write_config(workdir, make_run())
  make_branch(workdir, make_run(), 'first', 0)
  assert (workdir / 'branches' / '1' / 'trackers' / 'memory.json').exists()
  with writer_to(after, workdir) as writer:
    writer.rewind('first', 0)
    train(writer, 'first', 1, 3)
  assert [is_new for _, is_new in after.opened] == [True] and after.opened[0][0] != before.opened[0][0]
  assert [step for step, numbers in after.rows if 'first/train/loss' in numbers] == [1, 2, 3]
