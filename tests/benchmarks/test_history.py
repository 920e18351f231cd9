"""Results of benchmarks: one new file each, read back as ratios over time."""
import json
import math
import pathlib
import re

import pytest

from benchmarks import history, records
from benchmarks.ratios import RATIOS

PATHS = sorted(records.RESULTS.glob('*/*.json'))
README = (records.ROOT / 'benchmarks' / 'README.md').read_text(encoding='utf-8')
MACHINE = {'name': 'cpu2_test', 'cpu': 'a CPU', 'cores': 2}


@pytest.fixture
def results(tmp_path, monkeypatch) -> pathlib.Path:
  """An empty folder of results, in a clone without changes."""
  monkeypatch.setattr(records, 'RESULTS', tmp_path)
  monkeypatch.setattr(records, 'git', lambda *words: 'abc1234' if 'rev-parse' in words else '')
  return tmp_path


def write(spread: float) -> pathlib.Path:
  last = lambda value: {'last_20_steps': {'load_spread': value}}
  return records.write_results('expert_balance', {'machine': MACHINE, 'with_bias': last(spread),
                                                  'without_bias': last(4.0)})


def test_every_measurement_has_a_file_of_its_own(results):
  first, second = write(2.0), write(1.0)
  assert re.fullmatch(r'\d{4}-\d\d-\d\d-abc1234-cpu2_test\.json', first.name)
  assert second.name == first.name.replace('.json', '-2.json')
  assert [record.content['with_bias'] for record in records.read_records(results)] == [
    {'last_20_steps': {'load_spread': 2.0}}, {'last_20_steps': {'load_spread': 1.0}}]


def test_a_file_that_is_named_is_not_overwritten_either(results):
  path = results / 'mine.json'
  records.write_results('decode', {'machine': MACHINE}, path)
  before = path.read_text()
  with pytest.raises(FileExistsError):
    records.write_results('decode', {'machine': MACHINE, 'other': 1}, path)
  assert path.read_text() == before


def test_changes_that_are_not_committed_show_in_the_commit(results, monkeypatch):
  monkeypatch.setattr(records, 'git', lambda *words: 'abc1234' if 'rev-parse' in words else ' M llm_jax/batch.py')
  assert '-abc1234+-' in write(2.0).name


@pytest.mark.parametrize('path', PATHS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_the_kept_results_can_be_read(path):
  content = json.loads(path.read_text(encoding='utf-8'))
  date = content['time'].partition('T')[0]
  assert path.stem.startswith(f"{date}-{content['commit']}-{content['machine']['name']}")
  ratios = RATIOS[path.parent.name](content)
  assert ratios and all(math.isfinite(value) and value > 0 for value in ratios.values())


def test_every_benchmark_has_results_and_is_in_the_readme():
  assert {path.parent.name for path in PATHS} == set(RATIOS)
  assert set(re.findall(r'^\| `(\w+)` \|', README, re.MULTILINE)) == set(RATIOS)
  assert all((records.ROOT / 'benchmarks' / f'{name}.py').exists() for name in RATIOS)


def newest(benchmark: str, machine: str) -> dict[str, float]:
  found = [each for each in history.measured(records.read_records())[benchmark] if each.record.machine == machine]
  return found[-1].ratios


def test_the_readme_has_the_newest_ratios():
  table = README.partition('Newest results')[2].partition('**Why')[0]
  rows = re.findall(r'\| ([\d.]+)x \| ([\d.]+)x \|', table)
  assert len(rows) == 8
  for column, machine in enumerate(('cpu2_amd', 'cpu2_intel')):
    expected = [*newest('train_step', machine).values(), *newest('decode', machine).values()]
    assert [row[column] for row in rows] == [f'{value:.2f}' for value in expected]


def test_the_page_draws_every_ratio_of_every_result(results, capsys):
  for path in PATHS:
    copy = results / path.parent.name / path.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(path.read_text())
  page = results / 'history.html'
  assert history.main([f'--results={results}', f'--output={page}']) == 0
  html = page.read_text(encoding='utf-8')
  ratios = [value for path in PATHS for value in RATIOS[path.parent.name](json.loads(path.read_text())).values()]
  assert html.count('<circle') == len(ratios)
  titles = re.findall(r'<title>[^<]* on [^<]*: ([\d.]+)</title>', html)
  assert sorted(titles) == sorted(f'{value:.3f}' for value in ratios)
  assert '://' not in html and '<script' not in html
  assert re.search(r'train_step +gpt2-tiny: tokens/s +cpu2_amd +2 +1\.733 +1\.871 +1\.733 +1\.871',
                   capsys.readouterr().out)


def test_points_are_drawn_from_left_to_right_by_time_and_higher_is_more(results):
  write(2.0)
  write(1.0)
  [(benchmark, found)] = history.measured(records.read_records(results)).items()
  assert benchmark == 'expert_balance'
  drawn = history.chart('load spread', found, {'cpu2_test': 'a'})
  (x1, y1), (x2, y2) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
  assert float(x1) < float(x2) and float(y1) < float(y2)  # 0.5, then 0.25; y grows downwards


def test_results_of_an_unknown_benchmark_are_an_error(results):
  records.write_results('other', {'machine': MACHINE})
  with pytest.raises(KeyError, match='other'):
    history.measured(records.read_records(results))
