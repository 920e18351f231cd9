"""Scores of heads beside those of the keys (sinks): every kernel against PyTorch, over devices, and what they do."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.gpt_oss import modeling_gpt_oss

from llm_jax.config.run import Mesh
from llm_jax.modules.kernels import attention, blocked_attention, context_attention, flash_attention
from llm_jax.modules.kernels.attention import causal_attention
from llm_jax.modules.kernels.cached_attention import cached_attention
from llm_jax.sharding.context_split import context_split
from llm_jax.sharding.mesh import make_mesh
from tests.modules.references import close, normal, packed, torch_attention

T, H, G, K, V = 21, 6, 2, 6, 10
FORMS = {'plain': {}, 'window': {'window': 5}, 'all': {'window': 6, 'soft_cap': 1.5, 'scale': 0.6}}
KERNELS = ('cpu', 'xla', 'by blocks of keys', 'tpu')
SINKS = np.array([-1.0, 0.5, 3.0, 0.0, 1.5, -4.0], np.float32)


def inputs(T=T, B=2, V=V):
  return normal(0, B, T, H, K), normal(1, B, T, G, K), normal(2, B, T, G, V), normal(3, B, T, H, V)


@pytest.fixture
def attend(monkeypatch):
  """A function from the name of a kernel to `causal_attention` by it, in blocks that tests can afford."""
  monkeypatch.setattr(blocked_attention, 'BLOCK', 8)
  monkeypatch.setattr(context_attention, 'BLOCK', 4)
  monkeypatch.setattr(flash_attention, 'BLOCKS', (128,))

  def of(kernels):
    if kernels == 'by blocks of keys':
      monkeypatch.setattr(attention, 'MOST_SCORES', 0)
      monkeypatch.setattr(attention, 'BLOCK', 4)
      kernels = 'xla'
    return functools.partial(causal_attention, kernels=kernels)
  return of


def value_and_gradients(attend, segments, form):
  """A compiled function of (q, k, v, dy, sinks): the result, and the gradients in q, k, v and the sinks."""
  @jax.jit
  def run(q, k, v, dy, sinks):
    y, pull = jax.vjp(lambda q, k, v, sinks: attend(q, k, v, segments, sinks_H=sinks, **form), q, k, v, sinks)
    return y, *pull(dy)
  return run


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kernels', KERNELS)
def test_attention_and_all_gradients_match_torch(attend, kernels, form):
  segments, form = packed(2, T), FORMS[form]
  *arrays, dy = inputs()
  got = value_and_gradients(attend(kernels), segments, form)(*arrays, dy, SINKS)
  wants = torch_attention(*arrays, segments, dy, sinks=SINKS, **form)
  for mine, want in zip(got, wants, strict=True):
    close(mine, want, 2e-6)


def test_it_is_the_attention_of_gpt_oss(attend):
  """transformers' own function, whose sinks are one more column of scores."""
  q, k, v, _ = inputs(V=K)
  module = torch.nn.Module()
  module.sinks, module.num_key_value_groups = torch.tensor(SINKS), H // G
  hidden = torch.triu(torch.full((T, T), -torch.inf), 1)[None, None]
  heads_first = (torch.tensor(x).transpose(1, 2) for x in (q, k, v))
  want, _ = modeling_gpt_oss.eager_attention_forward(module, *heads_first, hidden, K ** -0.5)
  for kernels in KERNELS:
    close(attend(kernels)(q, k, v, sinks_H=SINKS), want, 2e-6)


