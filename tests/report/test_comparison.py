"""Runs side by side: every change, every number, and nobody's markup."""
import json

import pytest

from launch import report as launch_report
from llm_jax.report.comparison import changes, names, write_comparison
from llm_jax.tracking.metrics import MetricsWriter
from tests.report.html_page import HOSTILE, Page

CONFIG = {'seed': 0, 'model': {'d_model': 8}, 'stages': [{'name': 'a', 'steps': 4, 'batch_size': 2, 'seq_len': 8}]}


def make(folder, config=CONFIG, loss=2.0, steps=4, stage='a'):
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(config))
  writer = MetricsWriter(folder)
  for step in range(1, steps + 1):
    writer.write('train', stage, step, loss=loss + 1 / step, step_seconds=0.5, tokens_per_second=100.0 * loss)
  writer.write('eval', stage, steps // 2, loss=loss + 0.5)
  writer.write('final', stage, steps, loss=loss, bits_per_byte=loss / 2)
  return folder


def test_what_was_changed_and_what_it_did(tmp_path):
  wider = {**CONFIG, 'model': {'d_model': 16, 'bias': True}}
  runs = [make(tmp_path / 'base'), make(tmp_path / 'wide', wider, loss=1.5)]
  page = Page(write_comparison(runs, tmp_path / 'out.html').read_text())
  cells = [text for tag, text in page.texts if tag == 'td']
  assert cells[:6] == ['model.d_model', '8', '16', 'model.bias', '–', 'True']
  at = cells.index('a: held-out bits per byte')
  assert cells[at:at + 6] == ['a: held-out bits per byte', '1.0000', '0.7500 (-25.0%)', 'a: held-out loss', '2.0000',
                              '1.5000 (-25.0%)']
  assert cells[-3:] == ['a: time in steps', '2 s', '2 s']
  assert len(page.all('polyline')) == 4 and len(page.all('polyline', class_='curve b dots')) == 1
  assert 'may not be the same' not in page.text()
  write_comparison(runs, tmp_path / 'again.html')
  assert (tmp_path / 'again.html').read_bytes() == (tmp_path / 'out.html').read_bytes()


def test_other_held_out_text_is_said(tmp_path):
  other = {**CONFIG, 'stages': [{**CONFIG['stages'][0], 'seq_len': 16}]}
  page = Page(write_comparison([make(tmp_path / 'a'), make(tmp_path / 'b', other)], tmp_path / 'c.html').read_text())
  assert 'the held-out text may not be the same' in page.text('p')


def test_stages_that_only_one_has_and_runs_that_recorded_nothing(tmp_path):
  (tmp_path / 'none').mkdir()
  (tmp_path / 'none' / 'config.json').write_text('{')
  runs = [make(tmp_path / HOSTILE[:20].replace('/', '_')), make(tmp_path / 'b', stage='<b>'), tmp_path / 'none']
  page = Page(write_comparison(runs, tmp_path / 'c.html').read_text())
  assert not page.all('script') and not page.all('b', class_='')
  cells = [text for tag, text in page.texts if tag == 'td']
  at = cells.index('<b>: held-out loss')
  assert cells[at:at + 4] == ['<b>: held-out loss', '–', '2.0000', '–']


def test_names_are_as_short_as_tells_them_apart(tmp_path):
  assert names([tmp_path / 'x' / 'run', tmp_path / 'y' / 'run']) == ['x/run', 'y/run']
  assert names([tmp_path / 'a', tmp_path / 'b']) == ['a', 'b']
  assert names([tmp_path / 'a', tmp_path / 'a'])[1].endswith('(2)')
  assert changes([CONFIG, CONFIG]) == []


def test_the_command(tmp_path, capsys):
  a, b = make(tmp_path / 'a'), make(tmp_path / 'b')
  assert launch_report.main([f'--workdir={a}', f'--workdir={b}']) == 0
  assert capsys.readouterr().out == f'{tmp_path / "comparison.html"}\n' and not (a / 'report.html').exists()
  assert launch_report.main([f'--workdir={a}', f'--workdir={b}', f'--output={tmp_path / "x.html"}']) == 0
  assert (tmp_path / 'x.html').read_bytes() == (tmp_path / 'comparison.html').read_bytes()
  nowhere = tmp_path / 'x' / 'y.html'
  for flags, words in (([f'--workdir={a}', f'--workdir={b}', f'--output={nowhere}'], 'no such folder'),
                       ([f'--workdir={a}', '--output=x.html'], 'only of a comparison'),
                       ([f'--workdir={a}'] * 7, 'at most 6'), ([], '--workdir')):
    with pytest.raises(SystemExit) as stopped:
      launch_report.main(flags)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
