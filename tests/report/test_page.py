"""The report: right pictures, safe with anyone's text, and always there, whatever is missing."""
import dataclasses
import json
import math
import re
import xml.etree.ElementTree

import pytest

from launch import report as launch_report
from llm_jax.config import presets
from llm_jax.config.data import Data, Weighted
from llm_jax.config.experiment import Average, Params, Resume, Scratch
from llm_jax.config.run import Checkpoints, Run
from llm_jax.config.schedules import Cosine
from llm_jax.config.sources import StandardLibrary
from llm_jax.config.stage import Stage
from llm_jax.config.tokenizers import BPE
from llm_jax.report.page import render, write_report
from llm_jax.report.style import STYLE
from llm_jax.tracking.display import HeatMap, Table, from_record, to_record
from llm_jax.tracking.metrics import MetricsWriter
from llm_jax.tracking.run_config import write_config
from tests.report.html_page import HOSTILE, Page


def experiment(*stages):
  data = Data((Weighted(StandardLibrary()),))
  return Run(presets.llama(64, 2, 4, vocab_size=512), tokenizer=BPE(512), stages=tuple(
      Stage(name, data, steps=steps, seq_len=32, batch_size=4, learning_rate=Cosine(1e-3)) for name, steps in stages))


def make_run(folder, stages=(('pretrain', 60),), finished=True):
  """A workdir as a run leaves it."""
  write_config(folder, experiment(*stages))
  (folder / 'lineage.json').write_text(json.dumps(
      {'machine': {'devices': '1 x test', 'cpu_cores': 2}, 'data': {'train': 'sha256:12'}, 'parent': None}))
  writer = MetricsWriter(folder)
  for name, steps in stages:
    for step in range(1, steps + 1):
      writer.write('train', name, step, loss=6 / step ** 0.3, grad_norm=1 + 1 / step, learning_rate=1e-3 * step / steps,
                   step_seconds=0.5, tokens_per_second=256.0, mfu=0.25)
      if step % 20 == 0:
        writer.write('eval', name, step, loss=6.5 / step ** 0.3, bits_per_byte=3 / step ** 0.3)
        writer.generation(name, step, 'def ', f'{name}_{step}(self):')
  if finished:
    writer.write('final', stages[-1][0], stages[-1][1], bits_per_byte=1.25, trigram_bits_per_byte=1.5,
                 xz_bits_per_byte=2.0)
  manifest = folder / 'checkpoints/pretrain/00000060/manifest.json'
  manifest.parent.mkdir(parents=True)
  manifest.write_text(json.dumps({'facts': {}, 'files': {'state/a': [3 * 2**20, 'ab'], 'state/b': [2**20, 'cd']}}))


def report(folder):
  return Page(write_report(folder).read_text(encoding='utf-8'))


def test_headline(tmp_path):
  make_run(tmp_path)
  page = report(tmp_path)
  text = page.text()
  assert 'costs this model 1.250 bits per byte: 17% less than the trigram model and 38% less than xz -9' in re.sub(
      r'\s+', ' ', text)
  widths = [float(re.search(r'width:([\d.]+)%', a['style'])[1]) for a in page.all('i')]
  assert widths == [62.5, 75.0, 100.0]
  tiles = page.text('b')
  for number in ('1.250', f'{6.5 / 60 ** 0.3:.3f}', '7.68K', '30 s', '256', '25.0%', '1 x test, cpu cores 2'):
    assert number in tiles
  assert 'step 60 of 60' in text and '4.0 MiB' in text and 'sha256:12' in text
  assert f'{2 * 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 256 + 2 * 64) + 64:,} parameters' in text


def test_the_loss_of_pairs_is_not_shown_in_nats_per_token(tmp_path):
  make_run(tmp_path, (('pretrain', 60), ('dpo', 20)))
  assert 'nats per token (log scale)' in report(tmp_path).text('text')
  config = json.loads((tmp_path / 'config.json').read_text())
  config['stages'][1]['objective'] = {'kind': 'DPO'}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  page = report(tmp_path)
  of_pretraining, of_pairs = 6.5 / 60 ** 0.3, 6.5 / 20 ** 0.3
  tiles = page.text('b')
  assert f'{of_pretraining:.3f}' in tiles and f'{math.exp(of_pretraining):,.1f}' in tiles
  assert f'{of_pairs:.3f}' not in tiles and f'{of_pairs:.4f}' in page.text('td')
  assert "the objective's loss (log scale)" in page.text('text')


