"""Submits a run to the TPU slices of a GKE cluster with JobSet.

  python -m launch.gke --name=mine --accelerator=tpu-v5-lite-podslice --topology=4x8 --slices=2 --image=IMAGE \\
      --claim=shared -- --config=experiments/llama3_8b.py --workdir=/shared/runs/mine
  python -m launch.gke --dry_run ...     prints what would be submitted

What stands behind `--` are the flags of launch.train. IMAGE has llm_jax installed; CLAIM is a volume that all hosts
share, mounted at --mount, with the run's folder and the cache on it. launch/gke.yaml is the template.
"""
import argparse
import json
import math
import pathlib
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence

from launch.errors import refuse, refusing
from llm_jax.config.errors import require

TEMPLATE = pathlib.Path(__file__).with_name('gke.yaml')
CHIPS_PER_HOST = 4  # of the machines that slices of several hosts are made of
NAME = re.compile(r'[a-z]([a-z0-9-]{0,51}[a-z0-9])?')
TOPOLOGY = re.compile(r'[1-9]\d*x[1-9]\d*(x[1-9]\d*)?')
OWN_FLAGS = ('--coordinator', '--num_processes', '--process_id')  # found on GKE without them


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.gke', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--name', required=True, help='of the JobSet')
  add('--accelerator', required=True, metavar='TYPE', help='such as tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice')
  add('--topology', required=True, help='chips of a slice, such as 4x8 or 4x4x4')
  add('--slices', type=int, default=1, help='default 1')
  add('--image', required=True, help='container image with llm_jax')
  add('--claim', required=True, help='PersistentVolumeClaim that all hosts can write to')
  add('--mount', default='/shared', help='where it is mounted; default /shared')
  add('--dry_run', action='store_true', help='print the JobSet and submit nothing')
  add('train', nargs='*', metavar='-- FLAGS', help='of launch.train')
  return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
  require(NAME.fullmatch(args.name) is not None, '--name', args.name,
          'use at most 53 lower-case letters, digits and -, a letter first')
  require(TOPOLOGY.fullmatch(args.topology) is not None, '--topology', args.topology, 'write it as 4x8 or 4x4x4')
  chips = num_chips(args.topology)
  require(chips % CHIPS_PER_HOST == 0, '--topology', args.topology,
          f'has {chips} chips: use a multiple of the {CHIPS_PER_HOST} of a host')
  require(args.slices >= 1, '--slices', args.slices, 'use 1 or more')
  require(args.mount.startswith('/'), '--mount', args.mount, 'use an absolute path')
  given = {flag.partition('=')[0]: flag.partition('=')[2] for flag in args.train}
  for flag in ('--config', '--workdir'):
    require(bool(given.get(flag)), flag, given.get(flag), f'give it behind --, as {flag}=...')
  require(given['--workdir'].startswith(f'{args.mount}/'), '--workdir', given['--workdir'],
          f'put it on the volume that all hosts share, below {args.mount}')
  for flag in OWN_FLAGS:
    require(flag not in given, flag, given.get(flag), 'leave it out: the hosts of GKE find each other')


def num_chips(topology: str) -> int:
  return math.prod(int(size) for size in topology.split('x'))


def render(args: argparse.Namespace) -> str:
  """The JobSet as YAML."""
  values = {
    'name': args.name,
    'slices': args.slices,
    'hosts': num_chips(args.topology) // CHIPS_PER_HOST,
    'chips_per_host': CHIPS_PER_HOST,
    'accelerator': json.dumps(args.accelerator),
    'topology': json.dumps(args.topology),
    'image': json.dumps(args.image),
    'command': json.dumps(['python', '-m', 'launch.train', *args.train]),
    'cache': json.dumps(f'{args.mount}/llm_jax_cache'),
    'mount': json.dumps(args.mount),
    'claim': json.dumps(args.claim),
  }
  return string.Template(TEMPLATE.read_text()).substitute(values)


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    check(args)
  rendered = render(args)
  if args.dry_run:
    print(rendered, end='')
    return 0
  if shutil.which('kubectl') is None:
    refuse('kubectl is not installed: install it, or print the JobSet with --dry_run')
  return subprocess.run(['kubectl', 'apply', '-f', '-'], input=rendered, text=True).returncode


if __name__ == '__main__':
  sys.exit(main())