@pytest.mark.parametrize('kernels', KERNELS)
def test_what_a_sink_does(attend, kernels):
  """A high one takes all weight from the keys of its head alone; a low one changes nothing."""
  q, k, v, _ = inputs()
  run = attend(kernels)
  without = np.asarray(run(q, k, v))
  one_high = np.where(np.arange(H) == 3, 200.0, -1e9).astype(np.float32)
  got = np.asarray(run(q, k, v, sinks_H=one_high))
  assert np.abs(got[:, :, 3]).max() < 1e-30
  np.testing.assert_allclose(np.delete(got, 3, 2), np.delete(without, 3, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize('kernels', KERNELS)
def test_the_dtypes_stay(attend, kernels):
  """Queries in bfloat16, sinks in float32, as a run in bfloat16 has them."""
  *arrays, dy = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
  got = value_and_gradients(attend(kernels), None, {'window': 5})(*arrays, dy, SINKS)
  assert [x.dtype.name for x in got] == ['bfloat16'] * 4 + ['float32']
  wide = [np.asarray(x, np.float32) for x in (*arrays, dy)]
  for mine, want in zip(got, torch_attention(*wide[:3], None, wide[3], window=5, sinks=SINKS), strict=True):
    close(np.asarray(mine, np.float32), want, 4e-2)


@pytest.mark.parametrize('mesh', (Mesh(data=2, fsdp=2, tensor=2), Mesh(data=1, tensor=6)), ids=('tensor 2', 'tensor 6'))
@pytest.mark.parametrize('kernels', KERNELS)
def test_rows_and_heads_over_devices_change_nothing(attend, kernels, mesh):
  """The gradient of a sink is a sum over rows of all devices. With tensor=6 query heads are split and key heads not."""
  segments, form = packed(4, T), {'window': 6}
  *arrays, dy = inputs(B=4)
  wants = torch_attention(*arrays, segments, dy, sinks=SINKS, **form)
  devices = jax.devices()[:6] if mesh.tensor == 6 else None
  with jax.set_mesh(make_mesh(mesh, devices)):
    got = value_and_gradients(attend(kernels), segments, form)(*arrays, dy, SINKS)
  for mine, want in zip(got, wants, strict=True):
    close(mine, want, 2e-6)


@pytest.mark.parametrize('method', ('gather', 'ring'))
def test_rows_that_are_split_in_time(method):
  """Each query counts its sink once, however many devices its keys come from."""
  T, segments, form = 32, packed(2, 32), {'window': 9}
  *arrays, dy = inputs(T)
  wants = torch_attention(*arrays, segments, dy, sinks=SINKS, **form)
  with jax.set_mesh(make_mesh(Mesh(data=1, context=4, tensor=2))):
    split = context_split(T, method)
    assert split.devices == 4

    def attend(q, k, v, segments, **rest):
      placed = (split.arrange(x) for x in (q, k, v, segments))
      return split.restore(causal_attention(*placed, split=split, **rest))

    got = value_and_gradients(attend, segments, form)(*arrays, dy, SINKS)
  for mine, want in zip(got, wants, strict=True):
    close(mine, want, 2e-6)


def test_dropped_weights_keep_the_mean():
  q, k, v, _ = inputs(12, V=K)
  run = jax.jit(lambda rng, rate: causal_attention(q, k, v, sinks_H=SINKS, dropout_rate=rate, dropout_rng=rng),
                static_argnums=1)
  want = torch_attention(q, k, v, sinks=SINKS)
  close(run(jax.random.key(0), 1e-9), want, 2e-6)
  mean = np.asarray(jax.lax.map(lambda rng: run(rng, 0.5), jax.random.split(jax.random.key(1), 1000))).mean(0)
  assert np.abs(mean - want.numpy()).max() < 0.4


@pytest.mark.parametrize('window', (None, 5))
def test_entries_of_a_cache(window):
  """New queries after some that were there, in a block of queries and beyond it."""
  q, k, v, _ = inputs()
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))
  want = torch_attention(q, k, v, window=window, sinks=SINKS)
  k, v = (x.swapaxes(1, 2) for x in (k, v))
  for start in (0, 13, 20):
    got = cached_attention(q[:, start:], k, v, positions[:, start:], positions, window=window, sinks_H=SINKS)
    close(got, want[:, start:], 2e-6)
