"""A run that is killed, stopped or moved ends where an untouched one ends."""
import random
import shutil
import signal
import time

import pytest

from tests.train import runs


@pytest.fixture(scope='module')
def untouched(corpus, tmp_path_factory):
  """An uninterrupted run, and how long it took."""
  workdir = tmp_path_factory.mktemp('untouched')
  runs.run(corpus, workdir)
  begun = time.monotonic()
  again = tmp_path_factory.mktemp('again')
  runs.run(corpus, again)  # with warm caches, as the runs that are killed
  assert runs.state_hash(again, 'second') == runs.state_hash(workdir, 'second')
  return workdir, time.monotonic() - begun


@pytest.mark.parametrize('wanted', [4, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments(corpus, untouched, tmp_path, wanted):
  """Runs killed again and again: each resumes and ends bitwise equal, every loss included."""
  reference, seconds = untouched
  kills, attempt, rng = 0, 0, random.Random(wanted)
  while kills < wanted:
    workdir = tmp_path / f'{attempt}'
    attempt += 1
    for _ in range(6):
      process = runs.start(corpus, workdir)
      try:
        output, _ = process.communicate(timeout=rng.uniform(0.1 * seconds, seconds))
        assert process.returncode == 0, output
        break
      except runs.subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    else:
      runs.run(corpus, workdir)
    assert runs.losses(workdir) == runs.losses(reference)
    assert runs.losses(workdir, 'eval') == runs.losses(reference, 'eval')
    for stage in ('first', 'second'):
      assert runs.state_hash(workdir, stage) == runs.state_hash(reference, stage)


def test_sigterm_saves_and_says_so(corpus, untouched, tmp_path):
  stop_after(7, [runs.start(corpus, tmp_path)], tmp_path)
  runs.run(corpus, tmp_path)
  assert runs.losses(tmp_path) == runs.losses(untouched[0])
  assert runs.state_hash(tmp_path, 'second') == runs.state_hash(untouched[0], 'second')


def test_a_finished_run_is_skipped(corpus, untouched):
  before = runs.state_hash(untouched[0], 'second')
  output = runs.run(corpus, untouched[0])
  assert 'first: finished before, skipped' in output and 'second: finished before, skipped' in output
  assert runs.state_hash(untouched[0], 'second') == before


def test_a_changed_config_is_refused_and_nothing_is_harmed(corpus, untouched):
  before = runs.state_hash(untouched[0], 'second')
  output = runs.run(corpus, untouched[0], '--config.stages[0].learning_rate.peak=1', expect=2)
  assert 'stages[0].learning_rate.peak' in output and '0.003' in output
  assert runs.state_hash(untouched[0], 'second') == before


def test_a_damaged_last_checkpoint_is_named_and_its_steps_are_done_again(corpus, untouched, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(untouched[0], workdir)
  newest = workdir / 'checkpoints' / 'first' / '00000024'
  data = max((newest / 'state').rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  output = runs.run(corpus, workdir)
  assert f'checkpoint not used: {newest}' in output and data.name in output
  assert 'second: finished before, skipped' in output
  assert runs.losses(workdir) == runs.losses(untouched[0])
  assert runs.state_hash(workdir, 'first') == runs.state_hash(untouched[0], 'first')


# Of the first stage, on 8 devices, with an evaluation and samples in the middle.
SHARDED = ('--stage=first', '--config.stages[0].optimizer.kind=AdamW',
           '--config.stages[0].evals[1].kind=Generations', '--config.stages[0].evals[1].prompts=("def ", "class ")',
           '--config.stages[0].evals[1].max_new_tokens=8',
           '--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')


@pytest.fixture(scope='module')
def one_process(corpus, tmp_path_factory):
  """A run of one process with 8 devices."""
  workdir = tmp_path_factory.mktemp('one')
  runs.run(corpus, workdir, *SHARDED, devices=8)
  return workdir


def assert_close(workdir, reference, rel):
  for kind in ('train', 'eval'):
    assert runs.losses(workdir, kind) == pytest.approx(runs.losses(reference, kind), rel=rel, abs=0)


def test_moved_from_two_processes_to_one(corpus, one_process, tmp_path):
  """2 x 4 devices, past an evaluation, then 1 x 8: the same rows in the same order."""
  stop_after(15, runs.start_processes(corpus, tmp_path, 2, *SHARDED, devices=4), tmp_path)
  runs.run(corpus, tmp_path, *SHARDED, devices=8)
  assert_close(tmp_path, one_process, 1e-5)


@pytest.mark.slow
def test_other_numbers_of_processes_see_the_same_documents(corpus, one_process, tmp_path):
  """1 process x 8 devices = 2 x 4; moved from 2 processes to 1 to 4, a run reads the same rows in the same order."""
  runs.run_processes(corpus, tmp_path / 'two', 2, *SHARDED, devices=4)
  assert_close(tmp_path / 'two', one_process, 1e-6)

  moved = tmp_path / 'moved'
  stop_after(6, runs.start_processes(corpus, moved, 2, *SHARDED, devices=4), moved)
  stop_after(15, [runs.start(corpus, moved, *SHARDED, devices=8)], moved)
  runs.run_processes(corpus, moved, 4, *SHARDED, devices=2)
  assert_close(moved, one_process, 1e-5)


def stop_after(lines: int, processes, workdir) -> None:
  """SIGTERM to the last process, once metrics.jsonl has so many lines: all save the same step and exit with 75."""
  metrics, deadline = workdir / 'metrics.jsonl', time.monotonic() + 180
  while not (metrics.exists() and len(metrics.read_text().splitlines()) > lines):
    assert all(p.poll() is None for p in processes) and time.monotonic() < deadline
    time.sleep(0.02)
  processes[-1].send_signal(signal.SIGTERM)
  outputs = [p.communicate(timeout=120)[0] for p in processes]
  assert [p.returncode for p in processes] == [75] * len(processes), '\n'.join(outputs)
  assert 'the same command goes on' in outputs[0]
