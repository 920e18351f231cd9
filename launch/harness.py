"""The command line of lm-evaluation-harness, which knows our models as `llm_jax`.

  python -m launch.harness run --model llm_jax --model_args checkpoint=runs/quickstart --tasks lambada_openai

checkpoint is a run's folder, a Hugging Face folder or a name on the hub. Further arguments: stage, step, chat=True (for
--apply_chat_template), template, no_bos=True, max_length, dtype.
"""
import dataclasses
import pathlib
import sys
from typing import Any

from launch import runtime
from launch.errors import refuse, refusing
from launch.evaluate_flags import EvaluateFlags, parse
from launch.imported import run_folder
from llm_jax.config.packages import is_installed

NAMES = ('stage', 'step', 'chat', 'template', 'no_bos', 'max_length', 'dtype')


def main() -> int:
  if not is_installed('lm_eval'):
    refuse("lm_eval is not installed: pip install 'llm_jax[eval]'")
  runtime.prepare()
  register()
  from lm_eval.__main__ import cli_evaluate
  with refusing():
    cli_evaluate()
  return 0


def register() -> None:
  """Makes `llm_jax` a model of the harness."""
  from lm_eval.api.registry import register_model

  from launch.evaluate_model import Saved, text_of
  from llm_jax.harness.model import HarnessModel

  @register_model('llm_jax')
  class Registered(HarnessModel):
    """A checkpoint, as the harness makes one of `--model_args`."""

    def __init__(self, checkpoint: str, batch_size: int | str = 16, device: str | None = None,
                 max_batch_size: int | None = None, **values: Any):
      flags = flags_of(checkpoint, batch_size, values)
      saved = Saved.find(flags, run_folder('checkpoint', flags.checkpoint))
      text = text_of(flags, saved)
      super().__init__(text, saved.read(flags, text))


def flags_of(checkpoint: str, batch_size: int | str, values: dict[str, Any]) -> EvaluateFlags:
  """`--model_args` as the flags of `launch.evaluate`."""
  unknown = sorted(values.keys() - set(NAMES))
  if unknown:
    refuse(f'--model_args: {unknown[0]} is unknown: use checkpoint, {", ".join(NAMES)}')
  flags = parse([f'--checkpoint={checkpoint}', '--tasks='], '')
  size = 16 if batch_size == 'auto' else int(batch_size)
  return dataclasses.replace(flags, checkpoint=pathlib.Path(checkpoint), batch_size=size, **values)


if __name__ == '__main__':
  sys.exit(main())
