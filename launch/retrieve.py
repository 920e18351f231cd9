"""Finds passages of texts for questions: by their words (BM25), by the nearness of vectors, or by both.

  python -m launch.retrieve --build --texts=notes.jsonl --index=DIR --checkpoint=runs/mine
  python -m launch.retrieve --build --texts=notes.jsonl --index=DIR --checkpoint=runs/mine --embed=states
  python -m launch.retrieve --index=DIR --query='who wrote it?'
  python -m launch.retrieve --index=DIR --questions=questions.jsonl --checkpoint=runs/mine

Texts are cut by the tokens of the checkpoint's tokenizer, or by bytes without one. The last command reports how often
the right passage is found, and how likely the checkpoint finds the right answers with passages and without.
"""
import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.errors import refusing
from launch.imported import run_folder
from launch.place_flags import local_path, run_path
from llm_jax.config.errors import require
from llm_jax.config.packages import is_installed


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.retrieve', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--index', required=True, type=local_path, metavar='DIR', help='the folder of the passages')
  add('--build', action='store_true', help='make it of --texts')
  add('--texts', action='append', default=[], type=local_path, metavar='FILE',
      help="JSON lines with a 'text', or a text; once or more. Without --build: refuse an index of other texts")
  add('--checkpoint', type=run_path, metavar='WORKDIR',
      help='a run, by whose tokenizer texts are cut, whose states --embed=states takes, and which --questions asks')
  add('--stage', help='of --checkpoint; default: the last one that has a checkpoint')
  add('--step', type=int, help='of --checkpoint; default: the newest valid checkpoint')
  add('--length', type=int, default=128, help='tokens of a passage; default 128')
  add('--overlap', type=int, default=32, help='tokens that a passage repeats of the one before; default 32')
  add('--embed', choices=('states', 'wordllama'),
      help="of --build: vectors beside the words, the checkpoint's mean states or those of the package wordllama")
  add('--query', metavar='TEXT', help='what to look for')
  add('--questions', type=local_path, metavar='FILE',
      help="JSON lines with 'question', 'answer' and perhaps 'evidence', a text that the right passage holds; default: "
      'the answer')
  add('--chat', action='store_true', help="of --questions: put them as conversations, by the model's chat template")
  add('--prompt', default='Q: {}\nA:', metavar='TEXT', help="of --questions without --chat; default 'Q: {}\\nA:'")
  add('--method', choices=('bm25', 'dense', 'fused'), help='default: fused where there are vectors, else bm25')
  add('--top', type=int, default=5, help='passages to print; default 5')
  return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
  """Refuses flags that do not go together: ConfigError."""
  asks = args.query is not None or args.questions is not None
  require(args.build or asks, '--query', None, 'give a question, --questions or --build')
  require(not args.build or bool(args.texts), '--texts', str(args.texts), '--build needs them')
  require(args.embed is None or args.build, '--embed', args.embed, 'is of --build')
  require(args.embed != 'states' or args.checkpoint is not None, '--embed', args.embed, 'needs the model: --checkpoint')
  require(args.embed is None or is_installed('faiss'), '--embed', args.embed,
          "needs faiss, which is not installed: pip install 'llm_jax[retrieve]'")
  needs_harness = args.questions is not None and args.checkpoint is not None
  require(not needs_harness or is_installed('lm_eval'), '--questions', str(args.questions),
          "with --checkpoint it needs lm_eval, which is not installed: pip install 'llm_jax[eval]'")
  require(not args.chat or needs_harness, '--chat', args.chat, 'is of --questions with a --checkpoint')
  require(args.prompt.count('{}') == 1, '--prompt', args.prompt, 'write {} once, where the question stands')
  for name in ('top', 'length'):
    require(getattr(args, name) >= 1, f'--{name}', getattr(args, name), 'use 1 or more')


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    check(args)
    if args.checkpoint is not None:
      args.checkpoint = run_folder('--checkpoint', args.checkpoint)
  with runtime.leaving_on_interrupt():
    runtime.prepare()
    from launch import retrieve_index
    from llm_jax.runtime.errors import CheckpointError
  try:
    with refusing():
      retrieve_index.run(args)
  except CheckpointError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  return 0


def cli() -> int:
  """The program `llm-jax-retrieve`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
