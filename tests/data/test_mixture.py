"""Weights that change with the step: realised shares against the schedule's own sums."""
import math
import random

import numpy as np
import pytest

from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import ConfigError
from llm_jax.config.ramp import Phase
from llm_jax.config.sources import Text
from llm_jax.data.dataset import open_dataset
from llm_jax.data.mixture import Mixture, ScheduledMixture, make_mixture
from llm_jax.data.mixture_stats import mixture_stats
from llm_jax.data.tokenizers.byte_level import ByteTokenizer


def parts_of(*weights):
  return [Weighted(Text('x'), weight) for weight in weights]


def constant(batch_size):
  return (Phase(0, 0, 0, batch_size, 8, 1),)


def random_parts(rng):
  """Two to six sources, some constant, some with points, of weights that are 0 in places."""
  def weight():
    if rng.random() < 0.3:
      return rng.random() + 0.01
    places = sorted({0.0, 1.0, *(round(rng.random(), 2) for _ in range(rng.randint(0, 3)))})
    return (*((place, rng.random() * (rng.random() < 0.8)) for place in places[:-1]), (1.0, rng.random()))
  return [*parts_of(*(weight() for _ in range(rng.randint(1, 5)))), *parts_of(0.05)]


@pytest.mark.parametrize('seed', range(25))
def test_shares_are_within_one_sample_after_every_step(seed):
  rng = random.Random(seed)
  parts, batch, steps = random_parts(rng), rng.choice((1, 2, 3, 7, 64)), rng.choice((5, 50, 100))
  ramped = steps // 2, steps // 2 * batch  # where the batch grows by three
  phases = (*constant(batch), Phase(*ramped, 0, batch + 3, 8, 1))
  mixture, due, given = ScheduledMixture(parts, steps, phases), np.zeros(len(parts)), np.zeros(len(parts), int)
  for step in range(steps):
    weights = np.array([np.interp(step / steps, *zip(*part.weight, strict=True)) if isinstance(part.weight, tuple)
                        else part.weight for part in parts])
    late = step >= ramped[0]
    size = batch + 3 * late
    first = ramped[1] + (step - ramped[0]) * size if late else step * size
    due += size * weights / weights.sum()
    for sample in range(first, first + size):
      source, count = mixture.locate(sample)
      assert count == given[source]
      given[source] += 1
    assert np.abs(due - given).max() < 1


@pytest.mark.parametrize('weights', [(1e-6, 1e-6, 1.0), (3e12, 1e7, 1e7), (1e-9,) * 5 + (1.0,)])
def test_no_source_is_left_out(weights):
  mixture = Mixture(weights)
  given = mixture.given(1 << 16)
  assert given.min() >= 1 and given.sum() == 1 << 16


def test_any_sample_without_those_before_it():
  parts = random_parts(random.Random(3))
  ahead = ScheduledMixture(parts, 60, constant(4))
  want = [ahead.locate(sample) for sample in range(240)]
  for sample in (239, 0, 17, 100):
    assert ScheduledMixture(parts, 60, constant(4)).locate(sample) == want[sample]


def test_a_source_that_comes_in_late():
  mixture = make_mixture(parts_of(1.0, ((0.5, 0.0), (1.0, 1.0))), steps=100, phases=constant(8))
  sources = np.array([[mixture.locate(step * 8 + place)[0] for place in range(8)] for step in range(100)])
  assert not sources[:50].any() and 0.1 < sources[50:].mean() < 0.4 and sources[90:].mean() > sources[50:60].mean()


def test_constant_weights_stay_as_they_were():
  assert isinstance(make_mixture(parts_of(0.7, 0.3), 10, constant(4)), Mixture)


@pytest.mark.parametrize('weight, message', [
  ((), 'use points'), (((0.0, 1.0, 2.0),), 'use points'), (((0.5, 1.0), (0.2, 1.0)), 'let them rise'),
  (((0.0, 1.0), (1.5, 1.0)), 'let them rise'), (((0.0, -1.0),), 'weights of 0 or more'),
  (((0.0, math.inf),), 'use finite weights')])
