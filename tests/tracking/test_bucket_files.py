"""Records, events and the owner of a run's folder in a bucket."""
import json
import threading
import time

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.trackers import TensorBoard
from llm_jax.tracking import lease, parts, tensorboard
from llm_jax.tracking.lease import hold_lease
from llm_jax.tracking.metrics import MetricsWriter, read_generations, read_metrics, warn_of_damage
from llm_jax.tracking.tensorboard import TensorBoardTracker
from llm_jax.tracking.tracker import Record, TrackedRun
from tests.bucket_servers import SCHEMES, bucket, download


@pytest.fixture(params=SCHEMES)
def folder(request):
  with bucket(request.param, 'run') as found:
    yield found
    found.remove_all()


@pytest.fixture
def s3_folder():
  with bucket('s3', 'run') as found:
    yield found
    found.remove_all()


def write(writer, steps, stage='a') -> None:
  for step in steps:
    writer.write('train', stage, step, loss=1 / step)


def steps_in(folder, stage='a') -> list[int]:
  return [record['step'] for record in read_metrics(folder) if record['stage'] == stage]


def test_records_come_back_as_from_a_folder(tmp_path, folder):
  for place in (tmp_path, folder):
    with MetricsWriter(place) as writer:
      write(writer, range(1, 30))
      writer.write('eval', 'a', 29, loss=0.1, bits=float('nan'))
      writer.generation('a', 29, 'prompt', 'text')
  untimed = lambda place: repr([{**record, 'time': 0} for record in read_metrics(place)])
  assert untimed(folder) == untimed(tmp_path) and read_generations(folder) == read_generations(tmp_path)
  assert len(read_metrics(folder)) == 30


def test_a_kill_loses_what_was_not_flushed_and_no_more(s3_folder):
  writer = MetricsWriter(s3_folder)
  write(writer, range(1, 11))
  writer.flush()
  write(writer, range(11, 15))  # and the process dies
  assert steps_in(s3_folder) == list(range(1, 11))
  with MetricsWriter(s3_folder) as again:
    write(again, range(11, 15))
  assert steps_in(s3_folder) == list(range(1, 15))


def test_what_is_no_training_record_is_written_at_once(s3_folder):
  writer = MetricsWriter(s3_folder)
  write(writer, [1])
  writer.write('final', 'a', 1, loss=1.0)
  assert [record['kind'] for record in read_metrics(s3_folder)] == ['train', 'final']


def test_parts_are_bounded_and_rewound(monkeypatch, s3_folder):
  monkeypatch.setattr(parts, 'PART_BYTES', 400)
  with MetricsWriter(s3_folder) as writer:
    for step in range(1, 41):
      write(writer, [step])
      writer.flush()
    write(writer, range(1, 4), stage='b')
  sizes = [len((s3_folder / 'metrics.jsonl' / name).read_bytes()) for name in (s3_folder / 'metrics.jsonl').names()]
  assert len(sizes) > 5 and max(sizes) < 800
  with MetricsWriter(s3_folder) as writer:
    assert writer.rewind('a', 12) == 40
    assert steps_in(s3_folder) == list(range(1, 13)) and steps_in(s3_folder, 'b') == [1, 2, 3]
    write(writer, range(13, 16))
  assert steps_in(s3_folder) == list(range(1, 16))


def test_a_damaged_line_is_named(s3_folder, caplog):
  with MetricsWriter(s3_folder) as writer:
    write(writer, range(1, 4))
  part = s3_folder / 'metrics.jsonl' / '00000001'
  part.write_bytes(part.read_bytes().replace(b'"step": 2', b'"step": 7'))
  warn_of_damage(s3_folder)
  assert steps_in(s3_folder) == [1, 3] and 'damaged in line 2' in caplog.text


def test_a_bucket_that_fails_stops_no_training(caplog):
  refuses = threading.Event()
  with bucket('s3', 'run', lambda method, path: 403 if refuses.is_set() and method == 'PUT' else None) as folder:
    writer = MetricsWriter(folder)
    write(writer, [1])
    refuses.set()
    writer.flush()
    assert 'training goes on' in caplog.text and not steps_in(folder)
    refuses.clear()
    write(writer, [2])
    writer.close()
    assert steps_in(folder) == [1, 2]
    folder.remove_all()


def test_tensorboard_reads_the_events(tmp_path, monkeypatch, s3_folder):
  accumulators = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  monkeypatch.setattr(tensorboard, 'MOST_BYTES', 2_000)
  tracker = TensorBoardTracker(TensorBoard(), TrackedRun(None, s3_folder))
  for step in range(1, 101):
    tracker.write(Record('train', 'a', step, 1e9 + step, {'loss': 1 / step}))
    if step % 20 == 0:
      time.sleep(0.2)  # the write under way ends
  tracker.close()
  download(s3_folder, tmp_path)
  assert len(list((tmp_path / 'tensorboard' / 'a').iterdir())) > 1
  reader = accumulators.EventAccumulator(str(tmp_path / 'tensorboard' / 'a'))
  reader.Reload()
  assert [event.step for event in reader.Scalars('train/loss')] == list(range(1, 101))


# ---------------------------------------------------------------------------------------------- leases
@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(lease, 'SIGN_SECONDS', 0.05)
  monkeypatch.setattr(lease, 'WAIT_SECONDS', 1.5)
  monkeypatch.setattr(lease, '_is_dead', lambda owner: False)


def test_one_run_at_a_time(s3_folder, quick):
  path = s3_folder / 'run.lock'
  with hold_lease(path, print):
    with pytest.raises(ConfigError, match='another run is using it .pid'), hold_lease(path, print):
      raise AssertionError('two runs hold it')
  assert not path.exists()
  with hold_lease(path, print):
    pass


def test_the_lease_of_a_run_that_died_is_taken(s3_folder, quick):
  path = s3_folder / 'run.lock'
  path.write_text(json.dumps({'id': 'x', 'pid': 1, 'host': 'elsewhere', 'count': 3}))
  with hold_lease(path, print):
    assert json.loads(path.read_bytes())['id'] != 'x'


def test_a_run_ends_whose_lease_was_taken(s3_folder, quick):
  path = s3_folder / 'run.lock'
  lost = threading.Event()
  with hold_lease(path, lambda text: lost.set()):
    path.write_text(json.dumps({'id': 'x', 'pid': 1, 'host': 'elsewhere'}))
    assert lost.wait(10)
