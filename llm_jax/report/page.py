"""`report.html`: a run at a glance, made from nothing but the files in its workdir."""
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.model.count import count_parameters
from llm_jax.report.displays import displays, headlines
from llm_jax.report.html import bars, disclosure, escape, lineage_table, page, table, tiles, tree
from llm_jax.report.recipe_graph import stage_graph
from llm_jax.report.records import StageRecords, by_stage, last, median, read_json
from llm_jax.report.stages import curves, data_table, stage_table
from llm_jax.runtime.files import write_atomic
from llm_jax.tracking.metrics import read_generations, read_metrics
from llm_jax.tracking.numbers import NOTHING, count, duration, show, size, value
from llm_jax.tracking.run_config import parse_config

GENERATIONS_SHOWN = 6  # steps a prompt


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
  """Makes `report.html` in `workdir`, replacing an older one, and returns its path.

  The same files give the same report. Whatever is missing (no evaluation yet, no step, no config) is left out.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'report.html'
  write_atomic(path, render(workdir))
  return path


def render(workdir: pathlib.Path) -> str:
  """The report as HTML."""
  records, config = read_metrics(workdir), read_json(workdir / 'config.json')
  lineage = read_json(workdir / 'lineage.json')
  stages = by_stage(records, config)
  name = workdir.resolve().name
  return page(f'{name}: training report', [
      f'<h1>{escape(name)}</h1><p class="muted">{escape(subtitle(stages, records, config))}</p>',
      headline(stages, records, config, lineage),
      graph(stages, records, config),
      displays(records),
      '<h2>Curves</h2>', curves(stages),
      '<h2>Stages</h2>', stage_table(stages), data_table(stages, records),
      events(records), generations(read_generations(workdir)),
      '<h2>Configuration</h2><div class="card tree">' + tree(config) + '</div>' if config else '',
      '<h2>Lineage</h2>' + lineage_table(lineage) if lineage else '',
      checkpoints(workdir)])


# ---------------------------------------------------------------------------------------------- the top
def subtitle(stages: Sequence[StageRecords], records: Sequence[dict[str, Any]], config: dict[str, Any]) -> str:
  """Layers, width and vocabulary; how far the run is; when it ran."""
  parts, model = [], config.get('model', {})
  if {'num_layers', 'd_model', 'vocab_size'} <= model.keys():
    parts.append(f'decoder of {model["num_layers"]} layers, width {model["d_model"]}, '
                 f'vocabulary {model["vocab_size"]:,}')
  if parameters(config):
    parts.append(f'{parameters(config):,} parameters')
  if stages:
    steps = stages[-1].config.get('steps')
    done = f'step {stages[-1].last_step:,}' + (f' of {steps:,}' if isinstance(steps, int) else '')
    parts.append(f'stage {stages[-1].name}, {done}')
  else:
    parts.append('no step recorded yet')
  times = [t for r in records if math.isfinite(t := value(r, 'time'))]
  if times:
    first, final = (time.strftime('%Y-%m-%d %H:%M', time.gmtime(t)) for t in (min(times), max(times)))
    parts.append(f'{first} to {final} UTC')
  return ' · '.join(parts)


def headline(stages: Sequence[StageRecords], records: Sequence[dict[str, Any]], config: dict[str, Any],
             lineage: dict[str, Any]) -> str:
  """Bits per byte beside the baselines, and the numbers that people ask for first."""
  finals = [r for r in records if r.get('kind') == 'final']
  evals = [r for s in stages for r in s.evals]
  ours = last(evals + finals, 'bits_per_byte')
  compared = [('this model', ours, 'model'),
              ('trigram model', last(finals, 'trigram_bits_per_byte'), ''),
              ('xz -9', last(finals, 'xz_bits_per_byte'), '')]
  compared = [(label, x, css) for label, x, css in compared if math.isfinite(x)]
  loss = last(evals, 'loss')
  perplexity = math.exp(min(last(evals, 'nll') if math.isfinite(last(evals, 'nll')) else loss, 700))
  tokens = [s.tokens for s in stages if s.tokens is not None]
  metadata = [
      ('held-out bits per byte', show(ours, '{:.3f}')),
      ('held-out loss (nats per token)', show(loss, '{:.3f}')),
      ('held-out perplexity', show(perplexity, '{:,.1f}')),
      ('parameters', count(parameters(config))),
      ('tokens trained on', count(sum(tokens) if tokens and len(tokens) == len(stages) else None)),
      ('in training steps', duration(sum(s.seconds for s in stages)) if stages else NOTHING),
      ('tokens per second', show(median(stages, 'tokens_per_second'), '{:,.0f}')),
      ('of peak FLOPs (MFU)', show(median(stages, 'mfu'), '{:.1%}'))]
  machine = lineage.get('machine')
  if isinstance(machine, dict):
    machine = ', '.join(str(v) if k == 'devices' else f'{k.replace("_", " ")} {v}' for k, v in machine.items())
  picture = bars(compared) if compared else '<p class="nothing">no evaluation yet</p>'
  note = ('<p class="note">Both baselines on the same held-out bytes: a trigram model, interpolated with lower orders, '
          'of the training tokens; and the compressor, which learns from the held-out text itself.</p>')
  return (f'{verdict(compared)}<div class="top">'
          f'<div class="card"><b>Held-out bits per byte</b> <span class="muted">(less is better)</span>{picture}'
          f'{note if len(compared) > 1 else ""}</div>'
          f'{tiles(metadata, [("machine", machine)] if machine else [])}</div>')


def verdict(compared: Sequence[tuple[str, float, str]]) -> str:
  """One sentence: how the model compares."""
  if not compared or compared[0][0] != 'this model':
    return ''
  ours = compared[0][1]
  others = [f'{abs(1 - ours / x):.0%} {"less" if ours < x else "more"} than {"the " if " m" in label else ""}{label}'
            for label, x, _ in compared[1:] if x > 0]
  against = ': ' + ' and '.join(others) if others else ''
  return ('<p class="verdict">Text that it never saw costs this model '
          f'<b>{ours:.3f}</b> bits per byte{escape(against)}.</p>')


def parameters(config: dict[str, Any]) -> int | None:
  try:
    return count_parameters(parse_config(config).model)
  except (ConfigError, AttributeError, TypeError, ValueError):
    return None


def graph(stages: Sequence[StageRecords], records: Sequence[dict[str, Any]], config: dict[str, Any]) -> str:
  """How the stages of a run of several follow from each other, and what each of them did."""
  configs = [stage for stage in config.get('stages', []) if isinstance(stage, dict)]
  if len(configs) < 2:
    return ''
  done = {str(r.get('stage')): 'done' for r in records if r.get('kind') == 'final'}
  results = {**done, **headlines(records)}
  return '<h2>Recipe</h2>' + stage_graph(configs, results, {s.name: s.last_step for s in stages})


# ---------------------------------------------------------------------------------------------- below
def events(records: Sequence[dict[str, Any]]) -> str:
  """What went wrong or was out of the ordinary, the last hundred."""
  rows = [(r.get('stage', ''), f'{r["step"]:,}', ', '.join(
      f'{k} {v}' if k != 'event' else str(v) for k, v in r.items() if k not in ('kind', 'stage', 'step', 'time')))
      for r in records if r.get('kind') == 'event']
  if not rows:
    return ''
  return disclosure(f'{len(rows):,} event{"s" if len(rows) > 1 else ""}',
                    table(('stage', 'step', 'what'), rows[-100:], 'words'))


def generations(records: Sequence[dict[str, Any]]) -> str:
  """For each prompt what the model wrote at several steps, the latest first and open. The text is anyone's: escaped."""
  prompts: dict[str, dict[Any, dict[str, Any]]] = {}
  for record in records:  # of two of a step the later counts
    prompts.setdefault(str(record.get('prompt', '')), {})[str(record.get('stage')), record['step']] = record
  out = []
  for prompt, found in prompts.items():
    cards = [disclosure(
        f'<span class="muted">{escape(r.get("stage", ""))}, step {r["step"]:,}</span>',
        f'<pre><mark>{escape(prompt)}</mark>{escape(r.get("text", ""))}</pre>', is_open=i == 0, css='generation')
        for i, r in enumerate(reversed(spread(list(found.values()))))]
    heading = f'<h3>Prompt <code>{escape(prompt)}</code></h3>' if prompt else '<h3>Without a prompt</h3>'
    out.append(heading + '<div class="card">' + ''.join(cards) + '</div>')
  return '<h2>Generations</h2>' + ''.join(out) if out else ''


def spread(found: Sequence[Any]) -> Sequence[Any]:
  """The first, the last, and some evenly between."""
  if len(found) <= GENERATIONS_SHOWN:
    return found
  return [found[round(i * (len(found) - 1) / (GENERATIONS_SHOWN - 1))] for i in range(GENERATIONS_SHOWN)]


def checkpoints(workdir: pathlib.Path) -> str:
  """The checkpoints there are, by their manifests."""
  rows = []
  for path in sorted(workdir.glob('checkpoints/*/*/manifest.json')):
    files = read_json(path).get('files', {})
    num_bytes = sum(entry[0] for entry in files.values() if isinstance(entry, list) and entry)
    rows.append((path.parent.parent.name, path.parent.name.lstrip('0') or '0', f'{len(files):,}', size(num_bytes)))
  return '<h2>Checkpoints</h2>' + table(('stage', 'step', 'files', 'size'), rows) if rows else ''
