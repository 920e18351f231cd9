"""The command line of `launch.sample` as checked values."""
import argparse
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from launch.place_flags import run_path
from llm_jax.config.errors import require
from llm_jax.config.run import Run
from llm_jax.config.source import TEMPLATES

HEADS = 'heads'  # the value of --draft that names the model's own multi-token heads
DRAWING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')  # flags that a beam search has no use for


@dataclasses.dataclass(frozen=True)
class SampleFlags:
  """What a command line says, flag by flag; None where one is not given. `parse` says what each is."""
  checkpoint: pathlib.Path
  prompt: str | None
  max_new_tokens: int
  stop: list[str]
  temperature: float | None
  top_k: int | None
  top_p: float | None
  min_p: float | None
  repetition_penalty: float | None
  beams: int | None
  seed: int | None
  num_samples: int
  log_probs: bool
  draft: str | None
  draft_tokens: int | None
  raw: bool
  template: str | None
  system: str | None
  dtype: str | None
  stage: str | None
  step: int | None

  def given(self, names: Iterable[str]) -> list[str]:
    """Those of `names` that are on the command line."""
    return [name for name in names if getattr(self, name) not in (None, False)]

  @property
  def draft_workdir(self) -> pathlib.Path | None:
    """The folder of the other model that drafts, if any."""
    return None if self.draft is None or self.draft == HEADS else pathlib.Path(self.draft)


def parse(argv: Sequence[str] | None, description: str) -> SampleFlags:
  parser = argparse.ArgumentParser(prog='python -m launch.sample', description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--checkpoint', required=True, type=run_path, metavar='WORKDIR',
      help='the folder of the run; or a Hugging Face folder, or the name of a model on the hub')
  add('--prompt', help="the text to continue, which may be empty, or to answer; '-' reads it from standard input")
  add('--max_new_tokens', type=int, default=256, help='default 256')
  add('--stop', action='append', default=[], metavar='TEXT',
      help='end an answer before this text; can be given more than once')
  add('--temperature', type=float, help='0: always the most probable token; default 0.8')
  add('--top_k', type=int, help='draw from the k most probable tokens only')
  add('--top_p', type=float,
      help='draw from the most probable tokens that together reach p; default 0.95, or 1 (all) with --min_p')
  add('--min_p', type=float, help='draw from the tokens with at least this share of the greatest probability')
  add('--repetition_penalty', type=float, help='above 1: tokens that came before become less probable')
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
      help="the chat template to answer by; default: that of the last stage's conversations; 'model', the one that an "
           'imported model brings, where nothing was trained')
  add('--system', metavar='TEXT', help='a system message, before the conversation with a chat model')
  add('--dtype', choices=('float32', 'bfloat16'), help="of the computation; default: the run's own")
  add('--stage', help='default: the last one that has a checkpoint')
  add('--step', type=int, help='default: the newest valid checkpoint')
  return SampleFlags(**vars(parser.parse_args(argv)))


# ---------------------------------------------------------------------------------------------- checks
def check(flags: SampleFlags) -> None:
  """Refuses flags that are wrong or do not go together.

  Raises:
    ConfigError: names the flag.
  """
  for name in ('num_samples', 'max_new_tokens', 'beams', 'draft_tokens'):
    value = getattr(flags, name)
    require(value is None or value >= 1, f'--{name}', value, 'use 1 or more')
  require(flags.seed is None or -2**63 <= flags.seed < 2**63, '--seed', flags.seed, 'use a number of at most 64 bits')
  require('' not in flags.stop, '--stop', '', 'give the text that ends an answer')
  _check_beams(flags)
  _check_drawing(flags)
  _check_draft(flags)
  _check_chat(flags)


def _check_beams(flags: SampleFlags) -> None:
  if flags.beams is None:
    return
  for name in flags.given((*DRAWING, 'seed', 'log_probs', 'draft')):
    require(False, f'--{name}', str(getattr(flags, name)), 'it does not go with --beams: leave one of them out')
  require(flags.num_samples <= flags.beams, '--num_samples', flags.num_samples, f'use at most --beams={flags.beams}')


def _check_drawing(flags: SampleFlags) -> None:
  if flags.temperature != 0:
    return
  for name in flags.given(('top_k', 'top_p', 'min_p')):
    require(False, f'--{name}', getattr(flags, name),
            'with --temperature=0 the most probable token is taken: leave one of them out')


def _check_draft(flags: SampleFlags) -> None:
  require(flags.draft is not None or flags.draft_tokens is None, '--draft_tokens', flags.draft_tokens,
          'name the model that drafts with --draft')
  require(not (flags.draft and flags.log_probs), '--log_probs', True,
          'does not go with --draft: leave one of them out')


def _check_chat(flags: SampleFlags) -> None:
  require(not (flags.raw and flags.template), '--raw', True, 'does not go with --template: leave one of them out')
  require(flags.system is None or bool(flags.system.strip()), '--system', flags.system, 'empty: leave it out')
  if flags.prompt is None:
    require(flags.num_samples == 1, '--num_samples', flags.num_samples, 'a chat has one answer: give --prompt')
    require(not flags.log_probs, '--log_probs', True, 'give --prompt')


def check_models(flags: SampleFlags, run: Run, draft_run: Run | None) -> None:
  """Whether what drafts belongs to the model, as far as their configurations say."""
  if flags.draft == HEADS:
    heads = len(run.model.multi_token)
    require(heads > 0, '--draft', HEADS, 'this model has no multi-token heads: name the folder of one that drafts')
    require((flags.draft_tokens or 1) <= heads, '--draft_tokens', flags.draft_tokens, f'the model has {heads} heads')
  if draft_run is not None:
    require(draft_run.model.vocab_size == run.model.vocab_size, '--draft', flags.draft,
            f'its vocabulary has {draft_run.model.vocab_size} tokens, that of the model {run.model.vocab_size}: '
            'use models trained with one tokenizer')
