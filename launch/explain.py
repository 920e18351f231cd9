"""Shows what a model does with a text: one self-contained HTML page.

  python -m launch.explain --checkpoint=runs/quickstart --text='def add(a, b):'
  python -m launch.explain --checkpoint=D --against=D2 --text=...     two models side by side

The page has the attention of every head with its mask, what would be predicted after every layer, what attention and
feed-forward add, the experts that are chosen, the cache's slots, and what may be drawn next. In a notebook:
`from launch.explain import show`, and `show('runs/quickstart', 'def add(a, b):')` as a cell's last line.
"""
import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch import runtime
from launch.errors import refusing
from launch.imported import run_folder
from launch.place_flags import local_path, run_path
from llm_jax.config.errors import require
from llm_jax.tracking.run_config import read_config

if TYPE_CHECKING:
  from llm_jax.explain.explanation import Explanation
  from llm_jax.explain.page import Page

MEGABYTE = 1_000_000


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.explain', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--checkpoint', required=True, type=run_path, metavar='WORKDIR',
      help='the folder of a run; or a Hugging Face folder, or the name of a model on the hub')
  add('--text', required=True, help="what the model reads; '-' reads it from standard input")
  add('--against', type=local_path, metavar='WORKDIR', help='a second model, which is shown beside the first')
  add('--stage', help='of --checkpoint; default: the last one that has a checkpoint')
  add('--step', type=int, help='of --checkpoint; default: the newest valid checkpoint')
  add('--against_stage', help='of --against')
  add('--against_step', type=int, help='of --against')
  add('--max_tokens', type=int, metavar='N',
      help='cut the text after N tokens; default: 128, or as many as keep the page near a megabyte')
  add('--out', type=local_path, default=pathlib.Path('explain.html'), metavar='FILE', help='default: explain.html')
  return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
  """Refuses what can be seen to fail."""
  require(args.max_tokens is None or args.max_tokens >= 1, '--max_tokens', args.max_tokens, 'use 1 or more')
  for name in ('against_stage', 'against_step'):
    require(args.against is not None or getattr(args, name) is None, f'--{name}', getattr(args, name),
            'only with --against')
  require(os.path.isdir(args.out.parent), '--out', str(args.out), 'there is no such folder: make it, or name another')


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    check(args)
    text = sys.stdin.read() if args.text == '-' else args.text
    require(bool(text), '--text', text, 'empty: give what the model shall read')
    runtime.prepare()  # jax starts here, after the command line has been checked
    from llm_jax.explain.page import make_page, self_check
    from llm_jax.runtime.errors import CheckpointError
    try:
      explained = [_explain('--checkpoint', args.checkpoint, text, args.max_tokens, args.stage, args.step)]
      if args.against is not None:
        explained.append(
          _explain('--against', args.against, text, args.max_tokens, args.against_stage, args.against_step))
    except CheckpointError as error:
      print(f'error: {error}', file=sys.stderr)
      return 1
  for each in explained:
    print(f'{each.name}: {self_check(each)}')
    if each.dropped:
      print(f'{each.name}: the first {len(each.trace.tokens_T)} tokens are shown, {each.dropped} are left out',
            file=sys.stderr)
  page = make_page(explained)
  page.save(args.out)
  print(f'{args.out} ({len(page.source.encode()) / MEGABYTE:.2f} MB)')
  return 0


def show(checkpoint: str | pathlib.Path, text: str, against: str | pathlib.Path | None = None,
         max_tokens: int | None = None) -> 'Page':
  """The page for a notebook, which shows it where it is a cell's last value.

  Args:
    checkpoint, against: folders of runs, Hugging Face folders or names on the hub.
    text: what the models read.
    max_tokens: the text is cut after so many tokens; None: where the page would grow beyond a megabyte.

  Raises:
    ConfigError, CheckpointError: a model cannot be read, or the text is empty.
  """
  runtime.prepare()
  from llm_jax.explain.page import make_page
  explained = [_explain('checkpoint', pathlib.Path(checkpoint), text, max_tokens)]
  if against is not None:
    explained.append(_explain('against', pathlib.Path(against), text, max_tokens))
  return make_page(explained)


def _explain(flag: str, place: pathlib.Path, text: str, max_tokens: int | None, stage: str | None = None,
             step: int | None = None) -> 'Explanation':
  """Reads a model with its tokenizer, adapters made part of its weights, and runs it over the text."""
  from launch.saved_models import check_tokenizer, find_checkpoint, read_model
  from llm_jax.data.tokenizers.base import load_tokenizer
  from llm_jax.explain.explanation import explain
  workdir = run_folder(flag, place)
  run = read_config(workdir, flag)
  tokenizer = load_tokenizer(workdir / 'tokenizer')
  chosen, checkpoint = find_checkpoint(flag.removeprefix('--'), workdir, run, stage, step)
  check_tokenizer(checkpoint, tokenizer)
  params = read_model(run, workdir, chosen, checkpoint, merged=True)
  name = f'{place}, {chosen.name}' if len(run.stages) > 1 else str(place)
  return explain(name, run.model_of(chosen), params, tokenizer, text, max_tokens)


def cli() -> int:
  """The program `llm-jax-explain`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
