"""Tokenises the data of an experiment before it is trained, so that no accelerator waits for it.

  python -m launch.prepare --config=experiments/llama3_8b.py:FOLDER --workers=16
  python -m launch.prepare --config=... --part=0/4       on the first of four machines that share LLM_JAX_CACHE

What is made stands in the cache folder, where `launch.train` finds it. Every source of every stage is one piece of
work, its training and its validation split apart; what the cache holds already is passed over. A trained tokenizer is
made again on each machine, from the same text. Fields are set as for launch.train: --config.stages[0].seq_len=512.
"""
import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from launch.errors import Refused, refusing
from launch.experiment_file import check_files, load_run
from launch.overrides import split_overrides
from llm_jax.config.data import Data
from llm_jax.config.errors import located, require
from llm_jax.config.run import Run
from llm_jax.config.samples import SampledSource
from llm_jax.config.sources import Source
from llm_jax.data.sources.documents import Split

PART = re.compile(r'(\d{1,6})/(\d{1,6})')
DEFAULT_WORKERS = min(8, os.cpu_count() or 1)


class Piece(NamedTuple):
  """A split of a source.   field: where the source stands in the configuration."""
  field: str
  source: Source
  split: Split


class Prepared(NamedTuple):
  """What became of a piece."""
  piece: Piece
  num_tokens: int
  num_documents: int


def pieces_of(run: Run) -> list[Piece]:
  """All that is to be tokenised, each once; rollouts read prompts as they are, and samples are made by the run."""
  found: dict[tuple[Source, Split], Piece] = {}
  for number, stage in enumerate(run.stages):
    if stage.rollout is not None:
      continue
    held_out = 'data' if stage.eval_data is None else 'eval_data'
    splits: tuple[tuple[str, Data, Split], ...] = (
      ('data', stage.data, 'train'), (held_out, stage.validation_data, 'validation'))
    for name, data, split in splits:
      for place, weighted in enumerate(data.sources):
        is_made = isinstance(weighted.source, SampledSource)
        if not is_made and (split == 'train' or weighted.source.val_fraction):
          field = f'config.stages[{number}].{name}.sources[{place}].source'
          found.setdefault((weighted.source, split), Piece(field, weighted.source, split))
  return list(found.values())


def prepare(piece: Piece, tokenizer_folder: str) -> Prepared:
  """Tokenises a split of a source, unless the cache holds it. Raises ConfigError for bad files."""
  from llm_jax.data import token_store
  from llm_jax.data.sources import documents
  from llm_jax.data.tokenizers.base import load_tokenizer
  with located(piece.field):
    source = documents.open_source(piece.source)
    store = token_store.open_store(source, piece.split, load_tokenizer(pathlib.Path(tokenizer_folder)))
  return Prepared(piece, store.num_tokens, store.num_documents)


def parse_part(text: str) -> tuple[int, int]:
  match = PART.fullmatch(text)
  if match is None or not int(match[1]) < int(match[2]):
    raise Refused(f'--part={text}: write it as I/N, from 0/N to (N-1)/N')
  return int(match[1]), int(match[2])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  overrides, others = split_overrides([sys.argv[0], *argv] if argv is not None else sys.argv)
  parser = argparse.ArgumentParser(prog='python -m launch.prepare', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', required=True, help='the experiment: FILE.py or FILE.py:argument')
  parser.add_argument('--workers', type=int, default=DEFAULT_WORKERS, help=f'processes; default {DEFAULT_WORKERS}')
  parser.add_argument('--part', default='0/1', metavar='I/N', help='of the sources only every N-th, from the I-th on')
  args = parser.parse_args(others[1:])
  args.overrides = overrides
  return args


def main(argv: Sequence[str] | None = None) -> int:
  with refusing():
    args = parse(argv)
    require(args.workers >= 1, '--workers', args.workers, 'use 1 or more')
    first, step = parse_part(args.part)
    run = load_run(args.config, args.overrides)
    check_files(run, args.config)
    pieces = pieces_of(run)[first::step]
    with tempfile.TemporaryDirectory() as folder:
      save_tokenizer(run, folder)
      show(pieces, folder, args.workers)
  return 0


def save_tokenizer(run: Run, folder: str) -> None:
  from llm_jax.data.dataset import training_texts
  from llm_jax.data.tokenizers.base import make_tokenizer
  with located('config.stages[0]'):
    make_tokenizer(run.tokenizer, lambda: training_texts(run.stages[0].data)).save(pathlib.Path(folder))


def show(pieces: Sequence[Piece], folder: str, workers: int) -> None:
  """Prints a line for each piece when it is done."""
  spawn = multiprocessing.get_context('spawn')
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(min(workers, len(pieces)) or 1, spawn))
    stack.callback(pool.shutdown, cancel_futures=True)
    started = [pool.submit(prepare, piece, folder) for piece in pieces]
    for done in concurrent.futures.as_completed(started):
      piece, num_tokens, num_documents = done.result()
      print(f'{piece.field} ({piece.split}): {num_tokens:,} tokens in {num_documents:,} documents', flush=True)


def cli() -> int:
  """The program `llm-jax-prepare`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
