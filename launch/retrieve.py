"""Finds passages of texts for a question, by BM25.

  python -m launch.retrieve --build --texts=notes.jsonl --index=DIR --checkpoint=runs/mine
  python -m launch.retrieve --index=DIR --query='who wrote it?'

Texts are cut by the tokens of the checkpoint's tokenizer, or by bytes without one.
"""
import argparse
import pathlib
import sys
from collections.abc import Sequence

from launch.errors import refusing
from llm_jax.config.errors import require


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.retrieve', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--index', required=True, type=pathlib.Path, metavar='DIR', help='the folder of the passages')
  add('--build', action='store_true', help='make it of --texts')
  add('--texts', action='append', default=[], type=pathlib.Path, metavar='FILE',
      help="JSON lines with a 'text', or a text; once or more")
  add('--checkpoint', type=pathlib.Path, metavar='WORKDIR', help='a run, by whose tokenizer texts are cut')
  add('--length', type=int, default=128, help='tokens of a passage; default 128')
  add('--overlap', type=int, default=32, help='tokens that a passage repeats of the one before; default 32')
  add('--query', metavar='TEXT', help='what to look for')
  add('--top', type=int, default=5, help='passages to print; default 5')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    require(args.build or args.query is not None, '--query', None, 'give a question, or --build')
    require(args.build == bool(args.texts), '--texts', str(args.texts), '--build needs them, and nothing else does')
    require(args.top >= 1, '--top', args.top, 'use 1 or more')
    from llm_jax.data.tokenizers.base import load_tokenizer
    from llm_jax.data.tokenizers.byte_level import ByteTokenizer
    from llm_jax.retrieve import passages
    from llm_jax.retrieve.bm25 import BM25
    if args.build:
      tokenizer = ByteTokenizer() if args.checkpoint is None else load_tokenizer(args.checkpoint / 'tokenizer')
      texts = [text for path in args.texts for text in passages.read_texts(path)]
      made = passages.cut(texts, tokenizer, args.length, args.overlap)
      BM25([passage.text for passage in made])  # refuses texts without a word
      passages.save(args.index, made)
      print(f'{args.index}: {len(made)} passages of {len(texts)} texts')
    if args.query is not None:
      known = passages.load(args.index)
      bm25 = BM25([passage.text for passage in known])
      scores = bm25.scores(args.query)
      for place in bm25.search(args.query, args.top):
        print(f'{scores[place]:8.3f}  {known[place].source}, token {known[place].start}\n{known[place].text}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
