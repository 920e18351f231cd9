"""Continues text with a trained model.

  python -m launch.sample --checkpoint=runs/quickstart --stage=average --prompt='def '
  python -m launch.sample --checkpoint=Qwen/Qwen3-0.6B     a model on the Hugging Face hub, or a folder of one

A model whose last stage learnt from conversations answers the prompt, in its chat template; with --raw it continues the
text like any other model. For a chat model that was imported, name its template: --template=llama3.

Without --prompt it chats: each line that is typed, or comes through a pipe, is added to the conversation, and the model
answers, or goes on from there. /reset starts a new conversation, /quit or Ctrl-D ends, Ctrl-C stops the current answer.
A model that continues text goes on after an empty line.
"""
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence

from launch import runtime
from launch.errors import refusing
from launch.imported import run_folder
from launch.sample_flags import SampleFlags, check, check_models, parse
from llm_jax.config.errors import require
from llm_jax.config.run import Run
from llm_jax.tracking.run_config import read_config

NO_READER = 128 + 13  # the exit code of a program whose reader has left, as a shell has it: SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
  flags = parse(argv, __doc__ or '')
  with refusing():
    check(flags)
    flags = with_runs(flags)
    run = read_config(flags.checkpoint, '--checkpoint')
    draft_run = read_config(flags.draft_workdir, '--draft') if flags.draft_workdir else None
    check_models(flags, run, draft_run)
  try:
    code = answer(flags, run, draft_run)
    sys.stdout.flush()
  except KeyboardInterrupt:
    print()
    return runtime.INTERRUPTED
  except BrokenPipeError:  # such as `| head`; what is still to be flushed goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER
  return code


def with_runs(flags: SampleFlags) -> SampleFlags:
  """The same with folders of runs, where models of Hugging Face are named."""
  draft = flags.draft_workdir
  return dataclasses.replace(
    flags, checkpoint=run_folder('--checkpoint', flags.checkpoint),
    draft=flags.draft if draft is None else str(run_folder('--draft', draft)))


def answer(flags: SampleFlags, run: Run, draft_run: Run | None) -> int:
  """Loads the models and prints what they write; the exit code."""
  with runtime.leaving_on_interrupt():
    runtime.prepare()  # jax starts here, after the command line has been checked
    from launch.chat import chat
    from launch.sampler import Sampler
    from llm_jax.runtime.errors import CheckpointError, is_out_of_memory, one_line
  try:
    with refusing():
      with runtime.leaving_on_interrupt():
        sampler = Sampler(flags, run, draft_run)
        if flags.prompt is not None:
          prompt = sys.stdin.read() if flags.prompt == '-' else flags.prompt
          require(sampler.template is None or bool(prompt.strip()), '--prompt', flags.prompt,
                  'empty: this model answers what is said to it; with --raw it continues from nothing')
          sampler.write(prompt)
          return 0
      chat(sampler, lines())
  except CheckpointError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  except (RuntimeError, MemoryError) as error:
    if not is_out_of_memory(error):
      raise
    print(f'error: out of memory: {one_line(error)}: use --dtype=bfloat16, fewer --max_new_tokens or a shorter prompt',
          file=sys.stderr, flush=True)
    return 1
  return 0


def lines() -> Iterator[str]:
  """What a person types, or what a pipe brings, line by line."""
  if not sys.stdin.isatty():
    for line in sys.stdin:
      yield line.removesuffix('\n')
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