def test_refused(weight, message):
  with pytest.raises(ConfigError, match=message):
    Weighted(Text('x'), weight)


def test_no_source_left_is_refused():
  with pytest.raises(ConfigError, match='all weights are 0 at 1.0 of the stage'):
    Data(tuple(parts_of(((0.0, 1.0), (1.0, 0.0)), ((0.0, 1.0), (0.5, 0.0)))))


def test_rows_of_a_scheduled_mixture(tmp_path):
  """The data set follows the schedule, and its fingerprint holds all that decides it."""
  for name, letter in (('a', 'a'), ('b', 'b')):
    (tmp_path / f'{name}.txt').write_text(letter * 400)
  data = Data((Weighted(Text(str(tmp_path / 'a.txt'))), Weighted(Text(str(tmp_path / 'b.txt')), ((0, 0.0), (1, 3.0)))))
  open_it = lambda steps: open_dataset(data, ByteTokenizer(), seq_len=8, seed=0, split='train', steps=steps,
                                       phases=constant(4), cache_dir=tmp_path / 'cache')
  opened = open_it(10)
  shares = [np.mean([ord('b') in opened.row(step * 4 + place)['tokens'] for place in range(4)]) for step in range(10)]
  assert shares[0] == 0 and shares[-1] >= 0.5
  assert abs(4 * sum(shares) - sum(4 * 0.3 * step / (1 + 0.3 * step) for step in range(10))) < 1
  assert opened.fingerprint != open_it(11).fingerprint


@pytest.mark.parametrize('seed', range(6))
def test_what_each_source_has_given_is_what_was_located(seed):
  rng = random.Random(seed)
  parts, phases = random_parts(rng), (*constant(3), Phase(4, 12, 0, 7, 8, 1))
  scheduled = ScheduledMixture(parts, 12, phases)
  fixed = Mixture([rng.random() + 0.01 for _ in range(3)])
  for mixed, count in ((scheduled, len(parts)), (fixed, 3)):
    sources = [mixed.locate(sample)[0] for sample in range(60)]
    for samples in (0, 1, 11, 12, 13, 40, 60):
      assert mixed.given(samples).tolist() == np.bincount(sources[:samples], minlength=count).tolist()


def test_the_table_of_shares_under_a_ramp_and_a_schedule(tmp_path):
  for name, length in (('a', 900), ('b', 300)):
    (tmp_path / f'{name}.txt').write_text(name * length)
  data = Data((Weighted(Text(str(tmp_path / 'a.txt'))), Weighted(Text(str(tmp_path / 'b.txt')), ((0, 0.0), (1, 3.0)))))
  phases = (*constant(4), Phase(6, 24, 24 * 8, 2, 16, 1))
  train = {seq_len: open_dataset(data, ByteTokenizer(), seq_len=seq_len, seed=0, split='train', steps=10, phases=phases,
                                 cache_dir=tmp_path / 'cache') for seq_len in (8, 16)}
  for steps in (3, 6, 9):
    samples = min(24, 4 * steps) + max(0, 2 * (steps - 6))
    seen = [(train[phases[sample >= 24].seq_len], sample) for sample in range(samples)]
    table = {row.source: row for row in mixture_stats(train, phases, samples)}
    assert sum(row.share for row in table.values()) == pytest.approx(1) and list(table) == ['a', 'b']
    for i, (name, row) in enumerate(table.items()):
      mine = [dataset for dataset, sample in seen if dataset.locate(sample)[0] == i]
      assert row.num_rows == len(mine)
      assert row.share == pytest.approx(sum(d.seq_len for d in mine) / sum(d.seq_len for d, _ in seen))
      assert row.epochs == pytest.approx(sum(1 / len(d.parts[name]) for d in mine))
      assert (row.num_bytes, row.num_tokens) == (name_bytes := (810, 270)[i], name_bytes + 2)
