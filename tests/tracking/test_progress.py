"""What a person sees while it runs: live on a terminal, few lines elsewhere, and never an error."""
import io
import re
import subprocess
import sys

import pytest

from llm_jax.tracking import progress
from llm_jax.tracking.numbers import duration, size
from llm_jax.tracking.progress import Progress
from llm_jax.tracking.task import ByteProgress, task


class Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
  return Clock(monkeypatch)


def run(clock, steps, seconds_per_step, **options):
  file = io.StringIO()
  with Progress(steps, 'pretrain', file=file, **options) as p:
    for step in range(1, steps + 1):
      clock.now += seconds_per_step
      p.update(step, loss=2.5, tokens_per_second=12_345.6, mfu=0.4251, learning_rate=3e-4, memory=3 * 2**30)
  return file.getvalue()


@pytest.mark.parametrize('steps, seconds_per_step, least, most', [
    (5, 0.01, 2, 2), (10_000, 0.001, 2, 12), (1_000, 0.1, 40, 55), (100, 30.0, 100, 100), (10_000, 1.0, 900, 1_100)])
def test_plain_lines_are_neither_a_flood_nor_a_silence(clock, steps, seconds_per_step, least, most):
  lines = run(clock, steps, seconds_per_step).splitlines()
  assert least <= len(lines) <= most
  assert f'step {steps:,}/{steps:,}' in lines[-1]
  assert '\x1b' not in ''.join(lines)


def test_a_plain_line_says_everything(clock):
  lines = run(clock, 100, 30.0).splitlines()
  assert lines[49] == ('pretrain  step 50/100  loss 2.5000  tokens/s 12,346  MFU 42.5%  lr 3.00e-04  memory 3.0 GiB  '
                       'left 25 min 00 s')
  assert lines[-1].endswith('took 50 min 00 s')


def test_time_left_leaves_out_the_first_step_and_what_was_done_before(clock):
  with Progress(1_000, 'resumed', start=500, file=io.StringIO()) as p:
    clock.now += 60  # the first step compiles
    p.update(501)
    assert p.line().endswith('left ?')
    for step in range(502, 601):
      clock.now += 2
      p.update(step)
    assert p.seconds_left() == pytest.approx(800)


def test_results_and_messages_are_printed(clock):
  file = io.StringIO()
  with Progress(10, 'pretrain', file=file) as p:
    p.evaluated('held-out at step 4: loss 2.3100')
    p.message('saved [bold]step 4')
  assert 'pretrain  held-out at step 4: loss 2.3100' in file.getvalue()
  assert 'saved [bold]step 4' in file.getvalue()


def test_live_display_shows_the_numbers_and_keeps_the_last_picture():
  file = io.StringIO()
  with Progress(10, 'pretrain', file=file, live=True) as p:
    for step in range(1, 11):
      p.update(step, loss=1.75, tokens_per_second=4_000.0, mfu=0.5)
    p.evaluated('held-out at step 10: loss 2.31')
    p.message('a message [not markup]')
  text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', file.getvalue())
  last = text[text.rindex('pretrain'):]
  for word in ('100%', 'step 10 of 10', 'loss 1.7500', 'tokens/s 4,000', 'MFU 50.0%', 'held-out at step 10:'):
    assert word in last
  assert 'a message [not markup]' in text


def test_a_display_that_breaks_turns_into_lines(monkeypatch):
  import rich.live
  file = io.StringIO()
  monkeypatch.setattr(rich.live.Live, 'start', lambda self: 1 / 0)
  with Progress(3, 'pretrain', file=file, live=True) as p:
    p.update(3, loss=1.0)
  assert 'pretrain  step 3/3  loss 1.0000' in file.getvalue()


def test_a_closed_file_turns_into_silence():
  file = io.StringIO()
  with Progress(3, 'pretrain', file=file) as p:
    file.close()
    p.update(1, loss=1.0)
    p.message('nobody hears')
    p.update(3, loss=1.0)
  with task('tokenise', 10, file=file) as advance:
    advance(10)


def test_other_processes_show_nothing():
  file = io.StringIO()
  with Progress(3, 'pretrain', file=file, enabled=False, live=True) as p:
    p.update(3, loss=1.0)
    p.evaluated('loss 1.0')
    p.message('x')
  with task('tokenise', 10, file=file, enabled=False) as advance:
    advance(10)
  assert file.getvalue() == ''


def test_errors_of_the_loop_pass_through():
  with pytest.raises(KeyError), Progress(3, 'pretrain', file=io.StringIO(), live=True) as p:
    p.update(1, loss=1.0)
    raise KeyError('the loop\'s own')


def test_what_nobody_reads_ends_nothing():
  """The reader of a pipe has gone: lines, and what is left of them in the buffer, go nowhere."""
  code = (
    'import sys\nfrom llm_jax.tracking.progress import Progress\nfrom llm_jax.tracking.terminal import say\n'
    'sys.stdin.read()\n'
    'with Progress(3, "a") as p:\n  p.update(1, loss=1.0)\n  say("one")\n  p.message("two")\nsay("three")\n'
    'print("went on", file=sys.stderr)'
  )
  process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
  process.stdout.close()
  process.stdin.close()
  assert process.stderr.read() == 'went on\n' and process.wait(60) == 0
  process.stderr.close()


def test_a_total_that_was_an_estimate_is_not_shown_at_the_end(clock):
  file = io.StringIO()
  with task('tokenise', 40, file=file) as advance:
    advance(10)
  with pytest.raises(KeyError), task('tokenise', 40, file=file) as advance:
    advance(10)
    raise KeyError
  assert file.getvalue().splitlines() == ['tokenise: 10 in 0 s', 'tokenise: 10 of 40 (25%) in 0 s']


def test_progress_in_bytes():
  file = io.StringIO()
  with ByteProgress('import', file=file) as progress:
    for done in (2**20, 3 * 2**20):
      progress(done, 4 * 2**20)
  assert file.getvalue() == 'import: 3.0 MiB in 0 s\n'


def test_tasks(clock):
  file = io.StringIO()
  with task('tokenise', 4 * 2**20, unit='B', file=file) as advance:
    for _ in range(4):
      clock.now += 11
      advance(2**20)
  assert file.getvalue().splitlines() == [
      'tokenise: 1.0 MiB of 4.0 MiB (25%)', 'tokenise: 2.0 MiB of 4.0 MiB (50%)', 'tokenise: 3.0 MiB of 4.0 MiB (75%)',
      'tokenise: 4.0 MiB of 4.0 MiB (100%)', 'tokenise: 4.0 MiB in 44 s']
  file = io.StringIO()
  with task('read', unit='documents', file=file) as advance:
    advance()
  assert file.getvalue() == 'read: 1 documents in 0 s\n'
  file = io.StringIO()
  with task('tokenise', 10, file=file, live=True) as advance:
    advance(10)
  assert 'tokenise' in file.getvalue() and '100%' in file.getvalue()


def test_words():
  assert [duration(s) for s in (0, 59.4, 200, 7500, 360_000, float('nan'))] == [
      '0 s', '59 s', '3 min 20 s', '2 h 05 min', '4 d 4 h', '?']
  assert [size(b) for b in (512, 1536, 79.2 * 2**30, 2**41)] == ['512 B', '1.5 KiB', '79.2 GiB', '2048.0 GiB']
