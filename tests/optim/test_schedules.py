"""Learning rates against formulas written out in NumPy, float64."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config.schedules import WSD, Constant, Cosine, LinearToZero
from llm_jax.optim.schedules import make_schedule


def reference(config, steps, step):
  w, n, peak = config.warmup, steps, config.peak
  if step < w:
    return peak * (step + 1) / (w + 1)
  match config:
    case Constant():
      return peak
    case Cosine():
      done = min((step - w) / max(n - w, 1), 1)
      return peak * (config.final + (1 - config.final) * (1 + np.cos(np.pi * done)) / 2)
    case LinearToZero():
      return peak * max(1 - (step - w) / max(n - w, 1), 0)
    case WSD():
      length = min(max(round(config.decay * n), 1), max(n - w, 1))
      done = np.clip((step - max(n - length, w)) / length, 0, 1)
      return peak * (1 - done * (1 - config.final))


@pytest.mark.parametrize('steps', [1, 10, 300])
@pytest.mark.parametrize('warmup', [0, 1, 7, 10])
@pytest.mark.parametrize('make', [
    lambda w: Constant(3e-4, w), lambda w: Cosine(3e-4, w), lambda w: Cosine(3e-4, w, final=0.0),
    lambda w: LinearToZero(3e-4, w), lambda w: WSD(3e-4, w), lambda w: WSD(3e-4, w, decay=1.0, final=0.1),
    lambda w: WSD(3e-4, w, decay=0.0)])
def test_every_step(make, warmup, steps):
  config = make(min(warmup, steps))
  rates = np.array(make_schedule(config, steps)(np.arange(steps + 5)))
  expected = [reference(config, steps, step) for step in range(steps + 5)]
  np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-10)
  assert rates.dtype == np.float32
  assert (rates[:steps] > 0).all()  # no update of a stage is empty


def test_named_steps():
  schedule = make_schedule(WSD(peak=1.0, warmup=3, decay=0.2, final=0.1), steps=10)
  np.testing.assert_allclose(schedule(np.array([0, 2, 3, 8, 9, 10, 99])), [.25, .75, 1, 1, .55, .1, .1], rtol=1e-6)


def test_inside_jit_as_outside():
  schedule = make_schedule(Cosine(1e-3, warmup=5), steps=20)
  for step in (0, 4, 5, 19, 20):
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(step)), schedule(step), rtol=1e-6)


def test_stage_without_steps():
  assert make_schedule(Cosine(1e-3), steps=0)(0) == np.float32(1e-3)
