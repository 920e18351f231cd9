"""Scores a model on the field's own tasks, with lm-evaluation-harness's definitions.

  python -m launch.evaluate --checkpoint=runs/quickstart --tasks=stdlib_bodies,stdlib_names --limit=200
  python -m launch.evaluate --checkpoint=D --tasks=arc_easy,gsm8k_cot --data=arc_easy=arc.jsonl \\
      --data=gsm8k_cot=gsm8k.jsonl --num_fewshot=5
  python -m launch.evaluate --checkpoint=D --tasks=arc_easy --data=arc_easy=arc.jsonl --against=hf

What cannot be scored is refused before the model is read. Prints a table and writes results.json (in the harness's
schema), the samples of every task and page.html. Several processes share the work as in training, and process 0 writes.
"""
import os
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.errors import refusing
from launch.evaluate_flags import EvaluateFlags, check, parse
from launch.imported import run_folder


def main(argv: Sequence[str] | None = None) -> int:
  flags = parse(argv, __doc__ or '')
  with refusing():
    flags = check(flags)
  if flags.data:  # local files are asked for: nothing shall be fetched beside them
    for name in ('HF_DATASETS_OFFLINE', 'HF_HUB_OFFLINE'):
      os.environ.setdefault(name, '1')
  with runtime.leaving_on_interrupt():
    runtime.prepare()  # jax starts here, after the command line has been checked
    from launch.evaluate_model import check_alone, is_first, open_model
    from launch.evaluate_output import report
    from llm_jax.runtime import joining, processes
    from llm_jax.runtime.errors import CheckpointError
  try:
    with refusing():
      joining.join(flags.coordinator, flags.num_processes, flags.process_id)
      check_alone(flags)
      processes.connect_devices()
      opened = open_model(flags, run_folder('--checkpoint', flags.checkpoint))
      annotated = opened.annotate()
      if annotated is not None:
        print(annotated)
        return 0
      results = opened.evaluate()
      if is_first():
        report(flags, opened, results, folder_of(flags))
      processes.barrier('the results are written')
  except CheckpointError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    return 1
  except KeyboardInterrupt:
    print()
    return runtime.INTERRUPTED
  return 0


def folder_of(flags: EvaluateFlags) -> pathlib.Path:
  """Where the results go."""
  return flags.output or pathlib.Path('evaluations') / flags.checkpoint.absolute().name


def cli() -> int:
  """The program `llm-jax-evaluate`."""
  return main()


if __name__ == '__main__':
  sys.exit(cli())
