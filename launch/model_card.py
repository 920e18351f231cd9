"""The model card that `launch.convert --push` writes: the recipe, the data, the scores, and how the model was made."""
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from llm_jax.config.hub_names import hub_names
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.model.count import count_parameters
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Average, HuggingFace, Params, Resume
from llm_jax.config.version import __version__
from llm_jax.hf.families import family_of
from llm_jax.report.records import MetricsRecord
from llm_jax.tracking.metrics import read_metrics
from llm_jax.tracking.numbers import NOTHING, count
from llm_jax.tracking.run_config import read_config

# Of the record of a stage's end: name, what the card calls it, format.
SCORES = (
  ('loss', 'held-out loss', '{:.4f}'),
  ('nll', 'nats per token', '{:.4f}'),
  ('bits_per_byte', 'bits per byte', '{:.4f}'),
  ('accuracy', 'accuracy', '{:.1%}'),
  ('trigram_bits_per_byte', 'trigram model', '{:.4f}'),
  ('xz_bits_per_byte', 'xz -9', '{:.4f}'),
)
USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained('{name}')
tokenizer = AutoTokenizer.from_pretrained('{name}')
```
"""


def card_of_model(name: str, model: Architecture, origin: str) -> str:
  """The card of a model that was not trained here.   origin: where it was read."""
  return '\n'.join([
    _front({'library_name': 'transformers', 'pipeline_tag': 'text-generation', 'tags': ['llm_jax']}),
    f'# {name.rpartition("/")[2]}\n', f'{_size(model)} It was converted from `{origin}` by llm_jax {__version__}.\n',
    USE.format(name=name)])


def card_of_run(name: str, workdir: pathlib.Path, model: Architecture, stage: str | None, step: int | None) -> str:
  """The card of a checkpoint of a run.

  stage: what was exported; None: the last one that has a checkpoint.
  """
  run = read_config(workdir, '--checkpoint')
  records = read_metrics(workdir)
  chosen = _chosen(workdir, run, stage)
  stages = (*run.ancestors(chosen), chosen)
  parts = [
    _front(_metadata(stages)),
    f'# {name.rpartition("/")[2]}\n',
    f'{_size(model)} It was trained by llm_jax; this is stage `{chosen.name}`'
    f'{"" if step is None else f" after {step:,} steps"}.\n',
    USE.format(name=name),
    '## Recipe\n', _table(('stage', 'learns', 'steps', 'tokens', 'tokens a row', 'learning rate', 'starts from'),
                          [_recipe_row(each) for each in stages]),
    '## Data\n', _table(('stage', 'source', 'share', 'epochs', 'tokens'), list(_data_rows(stages, records))),
    '## Scores\n', _scores(stages, records),
    '## How it was made\n', _lineage(workdir),
  ]
  return '\n'.join(parts)


def _chosen(workdir: pathlib.Path, run: Run, stage: str | None) -> Stage:
  saved = [each for each in run.stages if any((workdir / 'checkpoints' / each.name).glob('*/manifest.json'))]
  return next((each for each in saved if each.name == stage), saved[-1])


# ---------------------------------------------------------------------------------------------- front matter
def _metadata(stages: Sequence[Stage]) -> dict[str, Any]:
  """What the hub reads of a card: https://huggingface.co/docs/hub/model-cards"""
  found = {name for stage in stages for name in hub_names(stage)}
  values: dict[str, Any] = {
    'library_name': 'transformers', 'pipeline_tag': 'text-generation', 'tags': ['llm_jax']}
  bases = sorted({name.name for name in found if name.kind == 'model'})
  data = sorted({name.name for name in found if name.kind == 'dataset'})
  return {**values, **({'base_model': bases} if bases else {}), **({'datasets': data} if data else {})}


def _front(values: dict[str, Any]) -> str:
  """YAML, of which JSON's values are a part."""
  lines = [f'{name}: {json.dumps(value)}' for name, value in values.items()]
  return '\n'.join(['---', *lines, '---\n'])


def _size(model: Architecture) -> str:
  return (f'A `{family_of(model).model_type}` model with {count(count_parameters(model))} parameters: '
          f'{model.num_layers} layers, width {model.d_model}, vocabulary {model.vocab_size:,}.')


# ---------------------------------------------------------------------------------------------- tables
def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(_cell, line)) + ' |' for line in lines) + '\n'


def _cell(text: str) -> str:
  return ' '.join(text.split()).replace('|', '\\|') or NOTHING


def _recipe_row(stage: Stage) -> tuple[str, ...]:
  rate = stage.learning_rate
  learns = type(stage.objective).__name__
  if stage.adapters is not None:
    learns += f', adapters of rank {stage.adapters.rank}'
  return (stage.name, learns, f'{stage.steps:,}', count(stage.tokens_after(stage.steps)),
          f'{stage.seq_len:,}', f'{type(rate).__name__}, peak {rate.peak:g}', _start(stage))


def _start(stage: Stage) -> str:
  match stage.init:
    case HuggingFace(name, revision=revision):
      return f'`{name}`' if revision is None else f'`{name}` at `{revision[:12]}`'
    case Average():
      return f'average of {", ".join(stage.parents)}'
    case Params(name) | Resume(name):
      return name
    case _:
      return 'random parameters'


def _data_rows(stages: Sequence[Stage], records: Iterable[MetricsRecord]) -> Iterable[tuple[str, ...]]:
  """What was read of each source; before a stage has ended, what it was to read."""
  read = {(record['stage'], record.get('source')): record for record in records if record['kind'] == 'data'}
  for stage in stages:
    if stage.steps == 0:
      continue
    for name, weighted in zip(stage.data.names, stage.data.sources, strict=True):
      record = read.get((stage.name, name), {})
      numbers = ('', '', '')
      if record:
        numbers = (f'{record["share"]:.1%}', f'{record["epochs"]:.3g}', count(record['num_tokens']))
      yield stage.name, _source(name, weighted.source), *numbers


def _source(name: str, source: Any) -> str:
  on_hub = getattr(source, 'hub_name', None)
  if on_hub is None:
    return f'{name} ({type(source).__name__})'
  config = f', {source.config}' if source.config else ''
  commit = '' if on_hub.revision is None else f', commit `{on_hub.revision[:12]}`'
  return f'[{on_hub.name}](https://huggingface.co/datasets/{on_hub.name}){config}, split {source.split}{commit}'


def _scores(stages: Sequence[Stage], records: Sequence[MetricsRecord]) -> str:
  names = [stage.name for stage in stages]
  finals = {record['stage']: record for record in records if record['kind'] == 'final' and record['stage'] in names}
  known = [name for name, *_ in SCORES if any(isinstance(final.get(name), float) for final in finals.values())]
  if not known:
    return 'No stage has been scored.\n'
  shown = [score for score in SCORES if score[0] in known]
  rows: list[list[str]] = []
  for stage in stages:
    final = finals.get(stage.name, {})
    cells = [form.format(final[name]) if isinstance(final.get(name), float) else '' for name, _, form in shown]
    rows.append([stage.name, *cells])
  return ('On text that was set aside from the data of the stage:\n\n' +
          _table(['stage', *(label for _, label, _ in shown)], rows))


def _lineage(workdir: pathlib.Path) -> str:
  try:
    lineage: dict[str, Any] = json.loads((workdir / 'lineage.json').read_bytes())
  except (OSError, ValueError):
    return 'The run has no record of it.\n'
  packages = ', '.join(f'{name} {version}' for name, version in lineage.get('packages', {}).items())
  machine = lineage.get('machine', {})
  rows = [('code', f'llm_jax {lineage.get("code", "")}'), ('packages', packages),
          ('devices', str(machine.get('devices', ''))), ('began', str(lineage.get('started', '')))]
  rows += [(f'{each["kind"]} on the hub', f'`{each["name"]}` at commit `{each["commit"]}`')
           for each in lineage.get('hub', ())]
  return _table(('', ''), rows)
