"""Makes a run's report again from the files in its workdir.

  python -m launch.report --workdir=runs/quickstart
"""
import argparse
import os
import pathlib
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog='python -m launch.report', description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True, type=pathlib.Path, help='the folder of the run')
  workdir = parser.parse_args(argv).workdir
  if not os.path.isdir(workdir):
    print(f'--workdir = {str(workdir)!r}: is no folder; name one that launch.train has written to', file=sys.stderr)
    return 2
  if not any(os.path.isfile(workdir / name) for name in ('config.json', 'metrics.jsonl')):
    print(f'--workdir = {str(workdir)!r}: holds no run (no config.json, no metrics.jsonl); name a folder that '
          'launch.train has written to', file=sys.stderr)
    return 2
  from llm_jax.train.report import write_report
  print(write_report(workdir))
  return 0


if __name__ == '__main__':
  sys.exit(main())
