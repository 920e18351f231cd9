"""The rest of a report: events, what the model wrote, the checkpoints that there are."""
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.report.html import disclosure, escape, table
from llm_jax.report.records import RunRecords, read_json
from llm_jax.tracking.numbers import size

GENERATIONS_SHOWN = 6  # steps a prompt
EVENTS_SHOWN = 100


def events(run: RunRecords) -> str:
  """What went wrong or was out of the ordinary, the last ones; '' where there was nothing."""
  found = run.of_kind('event')
  if not found:
    return ''
  rows = [(record.get('stage', ''), f'{record["step"]:,}', _event(record)) for record in found[-EVENTS_SHOWN:]]
  plural = 's' if len(found) > 1 else ''
  return disclosure(f'{len(found):,} event{plural}', table(('stage', 'step', 'what'), rows, 'words'))


def _event(record: Mapping[str, Any]) -> str:
  parts: list[str] = []
  for name, content in record.items():
    if name == 'event':
      parts.append(str(content))
    elif name not in ('kind', 'stage', 'step', 'time'):
      parts.append(f'{name} {content}')
  return ', '.join(parts)


def generations(run: RunRecords) -> str:
  """For each prompt what the model wrote at several steps, the latest first and open. The text is anyone's: escaped."""
  by_prompt: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
  for record in run.generations:  # of two of a step the later counts
    prompt = str(record.get('prompt', ''))
    by_prompt.setdefault(prompt, {})[str(record.get('stage')), record['step']] = record
  if not by_prompt:
    return ''
  sections = [_prompt_section(prompt, list(found.values())) for prompt, found in by_prompt.items()]
  return '<h2>Generations</h2>' + ''.join(sections)


def _prompt_section(prompt: str, records: Sequence[Mapping[str, Any]]) -> str:
  heading = f'<h3>Prompt <code>{escape(prompt)}</code></h3>' if prompt else '<h3>Without a prompt</h3>'
  cards: list[str] = []
  for i, record in enumerate(reversed(_spread(records))):
    summary = f'<span class="muted">{escape(record.get("stage", ""))}, step {record["step"]:,}</span>'
    text = f'<pre><mark>{escape(prompt)}</mark>{escape(record.get("text", ""))}</pre>'
    cards.append(disclosure(summary, text, is_open=i == 0, css='generation'))
  return f'{heading}<div class="card">{"".join(cards)}</div>'


def _spread(records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
  """The first, the last, and some evenly between."""
  if len(records) <= GENERATIONS_SHOWN:
    return records
  last = GENERATIONS_SHOWN - 1
  return [records[round(i * (len(records) - 1) / last)] for i in range(GENERATIONS_SHOWN)]


def checkpoints(run: RunRecords) -> str:
  """The checkpoints that there are, by their manifests; '' where there is none."""
  rows: list[tuple[str, ...]] = []
  for path in sorted(run.workdir.glob('checkpoints/*/*/manifest.json')):
    files = read_json(path).get('files', {})
    num_bytes = sum(entry[0] for entry in files.values() if isinstance(entry, list) and entry)
    folder = path.parent
    rows.append((folder.parent.name, folder.name.lstrip('0') or '0', f'{len(files):,}', size(num_bytes)))
  return '<h2>Checkpoints</h2>' + table(('stage', 'step', 'files', 'size'), rows) if rows else ''
