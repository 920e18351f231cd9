"""Stops runs at random moments with random signals, and checks how they end and that they resume bitwise.

  python -m tests.train.stops --count=200 --folder=FOLDER           SIGTERM, SIGINT, SIGHUP: each ends with 75 (or 0)
  python -m tests.train.stops --count=200 --folder=FOLDER --kill    SIGKILL

A run is stopped several times and then let to its end; every loss and the sha256 of its state must be those of a run
that nobody stopped. A moment is an activity of the run, such as its compiling, of which the signal hits any part.
"""
import argparse
import collections
import dataclasses
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests.train import runs

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXPECTED = (0, 75)
STOPS_PER_RUN = 4
SECONDS_PER_START = 300
STAGES = ('first', 'second')


@dataclasses.dataclass(frozen=True)
class Stop:
  """A stop that was made.   code: the exit code.   moment: the activity that was aimed at.   output: of the process."""
  number: signal.Signals
  moment: str
  code: int
  output: str


class Moments:
  """When to send a signal, by the name of what the run does then. Each returns whether that has begun."""

  def __init__(self, workdir: pathlib.Path, cache: pathlib.Path, log: pathlib.Path):
    self.workdir = workdir
    self.cache = cache
    self.log = log
    self.begun: dict[str, Callable[[], bool]] = {
      'anything': lambda: True,
      'tokenising': lambda: any(self.cache.glob('tokens/*.building')),
      'compiling': lambda: 'reads' in self.log.read_text(),
      'training': lambda: '"train"' in self._metrics(),
      'evaluating': lambda: '"step": 12,' in self._metrics(),
      'saving': lambda: any(self.workdir.glob('checkpoints/*/*.saving')),
      'ending a stage': lambda: '"step": 24,' in self._metrics(),
    }

  def _metrics(self) -> str:
    path = self.workdir / 'metrics.jsonl'
    return path.read_text(errors='replace') if path.exists() else ''


LATENESS = {  # seconds after the activity has begun, at most
  'anything': 12, 'tokenising': 0.05, 'compiling': 6, 'training': 2, 'evaluating': 0.1, 'saving': 0.02,
  'ending a stage': 0.5,
}


class Stopper:
  """Makes stops in one folder after another.

  kill: whether by SIGKILL.
  """

  def __init__(self, folder: pathlib.Path, rng: random.Random, kill: bool = False):
    self.folder = folder
    self.rng = rng
    self.signals = (signal.SIGKILL,) if kill else SIGNALS
    self.expected = (0, -signal.SIGKILL) if kill else EXPECTED
    folder.mkdir(parents=True)
    self.corpus = runs.write_corpus(folder)
    self.reference = folder / 'untouched'
    self.runs = 0
    self.stops: list[Stop] = []
    runs.run(self.corpus, self.reference)

  def stop_one_run(self) -> list[str]:
    """Stops a run some times, lets it end and compares it; returns what is wrong."""
    workdir = self.folder / f'run{self.runs}'
    cache = self.folder / 'cache'
    if self.runs % 3 == 0:  # nothing is tokenised or compiled yet
      cache = self.folder / f'cache{self.runs}'
    self.runs += 1
    wrong = []
    for _ in range(STOPS_PER_RUN):
      stop = self._stop(workdir, cache)
      self.stops.append(stop)
      if stop.code not in self.expected:
        wrong.append(f'{stop.number.name} while {stop.moment}: exit code {stop.code}\n{stop.output[-3_000:]}')
      if stop.code == 0:
        break
    log = self.folder / 'log'
    code = self._start(workdir, cache, log).wait(SECONDS_PER_START)
    if code != 0:
      return [*wrong, f'resumed: exit code {code}\n{log.read_text()[-3_000:]}']
    wrong += self._compare(workdir)
    shutil.rmtree(workdir)
    if cache != self.folder / 'cache':
      shutil.rmtree(cache)
    return wrong

  def _stop(self, workdir: pathlib.Path, cache: pathlib.Path) -> Stop:
    log = self.folder / 'log'
    process = self._start(workdir, cache, log)
    moments = Moments(workdir, cache, log)
    number = self.rng.choice(self.signals)
    moment = self.rng.choice(list(moments.begun))
    runs.await_hearing(process)
    deadline = time.monotonic() + SECONDS_PER_START
    while process.poll() is None and not moments.begun[moment]() and time.monotonic() < deadline:
      time.sleep(0.005)
    time.sleep(self.rng.uniform(0, LATENESS[moment]))
    process.send_signal(number)
    code = process.wait(SECONDS_PER_START)
    return Stop(number, moment, code, log.read_text())

  def _start(self, workdir: pathlib.Path, cache: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
    with open(log, 'w') as output:
      return subprocess.Popen(
        runs.command(self.corpus, workdir), cwd=runs.ROOT, env=runs.environment(cache, devices=1), stdout=output,
        stderr=subprocess.STDOUT)

  def _compare(self, workdir: pathlib.Path) -> list[str]:
    wrong = []
    for kind in ('train', 'eval'):
      if runs.losses(workdir, kind) != runs.losses(self.reference, kind):
        wrong.append(f'{workdir}: other losses of {kind} than the untouched run')
    for stage in STAGES:
      if runs.state_hash(workdir, stage) != runs.state_hash(self.reference, stage):
        wrong.append(f'{workdir}: another state of {stage} than the untouched run')
    return wrong


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=200, help='how many stops to make')
  parser.add_argument('--folder', type=pathlib.Path, required=True, help='where the runs are made; a new folder')
  parser.add_argument('--kill', action='store_true', help='SIGKILL instead of requests to stop')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  stopper = Stopper(args.folder, random.Random(args.seed), args.kill)
  num_wrong = 0
  while sum(stop.code != 0 for stop in stopper.stops) < args.count:
    for text in stopper.stop_one_run():
      num_wrong += 1
      print(f'WRONG: {text}', flush=True)
    codes = collections.Counter(stop.code for stop in stopper.stops)
    print(f'{len(stopper.stops)} stops in {stopper.runs} runs, exit codes {dict(codes)}, {num_wrong} wrong', flush=True)
  counts = collections.Counter((stop.moment, stop.number.name, stop.code) for stop in stopper.stops)
  print(json.dumps([[*key, count] for key, count in sorted(counts.items())]))
  return int(num_wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
