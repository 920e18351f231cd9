"""Charts: right smoothing, few points, readable axes."""
import math
import re

import pytest

from llm_jax.report import charts
from llm_jax.tracking.numbers import tick


def test_smoothing():
  line = [3.0 + 2 * i for i in range(50)]
  assert charts.smooth(line, 5)[:45] == pytest.approx(line[:45])  # unbiased on a slope, from the first point on
  assert charts.smooth([1.0, math.nan, 3.0, math.inf, 5.0], 1) == pytest.approx([1, 2, 3, 4, 5])
  assert math.isnan(charts.smooth([math.nan], 3)[0]) and charts.smooth([], 3) == []


def test_thinning_keeps_the_ends_and_the_spikes():
  xs = list(range(100_000))
  ys = [0.0] * 100_000
  ys[54_321], ys[99_999] = 9.0, 1.0
  thin_xs, thin_ys = charts.thin(xs, ys)
  assert len(thin_xs) <= charts.MAX_POINTS + 1 and thin_xs == sorted(thin_xs)
  assert (thin_xs[-1], thin_ys[-1]) == (99_999, 1.0)
  assert charts.thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


@pytest.mark.parametrize('log_y', [False, True])
@pytest.mark.parametrize('values', [(1.0, 1.0), (0.999, 1.0), (1e-9, 1e9), (3e-4, 0.0), (2.0, 3.0), (1.5, 11.0)])
def test_axes_always_have_a_few_ticks_inside(values, log_y):
  source = charts.line_chart('T', [charts.Series('s', [1, 2], list(values))], y_label='y', log_y=log_y)
  ticks = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="end"', source)]
  assert 2 <= len(ticks) <= 12 and all(charts.TOP <= y - 4 <= charts.HEIGHT for y in ticks)
  assert all(a - b >= 10 for a, b in zip(ticks, ticks[1:], strict=False))


def test_numbers_of_ticks():
  assert [tick(x) for x in (0, 0.5, 20, 1500, 3e6, 3e-4, 1.5e-5, -0.25)] == [
      '0', '0.5', '20', '1.5k', '3M', '3e-4', '1.5e-5', '-0.25']
