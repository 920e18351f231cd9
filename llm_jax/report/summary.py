"""The top of a report: what was trained, how far it is, and its headline numbers beside the baselines."""
import dataclasses
import math
import time
from collections.abc import Sequence

from llm_jax.config.errors import ConfigError
from llm_jax.config.model.count import count_parameters
from llm_jax.report.html import bars, escape, tiles
from llm_jax.report.records import RunRecords, last, median
from llm_jax.tracking.numbers import NOTHING, count, duration, show, value
from llm_jax.tracking.run_config import parse_config

LARGEST_EXPONENT = 700  # exp() of more is no float
BASELINES_NOTE = (
  'Both baselines on the same held-out bytes: a trigram model, interpolated with lower orders, of the training tokens; '
  'and the compressor, which learns from the held-out text itself.')


@dataclasses.dataclass(frozen=True)
class _Compared:
  """One bar of bits per byte.   phrase: as a sentence names it.   css: the class of the bar."""
  label: str
  phrase: str
  bits_per_byte: float
  css: str = ''


def subtitle(run: RunRecords) -> str:
  """Layers, width and vocabulary; how far the run is; when it ran."""
  parts = [_model(run), _size(run), _position(run), _time(run)]
  return ' · '.join(part for part in parts if part)


def _model(run: RunRecords) -> str:
  model = run.config.get('model', {})
  if not {'num_layers', 'd_model', 'vocab_size'} <= model.keys():
    return ''
  return (f'decoder of {model["num_layers"]} layers, width {model["d_model"]}, '
          f'vocabulary {model["vocab_size"]:,}')


def _size(run: RunRecords) -> str:
  number = parameters(run)
  return f'{number:,} parameters' if number else ''


def _position(run: RunRecords) -> str:
  if not run.stages:
    return 'no step recorded yet'
  stage = run.stages[-1]
  steps = stage.config.get('steps')
  total = f' of {steps:,}' if isinstance(steps, int) else ''
  return f'stage {stage.name}, step {stage.last_step:,}{total}'


def _time(run: RunRecords) -> str:
  times = [value(record, 'time') for record in run.metrics]
  known = [seconds for seconds in times if math.isfinite(seconds)]
  if not known:
    return ''
  return f'{_date(min(known))} to {_date(max(known))} UTC'


def _date(seconds: float) -> str:
  return time.strftime('%Y-%m-%d %H:%M', time.gmtime(seconds))


def parameters(run: RunRecords) -> int | None:
  """Of the model; None where its configuration cannot be read."""
  try:
    return count_parameters(parse_config(dict(run.config)).model)
  except (ConfigError, AttributeError, TypeError, ValueError):
    return None


def headline(run: RunRecords) -> str:
  """Bits per byte beside the baselines, and the numbers that people ask for first."""
  compared = _compared(run)
  picture = '<p class="nothing">no evaluation yet</p>'
  if compared:
    picture = bars([(each.label, each.bits_per_byte, each.css) for each in compared])
  note = f'<p class="note">{escape(BASELINES_NOTE)}</p>' if len(compared) > 1 else ''
  machine = _machine(run)
  wide = [('machine', machine)] if machine else []
  return (f'{_verdict(compared)}<div class="top">'
          f'<div class="card"><b>Held-out bits per byte</b> <span class="muted">(less is better)</span>{picture}'
          f'{note}</div>{tiles(_numbers(run), wide)}</div>')


def _compared(run: RunRecords) -> list[_Compared]:
  """The model and the baselines, as far as they are evaluated."""
  finals = run.of_kind('final')
  everyone = (
    _Compared('this model', 'this model', _bits_per_byte(run), 'model'),
    _Compared('trigram model', 'the trigram model', last(finals, 'trigram_bits_per_byte')),
    _Compared('xz -9', 'xz -9', last(finals, 'xz_bits_per_byte')),
  )
  return [each for each in everyone if math.isfinite(each.bits_per_byte)]


def _bits_per_byte(run: RunRecords) -> float:
  evals = [record for stage in run.stages for record in stage.evals]
  return last([*evals, *run.of_kind('final')], 'bits_per_byte')


def _verdict(compared: Sequence[_Compared]) -> str:
  """One sentence: how the model compares."""
  if not compared or compared[0].css != 'model':
    return ''
  ours = compared[0].bits_per_byte
  others: list[str] = []
  for other in compared[1:]:
    if other.bits_per_byte > 0:
      word = 'less' if ours < other.bits_per_byte else 'more'
      others.append(f'{abs(1 - ours / other.bits_per_byte):.0%} {word} than {other.phrase}')
  against = ': ' + ' and '.join(others) if others else ''
  return ('<p class="verdict">Text that it never saw costs this model '
          f'<b>{ours:.3f}</b> bits per byte{escape(against)}.</p>')


def _numbers(run: RunRecords) -> list[tuple[str, str]]:
  """(label, value)."""
  stages = run.stages
  # The loss of pairs, rated answers or classes is not in nats per token, and is in the table of stages.
  evals = [record for stage in stages if stage.is_language_model for record in stage.evals]
  loss = last(evals, 'loss')
  nll = last(evals, 'nll')
  perplexity = math.exp(min(nll if math.isfinite(nll) else loss, LARGEST_EXPONENT))
  seconds = sum(stage.seconds for stage in stages)
  return [
    ('held-out bits per byte', show(_bits_per_byte(run), '{:.3f}')),
    ('held-out loss (nats per token)', show(loss, '{:.3f}')),
    ('held-out perplexity', show(perplexity, '{:,.1f}')),
    ('parameters', count(parameters(run))),
    ('tokens trained on', count(_tokens(run))),
    ('in training steps', duration(seconds) if stages else NOTHING),
    ('tokens per second', show(median(stages, 'tokens_per_second'), '{:,.0f}')),
    ('of peak FLOPs (MFU)', show(median(stages, 'mfu'), '{:.1%}')),
  ]


def _tokens(run: RunRecords) -> int | None:
  """Of all stages; None where those of one are not known."""
  known = [stage.tokens for stage in run.stages if stage.tokens is not None]
  return sum(known) if known and len(known) == len(run.stages) else None


def _machine(run: RunRecords) -> str:
  machine = run.lineage.get('machine')
  if not isinstance(machine, dict):
    return str(machine) if machine else ''
  parts = [str(content) if name == 'devices' else f'{name.replace("_", " ")} {content}'
           for name, content in machine.items()]
  return ', '.join(parts)
