"""Continues text with a trained model.

  python -m launch.sample --checkpoint=runs/quickstart --stage=average --prompt='def '

A model whose last stage learnt from conversations answers the prompt as its chat template has it; with --raw it goes on
from the text as any other model. One that was imported is told its template: --template=llama3.

Without --prompt it chats: each line that is typed, or comes through a pipe, is added to the conversation, and the model
answers, or goes on from there. /reset starts a new conversation, /quit or Ctrl-D ends, Ctrl-C stops the current answer.
A model that continues text goes on after an empty line.
"""
import argparse
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

from launch import runtime
from launch.errors import refusing
from llm_jax.config.errors import require
from llm_jax.config.run import Run
from llm_jax.config.sources import TEMPLATES
from llm_jax.tracking.run_config import read_config

HEADS = 'heads'  # --draft with the model's own
NO_READER = 128 + 13  # the exit code of a program whose reader has left, as a shell has it: SIGPIPE
DRAWING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')  # flags that a search has no use for


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m launch.sample', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--checkpoint', required=True, type=pathlib.Path, metavar='WORKDIR', help='the folder of the run')
  add('--prompt', help="the text to continue, which may be empty, or to answer; '-' reads it from standard input")
  add('--max_new_tokens', type=int, default=256, help='default 256')
  add('--stop', action='append', default=[], metavar='TEXT',
      help='end an answer before this text; can be given more than once')
  add('--temperature', type=float, help='0: always the most probable token; default 0.8')
  add('--top_k', type=int, help='draw from the k most probable tokens only')
  add('--top_p', type=float,
      help='draw from the most probable tokens that together reach p; default 0.95, or 1 (all) with --min_p')
  add('--min_p', type=float, help='draw from the tokens with at least this share of the greatest probability')
  add('--repetition_penalty', type=float, help='above 1: tokens that were there before become less probable')
  add('--beams', type=int, help='search with so many beams for the most probable text instead of drawing')
  add('--seed', type=int, help='default 0')
  add('--num_samples', type=int, default=1, help='continuations of the prompt; default 1')
  add('--log_probs', action='store_true', help="print every new token's log-probability under the model")
  add('--draft', metavar='WORKDIR',
      help="a small model with the same tokenizer that drafts, or 'heads': the model's own multi-token heads; the text "
           'stays distributed as without it')
  add('--draft_tokens', type=int, help='tokens drafted at a time; default 4, or one for each head')
  add('--raw', action='store_true', help='continue the text itself, also with a model trained on conversations')
  add('--template', choices=TEMPLATES,
      help='the chat template to answer by; default: that of the conversations that were learnt')
  add('--system', metavar='TEXT', help='what a chat model is told before the conversation')
  add('--dtype', choices=('float32', 'bfloat16'), help="of the computation; default: the run's own")
  add('--stage', help='default: the last one that has a checkpoint')
  add('--step', type=int, help='default: the newest valid checkpoint')
  return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
  """Refuses flags that are wrong or do not go together.

  Raises:
    ConfigError: names the flag.
  """
  given = lambda *names: [name for name in names if getattr(args, name) not in (None, False)]
  for name in ('num_samples', 'max_new_tokens', 'beams', 'draft_tokens'):
    value = getattr(args, name)
    require(value is None or value >= 1, f'--{name}', value, 'use 1 or more')
  require(args.seed is None or -2**63 <= args.seed < 2**63, '--seed', args.seed, 'use a number of at most 64 bits')
  require('' not in args.stop, '--stop', '', 'give the text that ends an answer')
  if args.beams is not None:
    for name in given(*DRAWING, 'seed', 'log_probs', 'draft'):
      require(False, f'--{name}', str(getattr(args, name)), 'it does not go with --beams: leave one of them out')
    require(args.num_samples <= args.beams, '--num_samples', args.num_samples, f'use at most --beams={args.beams}')
  if args.temperature == 0:
    for name in given('top_k', 'top_p', 'min_p'):
      require(False, f'--{name}', getattr(args, name),
              'with --temperature=0 the most probable token is taken: leave one of them out')
  if args.draft is None:
    require(args.draft_tokens is None, '--draft_tokens', args.draft_tokens, 'name the model that drafts with --draft')
  require(not (args.draft and args.log_probs), '--log_probs', True, 'does not go with --draft: leave one of them out')
  require(not (args.raw and args.template), '--raw', True, 'does not go with --template: leave one of them out')
  require(args.system is None or bool(args.system.strip()), '--system', args.system, 'empty: leave it out')
  if args.prompt is None:
    require(args.num_samples == 1, '--num_samples', args.num_samples, 'a chat has one answer: give --prompt')
    require(not args.log_probs, '--log_probs', True, 'give --prompt')


def main(argv: Sequence[str] | None = None) -> int:
  args = parse(argv)
  with refusing():
    check(args)
    run = read_config(args.checkpoint, '--checkpoint')
    draft_run = read_config(pathlib.Path(args.draft), '--draft') if args.draft not in (None, HEADS) else None
    if args.draft == HEADS:
      heads = len(run.model.multi_token)
      require(heads > 0, '--draft', HEADS, 'this model has no multi-token heads: name the folder of one that drafts')
      require((args.draft_tokens or 1) <= heads, '--draft_tokens', args.draft_tokens, f'the model has {heads} heads')
    elif draft_run:
      require(draft_run.model.vocab_size == run.model.vocab_size, '--draft', str(args.draft),
              f'its vocabulary has {draft_run.model.vocab_size} tokens, that of the model {run.model.vocab_size}: '
              'use models trained with one tokenizer')
  try:
    code = answer(args, run, draft_run)
    sys.stdout.flush()
  except KeyboardInterrupt:
    print()
    return runtime.INTERRUPTED
  except BrokenPipeError:  # such as `| head`; what is still to be flushed goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER
  return code


def answer(args: argparse.Namespace, run: Run, draft_run: Run | None) -> int:
  """Loads the models and prints what they say; the exit code."""
  with runtime.leaving_on_interrupt():
    runtime.prepare()  # jax starts here, after the command line has been checked
    from launch.sampler import Sampler
    from llm_jax.runtime.errors import CheckpointError
  try:
    with refusing():
      with runtime.leaving_on_interrupt():
        sampler = Sampler(args, run, draft_run)
        if args.prompt is not None:
          prompt = sys.stdin.read() if args.prompt == '-' else args.prompt
          require(sampler.template is None or bool(prompt.strip()), '--prompt', args.prompt,
                  'empty: this model answers what is said to it; with --raw it goes on from nothing')
          sampler.write(prompt)
          return 0
      sampler.chat(lines())
  except CheckpointError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  return 0


def lines() -> Iterator[str]:
  """What a person types, or what a pipe brings, line by line."""
  if not sys.stdin.isatty():
    yield from (line.removesuffix('\n') for line in sys.stdin)
    return
  print('Type a line; /reset starts anew, Ctrl-C stops an answer, /quit or Ctrl-D ends.', file=sys.stderr)
  while True:
    try:
      yield input('> ')
    except EOFError:
      print()
      return


def cli() -> int:
  """The program `llm-jax-sample`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