def test_what_each_stage_read(tmp_path):
  make_run(tmp_path, (('pretrain', 60), ('sft', 20)))
  assert 'Data' not in report(tmp_path).text('h2')
  with MetricsWriter(tmp_path) as writer:
    for _ in range(2):  # written again after a kill
      for source, share in (('web', 0.75), ('books', 0.25)):
        writer.write('data', 'pretrain', 60, source=source, num_rows=8, share=share, epochs=0.5, num_bytes=2**21,
                     num_tokens=1_234_567)
    writer.write('data', 'sft', 20, source='chats', num_rows=8, share=1.0, epochs=2.5, num_bytes=10, num_tokens=5)
    writer.write('final', 'pretrain', 60, loss=2.0, bits_per_byte=1.25, **{'loss/web': 1.5, 'bits_per_byte/web': 1.125})
  cells = report(tmp_path).text('td')
  assert cells.count(' 2.0 MiB 1.23M') == 2
  assert ('pretrain web 75.0% 0.5 2.0 MiB 1.23M 1.5000 1.1250 pretrain books 25.0% 0.5 2.0 MiB 1.23M – – '
          'sft chats 100.0% 2.5 10 B') in cells


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
  make_run(tmp_path)
  page = report(tmp_path)
  assert not {tag for tag, _ in page.tags} & {'script', 'link', 'img', 'iframe', 'object', 'embed', 'base'}
  for _, attributes in page.tags:
    assert not any(name.startswith('on') or name in ('src', 'href') for name in attributes)
  source = (tmp_path / 'report.html').read_text()
  assert 'http' not in source.replace('http-equiv', '') and '@import' not in source and 'url(' not in source.replace(
      'url(#', '')
  for content in ("default-src 'none'", 'width=device-width'):
    assert any(content in a.get('content', '') for a in page.all('meta'))


def test_text_from_anyone_stays_text(tmp_path):
  make_run(tmp_path)
  with MetricsWriter(tmp_path) as writer:
    writer.generation('pretrain', 60, HOSTILE, HOSTILE)
    writer.generation('pretrain', 60, HOSTILE, HOSTILE)  # twice, as after a kill between samples and checkpoint
    writer.write('event', 'pretrain', 60, event=HOSTILE)
    writer.write('train', HOSTILE, 1, loss=1.0)
  (tmp_path / 'lineage.json').write_text(json.dumps({HOSTILE: HOSTILE, 'machine': HOSTILE}))
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps({**config, HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}], 'kind': HOSTILE}))
  page = report(tmp_path)
  assert not page.all('script') and not page.all('img')
  assert page.text('pre').count('<script>alert(1)</script><img src=x') == 1
  assert page.text('mark').count('<script>alert(1)</script>') == 1
  source = (tmp_path / 'report.html').read_text()
  assert '\x1b' not in source and '\x00' not in source and '\u241b[31m \u2400' in source


def polylines(page, *classes):
  return [[tuple(map(float, p.split(','))) for p in a['points'].split()]
          for a in page.all('polyline') if a['class'].split()[1:] == list(classes)]


def test_curves_hold_the_data(tmp_path):
  """Positions are checked against the ticks' own text: the same number stands at the same height."""
  make_run(tmp_path)
  page = report(tmp_path)
  raw, val_fraction = polylines(page, 'a', 'faint')[0], polylines(page, 'b', 'dots')[0]
  assert len(raw) == 60 and len(val_fraction) == 3
  svg = re.search(r'<svg.*?</svg>', (tmp_path / 'report.html').read_text(), re.S)[0]
  texts = [(t.attrib, t.text) for t in xml.etree.ElementTree.fromstring(svg).iter('text')]
  ys = {float(t): float(a['y']) - 4 for a, t in texts if a.get('text-anchor') == 'end'}
  xs = {float(t): float(a['x']) for a, t in texts if a.get('text-anchor') == 'middle' and re.fullmatch(r'\d+', t or '')}
  assert {0.0, 20.0, 40.0, 60.0} <= xs.keys() and len(ys) >= 3
  (low, y_low), (high, y_high) = min(ys.items()), max(ys.items())
  for points, steps, scale in ((raw, range(1, 61), 6), (val_fraction, (20, 40, 60), 6.5)):
    for (x, y), step in zip(points, steps, strict=True):
      loss = scale / step ** 0.3
      assert x == pytest.approx(xs[0] + (xs[60] - xs[0]) * step / 60, abs=0.11)
      share = (math.log(loss) - math.log(low)) / (math.log(high) - math.log(low))
      assert y == pytest.approx(y_low + (y_high - y_low) * share, abs=0.2)
  assert {'Loss', 'Learning rate', 'Gradient norm', 'Throughput'} == {a['aria-label'] for a in page.all('svg')}


