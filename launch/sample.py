"""Continues text with a trained model.

  python -m launch.sample --checkpoint=runs/quickstart --prompt='def '

Without --prompt, prompts are read line by line from the terminal, or as one text from a pipe.
"""
import argparse
import codecs
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from launch import runtime
from launch.flags import refuse, refusing
from llm_jax.config import door
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.sample', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True, type=pathlib.Path, metavar='WORKDIR', help='the folder of the run')
  parser.add_argument('--prompt', help='the text to continue; may be empty')
  parser.add_argument('--max_new_tokens', type=int, default=256, help='default 256')
  parser.add_argument('--temperature', type=float, default=0.8, help='0: always the most probable token; default 0.8')
  parser.add_argument('--top_k', type=int, help='draw from the k most probable tokens only')
  parser.add_argument('--top_p', type=float, default=0.95,
                      help='draw from the most probable tokens that together reach p; default 0.95, 1: from all')
  parser.add_argument('--seed', type=int, default=0, help='default 0')
  parser.add_argument('--num_samples', type=int, default=1, help='continuations of each prompt; default 1')
  parser.add_argument('--stage', help='default: the last one that has a checkpoint')
  parser.add_argument('--step', type=int, help='default: the newest valid checkpoint')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    run = read_config(args.checkpoint)
  runtime.prepare()
  from llm_jax.train.checkpoint import CheckpointError  # jax starts here, after the command line has been checked
  try:
    with refusing():
      sampler = Sampler(run, args)
      for number, prompt in enumerate(prompts(args.prompt)):
        sampler.write(prompt, number)
  except CheckpointError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  except KeyboardInterrupt:
    print()
    return 130
  return 0


def read_config(workdir: pathlib.Path) -> Run:
  path = workdir / 'config.json'
  if not path.is_file():
    refuse(f'--checkpoint={workdir}: there is no config.json: name the folder that launch.train was given as --workdir')
  try:
    return door.from_json(json.loads(path.read_text()))
  except ValueError as error:
    if isinstance(error, ConfigError):
      raise
    refuse(f'--checkpoint={workdir}: {path} is damaged ({error}): bring it back from a copy')


def prompts(given: str | None) -> Iterator[str]:
  """The one that was given, or what a person types, or what a pipe brings."""
  if given is not None:
    yield given
  elif not sys.stdin.isatty():
    yield sys.stdin.read()
  else:
    print('Type a prompt; Ctrl-D ends.', file=sys.stderr)
    while True:
      try:
        yield input('> ')
      except EOFError:
        print()
        return


class Sampler:
  """A model, its tokenizer, and how to draw from it."""

  def __init__(self, run: Run, args: argparse.Namespace):
    from llm_jax.config.errors import require
    from llm_jax.data.tokenizers import load_tokenizer
    from llm_jax.decode.sampling import GREEDY, Sampling
    require(args.num_samples >= 1, '--num_samples', args.num_samples, 'use 1 or more')
    require(args.max_new_tokens >= 1, '--max_new_tokens', args.max_new_tokens, 'use 1 or more')
    self.sampling = GREEDY if args.temperature == 0 else Sampling(args.temperature, args.top_k, args.top_p)
    self.args, self.config = args, run.model
    self.tokenizer = load_tokenizer(args.checkpoint / 'tokenizer')
    self.params, self.where = read_params(run, args, self.tokenizer.fingerprint)
    print(self.where, file=sys.stderr)

  def write(self, prompt: str, number: int) -> None:
    """Prints the prompt and its continuations, as they come."""
    import jax

    from llm_jax.decode.generate import stream
    tokens, new = self.fit([self.tokenizer.eot, *self.tokenizer.encode(prompt)])
    rng = jax.random.fold_in(jax.random.key(self.args.seed), number)
    for sample in range(self.args.num_samples):
      if self.args.num_samples > 1:
        print(f'--- sample {sample + 1}')
      pieces = stream(self.config, self.params, [tokens], new, self.sampling, jax.random.fold_in(rng, sample),
                      stop_tokens=(self.tokenizer.eot,))
      print(prompt, end='', flush=True)
      for text in self.decode(row for [row] in pieces):
        print(text, end='', flush=True)
      print()

  def fit(self, tokens: list[int]) -> tuple[list[int], int]:
    """The prompt and the number of new tokens, cut to what learned positions can hold."""
    limit, new = self.config.max_length, self.args.max_new_tokens
    if limit is None or len(tokens) + new <= limit:
      return tokens, new
    new = min(new, max(limit - len(tokens), limit // 2))
    kept = tokens[-(limit - new):]
    cut = f', of the prompt only its last {len(kept)} tokens are read' if len(kept) < len(tokens) else ''
    print(f'the model has {limit} positions: {new} new tokens at most{cut}', file=sys.stderr)
    return kept, new

  def decode(self, rows: Iterable[list[int]]) -> Iterator[str]:
    """Text as soon as its bytes are whole characters; bytes that never become one are shown as U+FFFD."""
    decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
    for row in rows:
      yield decoder.decode(self.tokenizer.decode_bytes([token for token in row if token != self.tokenizer.eot]))
    yield decoder.decode(b'', final=True)


def read_params(run: Run, args: argparse.Namespace, fingerprint: str) -> tuple[Any, str]:
  """Parameters of the checkpoint that was asked for, and where they are from: the average (EMA) where one is kept.

  Raises:
    CheckpointError: the checkpoint is damaged, or was trained with another tokenizer.
  """
  import jax

  from llm_jax.train.checkpoint import CheckpointError, CheckpointStore, open_checkpoint
  folder = args.checkpoint / 'checkpoints'
  stages = [stage.name for stage in run.stages]
  with_checkpoints = [name for name in stages if CheckpointStore(folder / name).steps()]
  if args.stage is not None and args.stage not in stages:
    refuse(f'--stage={args.stage}: no such stage; {door.suggest(args.stage, stages)}')
  if not with_checkpoints or args.stage not in (None, *with_checkpoints):
    refuse(f'--checkpoint={args.checkpoint}: no checkpoint{f" of stage {args.stage}" if args.stage else ""} yet: '
           'launch.train writes one every checkpoints.every steps and at the end of a stage')
  store = CheckpointStore(folder / (args.stage or with_checkpoints[-1]))
  if args.step is not None and args.step not in store.steps():
    refuse(f'--step={args.step}: {store.folder} has {", ".join(map(str, store.steps()))}')
  if args.step is None:
    checkpoint = store.latest_valid()
  else:
    checkpoint = open_checkpoint(store.folder / f'{args.step:08d}')
  if checkpoint.facts['tokenizer'] != fingerprint:
    raise CheckpointError(f'{checkpoint.path}: trained with tokenizer {checkpoint.facts["tokenizer"][:16]}, the '
                          f'workdir has {fingerprint[:16]}: bring the first one back')
  where = f'{checkpoint.path}{", averaged parameters" if checkpoint.averaged else ""}'
  return jax.device_put(checkpoint.read_best()), where


if __name__ == '__main__':
  sys.exit(main())
