"""Tells what a run takes before it starts: memory, FLOPs, time, price, energy, bytes that go over the network.

  python -m launch.plan --config=experiments/llama3_8b.py:FOLDER --topology=v5p:4x4x4 --price=4.2

By arithmetic, in a second or two; with --compile also by the compiler for the devices, of which none is needed. A mesh
that does not fit the devices, the model or a batch is refused as `launch.train` refuses it. Fields of the experiment
are set as there: --config.mesh.fsdp=16.
"""
import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from launch.errors import refusing
from launch.experiment_file import load_run
from launch.overrides import split_overrides
from launch.place_flags import local_path
from llm_jax.config.errors import ConfigError, require
from llm_jax.config.run import Run
from llm_jax.plan.cost import Assumptions
from llm_jax.plan.plan import Plan, make_plan
from llm_jax.plan.search import search
from llm_jax.plan.text import candidates_text, to_json, to_text
from llm_jax.plan.topology import Topology, parse_topology


def main(argv: Sequence[str] | None = None) -> int:
  overrides, arguments = split_overrides(sys.argv[1:] if argv is None else argv)
  args = make_parser().parse_args(arguments)
  with refusing():
    run = load_run(args.config, overrides)
    topology = None if args.topology is None else parse_topology(args.topology)
    plan = make_plan(run, topology, assumptions_of(args, topology), args.config)
    for path in (args.json, args.picture):
      folder = None if path is None else path.absolute().parent
      require(folder is None or os.path.isdir(folder), '--json, --picture', str(path), 'there is no such folder')
    print(to_text(plan))
    if args.search:
      print_search(run, named(topology, '--search'))
    if args.compile:
      require(plan.fullest is not None, '--compile', True, 'only stages without adapters can be compiled')
      from launch.plan_compile import compiled_text
      print('\n' + compiled_text(run, plan, named(topology, '--compile')))
    write(plan, args.json, args.picture)
  return 0


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog='python -m launch.plan', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  default = Assumptions()
  parser.add_argument('--config', required=True, help='the experiment: FILE.py or FILE.py:argument')
  parser.add_argument('--topology', help='the devices: v5p:8x8x16, h100:64, cpu:8; default: as many as the mesh names')
  parser.add_argument('--mfu', type=float, default=default.mfu, help='share of the peak that steps reach; %(default)s')
  parser.add_argument('--price', type=float, help='dollars a chip and hour')
  parser.add_argument('--watts', type=float, help='power of a chip; default: as its maker states it, if it does')
  parser.add_argument('--pue', type=float, default=default.pue, help='power usage effectiveness; %(default)s')
  parser.add_argument('--carbon', type=float, default=default.carbon, help='kg of CO2e a kWh; %(default)s')
  parser.add_argument('--bytes_per_token', type=float, default=default.bytes_per_token, help='of text; %(default)s')
  parser.add_argument('--compile', action='store_true', help='compiles the step for the devices, without having any')
  parser.add_argument('--search', action='store_true', help='tries meshes, remat and microbatches; lists the best')
  parser.add_argument('--json', type=local_path, metavar='FILE', help='writes the plan as JSON too')
  parser.add_argument('--picture', type=local_path, metavar='FILE', help='draws the memory as SVG too')
  return parser


def assumptions_of(args: argparse.Namespace, topology: Topology | None) -> Assumptions:
  watts = args.watts
  if watts is None and topology is not None:
    watts = topology.chip.watts
  return Assumptions(mfu=args.mfu, price=args.price, watts=watts, pue=args.pue, carbon=args.carbon,
                     bytes_per_token=args.bytes_per_token)


def named(topology: Topology | None, flag: str) -> Topology:
  """The devices that a flag needs."""
  if topology is None:
    raise ConfigError(flag, True, 'name the devices: --topology=v5p:4x4x4')
  return topology


def print_search(run: Run, topology: Topology) -> None:
  """The best ways to run each stage."""
  for number, stage in enumerate(run.stages):
    if stage.adapters is None:
      print('\n' + candidates_text(stage.name, number, search(run, number, topology)))


def write(plan: Plan, json_path: pathlib.Path | None, picture_path: pathlib.Path | None) -> None:
  if json_path is not None:
    json_path.write_text(json.dumps(to_json(plan), indent=1) + '\n', encoding='utf-8')
  if picture_path is not None:
    from llm_jax.report.plan_picture import plan_picture
    picture_path.write_text(plan_picture(plan), encoding='utf-8')


def cli() -> int:
  """The program `llm-jax-plan`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