def test_several_stages_stand_one_after_the_other(tmp_path):
  make_run(tmp_path, (('pretrain', 60), ('anneal', 40)))
  page = report(tmp_path)
  raw = polylines(page, 'a', 'faint')[0]
  assert len(raw) == 100 and all(x < y for (x, _), (y, _) in zip(raw, raw[1:], strict=False))
  boundary = float(re.match(r'M([\d.]+)', page.all('path', class_='boundary')[0]['d'])[1])
  assert boundary == pytest.approx(raw[59][0], abs=0.2)
  source = (tmp_path / 'report.html').read_text()
  rows = re.findall(r'<tr><td>(\w+)</td><td>(\d+)</td><td>([\d,]+)</td>', source)
  assert rows[:2] == [('pretrain', '60', '7,680'), ('anneal', '40', '5,120')]
  assert 'anneal_40' in page.text('pre')


def test_what_is_missing_is_left_out(tmp_path):
  """From an empty folder on, one more file at a time."""
  assert 'no evaluation yet' in report(tmp_path).text()
  (tmp_path / 'config.json').write_text('{"half')
  (tmp_path / 'lineage.json').write_text('[]')
  (tmp_path / 'metrics.jsonl').write_text('not json\n{"kind": "train", "stage": "a", "step": "one"}\n')
  assert 'no step recorded yet' in report(tmp_path).text()
  write_config(tmp_path, experiment(('pretrain', 60)))
  assert '196,928 parameters' in report(tmp_path).text()
  with MetricsWriter(tmp_path) as writer:
    writer.write('eval', 'pretrain', 0, loss=6.0)
  assert '403.4' in report(tmp_path).text('b')
  with MetricsWriter(tmp_path) as writer:
    writer.write('train', 'pretrain', 1, loss=6.0)
  page = report(tmp_path)
  assert 'step 1 of 60' in page.text() and len(page.all('circle')) >= 2


def test_values_that_are_not_finite_leave_gaps(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for step in range(1, 31):
      bad = {10: math.nan, 20: math.inf}.get(step)
      writer.write('train', 'a', step, loss=bad or 2.0 + step, learning_rate=0.0, grad_norm=bad or 0.0,
                   tokens_per_second=bad or 5.0, mfu=bad, step_seconds=bad or 1.0)
    writer.write('eval', 'a', 30, loss=math.nan, bits_per_byte=math.nan)
  page = report(tmp_path)
  assert [len(p) for p in polylines(page, 'a', 'line')[:3]] == [9, 9, 10]
  assert not {'faint'} & {a['class'].split()[-1] for a in page.all('polyline')}  # too short to need smoothing
  assert 'nan' not in ' '.join(a['points'] for a in page.all('polyline'))
  assert 'nothing recorded yet' in page.text()  # a gradient norm of zero has no place on a log scale
  with MetricsWriter(tmp_path) as writer:
    for step in range(1, 31):
      writer.write('train', 'a', step, loss=math.nan, grad_norm=math.inf, tokens_per_second=math.nan)
  assert report(tmp_path).text().count('nothing recorded yet') == 4


def test_the_same_files_give_the_same_report_and_the_command_makes_it_again(tmp_path, capsys):
  make_run(tmp_path)
  before = write_report(tmp_path).read_bytes()
  (tmp_path / 'report.html').unlink()
  assert launch_report.main([f'--workdir={tmp_path}']) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / 'report.html')
  assert (tmp_path / 'report.html').read_bytes() == before
  (tmp_path / 'other').mkdir()
  for folder, words in (('/does/not/exist', 'is no folder'), ('x' * 300, 'is no folder'),
                        (tmp_path / 'other', 'holds no run')):
    with pytest.raises(SystemExit) as stopped:
      launch_report.main([f'--workdir={folder}'])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and str(folder) in error and words in error and error.count('\n') == 1
  assert not list((tmp_path / 'other').iterdir())


