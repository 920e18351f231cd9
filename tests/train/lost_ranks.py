"""Kills or stops one process of several at a moment of the run, and looks at how the others end.

  python -m tests.train.lost_ranks --processes=2 --folder=FOLDER
"""
import argparse
import itertools
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests.train import runs

STALL_SECONDS = 6  # 10 times as long for what is no step; enough where the programs are compiled already
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
MOMENTS = ('starting', 'compiling', 'training', 'saving', 'evaluating')
MOMENT_SECONDS = 200
BOUND_SECONDS = 15
SILENT_SECONDS = 10 * STALL_SECONDS + 20  # for one that was stopped, or died before the others had met it


def lose(corpus: pathlib.Path, workdir: pathlib.Path, processes: int, rank: int, number: signal.Signals, moment: str
         ) -> list[str]:
  """Sends the signal to one of several processes; returns what is wrong with the end of the others."""
  logs = [workdir.with_name(f'{workdir.name}.{each}') for each in range(processes)]
  is_silent = number == signal.SIGSTOP or moment == 'starting'
  stall_seconds = STALL_SECONDS if is_silent else None
  started = start_all(corpus, workdir, logs, stall_seconds=stall_seconds)
  try:
    await_moment(moment, workdir, logs, started)
    started[rank].send_signal(number)
    since = time.monotonic()
    wrong = []
    for other, process in enumerate(started):
      if other != rank:
        wrong += look_at(process, rank, logs[other], since + (SILENT_SECONDS if is_silent else BOUND_SECONDS))
    return wrong
  finally:
    for process in started:
      process.kill()
      process.wait()


def await_moment(moment: str, workdir: pathlib.Path, logs: list[pathlib.Path], started: list[subprocess.Popen]) -> None:
  """Waits until the run does what `moment` names."""
  has_begun = moments(workdir, logs)[moment]
  deadline = time.monotonic() + MOMENT_SECONDS
  while not has_begun():
    is_over = time.monotonic() > deadline or any(process.poll() is not None for process in started)
    assert not is_over, f'it never came to {moment}: ' + '\n'.join(log.read_text()[-2_000:] for log in logs)
    time.sleep(0.005)


def warm(corpus: pathlib.Path, folder: pathlib.Path, processes: int) -> None:
  """Lets a run go to its end, so that no later one tokenises or compiles for long."""
  started = start_all(corpus, folder / 'warm', [folder / f'warm.{rank}' for rank in range(processes)])
  assert [process.wait() for process in started] == [0] * processes


def look_at(process: subprocess.Popen, lost: int, log: pathlib.Path, deadline: float) -> list[str]:
  """What is wrong with how a survivor ends."""
  try:
    code = process.wait(max(0, deadline - time.monotonic()))
  except subprocess.TimeoutExpired:
    return [f'{log.name} is still there: {log.read_text()[-2_000:]}']
  last = log.read_text().rstrip().rpartition('\n')[2]
  if code == 70 and last.startswith('error: ') and f'process {lost}' in last:
    return []
  return [f'{log.name}: exit code {code}, last line {last!r}, in {log.read_text()[-2_000:]}']


def start_all(corpus: pathlib.Path, workdir: pathlib.Path, logs: list[pathlib.Path],
              program: pathlib.Path | None = None, stall_seconds: float | None = None) -> list[subprocess.Popen]:
  """Starts one process a log.   program: what they run in place of `launch.train`.   stall_seconds: None: as it is."""
  port = runs.free_port()
  started = []
  for rank, log in enumerate(logs):
    flags = (f'--coordinator=localhost:{port}', f'--num_processes={len(logs)}', f'--process_id={rank}')
    with open(log, 'w') as output:
      if stall_seconds is not None:
        flags = (*flags, f'--config.stall_seconds={stall_seconds}')
      python, *module_and_flags = runs.command(corpus, workdir, *flags)
      arguments = module_and_flags if program is None else [str(program), *module_and_flags[2:]]
      started.append(subprocess.Popen(
        [python, *arguments], cwd=runs.ROOT, env=runs.environment(corpus.parent / 'cache', devices=1), stdout=output,
        stderr=subprocess.STDOUT))
  return started


def moments(workdir: pathlib.Path, logs: list[pathlib.Path]) -> dict[str, Callable[[], bool]]:
  """By the name of what the run does: whether that has begun."""
  metrics = workdir / 'metrics.jsonl'

  def is_written(text: str) -> bool:
    return metrics.exists() and text in metrics.read_text()

  return {
    'starting': lambda: all('waiting for' in log.read_text() for log in logs),
    'compiling': lambda: 'reads' in logs[0].read_text(),
    'training': lambda: is_written('"step": 2,'),
    'saving': lambda: any(workdir.glob('checkpoints/*/*.saving')),
    'evaluating': lambda: is_written('"step": 12,'),
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--folder', type=pathlib.Path, required=True, help='where the runs are made; a new folder')
  args = parser.parse_args()
  args.folder.mkdir(parents=True)
  corpus = runs.write_corpus(args.folder)
  warm(corpus, args.folder, args.processes)
  num_wrong = 0
  for rank, number, moment in itertools.product(range(args.processes), SIGNALS, MOMENTS):
    since = time.monotonic()
    try:
      wrong = lose(corpus, args.folder / f'{moment}{number}{rank}', args.processes, rank, number, moment)
    except AssertionError as error:  # it never came to the moment
      wrong = [str(error)]
    num_wrong += bool(wrong)
    print(f'{number.name} of {rank} of {args.processes} while {moment}: {"WRONG" if wrong else "named"} after '
          f'{time.monotonic() - since:.0f} s', *wrong, sep='\n  ', flush=True)
  print(f'{num_wrong} wrong')
  return int(num_wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
