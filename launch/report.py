"""Makes a run's report again from the files in its workdir, or lays several runs side by side.

  python -m launch.report --workdir=runs/quickstart
  python -m launch.report --workdir=runs/base --workdir=runs/wider      writes runs/comparison.html
"""
import argparse
import os
import sys
from collections.abc import Sequence

from launch.errors import refusing
from launch.place_flags import is_folder, local_path, run_path
from llm_jax.config.errors import require


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog='python -m launch.report', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True, action='append', type=run_path,
                      help='the folder of a run; given more than once, up to six runs are compared with the first')
  parser.add_argument('--output', type=local_path, metavar='FILE',
                      help='of a comparison; default: comparison.html beside the first run')
  args = parser.parse_args(argv)
  with refusing():
    check(args)
    if len(args.workdir) == 1:
      from llm_jax.report.page import write_report
      print(write_report(args.workdir[0]))
    else:
      from llm_jax.report.comparison import write_comparison
      print(write_comparison(args.workdir, args.output or args.workdir[0].parent / 'comparison.html'))
  return 0


def check(args: argparse.Namespace) -> None:
  """Refuses folders that are no runs."""
  for workdir in args.workdir:
    require(is_folder(workdir), '--workdir', str(workdir), 'is no folder; name one that launch.train has written '
            'to')
    has_run = any((workdir / name).is_file() for name in ('config.json', 'metrics.jsonl'))
    require(has_run, '--workdir', str(workdir),
            'holds no run (no config.json, no metrics.jsonl); name a folder that launch.train has written to')
  require(args.output is None or len(args.workdir) > 1, '--output', str(args.output),
          'only of a comparison: a run has its report in its own folder')
  require(args.output is None or os.path.isdir(args.output.parent), '--output', str(args.output),
          'there is no such folder: make it, or name another')


def cli() -> int:
  """The program `llm-jax-report`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