def test_every_class_has_its_style(tmp_path):
  """Else a part of the page would lose its looks when it is renamed."""
  make_run(tmp_path, (('pretrain', 60), ('anneal', 40)))
  with MetricsWriter(tmp_path) as writer:
    writer.write('event', 'pretrain', 60, event='skipped')
  page = report(tmp_path)
  used = {name for _, attributes in page.tags for name in attributes.get('class', '').split()}
  without = {name for name in used if f'.{name}' not in STYLE}
  assert 'generation' in used
  assert without == {'a', 'line', 'tick', 'label', 'stage', 'leaf', 'facts'} & without, without


def test_config_tree_names_every_field(tmp_path):
  make_run(tmp_path)
  text = report(tmp_path).text()
  for field in dataclasses.fields(Stage):
    assert field.name in text


def test_recipe(tmp_path):
  """A box a stage with its result, an arrow for each start, whatever the stage is called."""
  stages = [Stage(name, Data((Weighted(StandardLibrary()),)), steps=60, seq_len=32, batch_size=4,
                  learning_rate=Cosine(1e-3), init=init)
            for name, init in (('pretrain', Scratch()), ('<b>anneal', Resume('pretrain')),
                               ('average', Average('<b>anneal', last=2)), ('branch', Params('pretrain')))]
  make_run(tmp_path, finished=False)
  write_config(tmp_path, dataclasses.replace(
    experiment(('pretrain', 60)), stages=tuple(stages), checkpoints=Checkpoints(20, 3)))
  writer = MetricsWriter(tmp_path)
  writer.write('final', 'pretrain', 60, loss=2.5, bits_per_byte=1.25)
  writer.write('display', 'pretrain', 60, evaluation='held_out', headline='1.250 bits per byte', blocks=[])
  writer.write('final', 'average', 0, loss=0.4, accuracy=0.9, reward_margin=1.5)
  writer.write('display', 'average', 0, evaluation='held_out', headline='90% right, margin 1.50', blocks=[])
  writer.write('train', 'branch', 7, loss=3.0)
  writer.write('final', '<b>anneal', 60, loss=2.0, parses=0.5)
  writer.write('display', '<b>anneal', 60, evaluation='held_out', headline='2.000 bits per byte', blocks=[])
  writer.write('display', '<b>anneal', 60, evaluation='answers', headline='0% → 50% in form', blocks=[])
  page = Page(write_report(tmp_path).read_text())
  assert [box['class'] for box in page.all('rect', rx='9')] == ['done', 'done', 'done', 'running']
  assert len(page.all('path', class_='arrow')) == 3
  text = page.text('text')
  for words in ('<b>anneal', '1.250 bits per byte', '90% right, margin 1.50', 'resume', 'average 2', '7 of 60',
                '0% → 50% in form'):
    assert words in text, words


def test_heat_maps_are_drawn_from_the_records(tmp_path):
  """Whoever made them: the report knows no evaluation."""
  heat_map = HeatMap('Needles', 'How they are <found>.', 'long', ('0 %', '100 %'), (
    ('256 tokens, before', (1.0, 1.0)), ('256 tokens, after', (1.0, 0.5)),
    ('1,024 tokens, before', (0.0, 0.125)), ('1,024 tokens, after', (0.75, 1.0))))
  words = Table('Words', '', 'long', ('word', 'count'), (('<b>', '3'),))
  with MetricsWriter(tmp_path) as writer:
    writer.write('display', 'long', 40, evaluation='needles', headline=None,
                 blocks=[to_record(heat_map), to_record(words), {'kind': 'OfAnotherVersion'}])
  source = render(tmp_path)
  rows = re.findall(r'<tr><td>([\d,]+ tokens, \w+)</td>(.*?)</tr>', source)
  cells = {name: re.findall(r'>(\d+)</td>', row) for name, row in rows}
  assert cells == {'256 tokens, before': ['100', '100'], '256 tokens, after': ['100', '50'],
                   '1,024 tokens, before': ['0', '12'], '1,024 tokens, after': ['75', '100']}
  assert '<h2>Needles</h2>' in source
  assert 'How they are &lt;found&gt;.' in source
  assert '<h2>Words</h2>' in source and '<td>&lt;b&gt;</td>' in source


def test_blocks_survive_the_file():
  block = HeatMap('a', 'b', 'c', ('0 %',), (('row', (0.5,)),))
  assert from_record(json.loads(json.dumps(to_record(block)))) == block
