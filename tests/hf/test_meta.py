"""Llama in Meta's layout, against a rotation of pairs written out here, and against `transformers` by way of ours."""
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from llm_jax import hf
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model import architecture as arch
from llm_jax.hf.meta import load_meta, save_meta
from llm_jax.modules.transformer import Transformer
from tests.hf import hf_models

D, H, G, K, V, F, N = 32, 4, 2, 8, hf_models.VOCAB, 96, 2
PARAMS = dict(dim=D, n_layers=N, n_heads=H, n_kv_heads=G, vocab_size=-1, multiple_of=32, ffn_dim_multiplier=1.1,
              norm_eps=1e-5, rope_theta=5e5)


def make(folder, params=PARAMS, seed=0):
  """A random model in one file."""
  random = np.random.default_rng(seed)
  draw = lambda *shape: np.float32(0.15 * random.standard_normal(shape) + (len(shape) == 1))
  state = {'tok_embeddings.weight': draw(V, D), 'norm.weight': draw(D), 'output.weight': draw(V, D),
           'rope.freqs': draw(K // 2)}
  for n in range(N):
    state |= {f'layers.{n}.{name}.weight': tensor for name, tensor in (
      ('attention.wq', draw(H * K, D)), ('attention.wk', draw(G * K, D)), ('attention.wv', draw(G * K, D)),
      ('attention.wo', draw(D, H * K)), ('feed_forward.w1', draw(F, D)), ('feed_forward.w2', draw(D, F)),
      ('feed_forward.w3', draw(F, D)), ('attention_norm', draw(D)), ('ffn_norm', draw(D)))}
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(state, folder / 'consolidated.safetensors')
  (folder / 'params.json').write_text(json.dumps(params))
  return state


def forward(state, tokens):
  """As Meta's model.py computes it: numbers 2i and 2i + 1 of a head are a complex number that is turned."""
  state = {name: torch.tensor(tensor) for name, tensor in state.items()}
  norm = lambda x, w: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * w
  x = state['tok_embeddings.weight'][tokens]
  T = tokens.shape[1]
  angles = torch.outer(torch.arange(T).float(), 1.0 / 5e5 ** (torch.arange(0, K, 2).float() / K))
  turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]
  rotate = lambda q: torch.view_as_real(torch.view_as_complex(q.reshape(*q.shape[:-1], -1, 2)) * turn).flatten(3)
  for n in range(N):
    w = {name.removeprefix(f'layers.{n}.').removesuffix('.weight'): t for name, t in state.items()}
    h = norm(x, w['attention_norm'])
    q, k, v = ((h @ w[f'attention.{name}'].T).unflatten(-1, (-1, K)) for name in ('wq', 'wk', 'wv'))
    q, k, v = rotate(q), rotate(k).repeat_interleave(H // G, 2), v.repeat_interleave(H // G, 2)
    scores = torch.einsum('bthk,bshk->bhts', q, k) / K ** 0.5
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    x = x + torch.einsum('bhts,bshk->bthk', scores, v).flatten(2) @ w['attention.wo'].T
    h = norm(x, w['ffn_norm'])
    gated = torch.nn.functional.silu(h @ w['feed_forward.w1'].T) * (h @ w['feed_forward.w3'].T)
    x = x + gated @ w['feed_forward.w2'].T
  return (norm(x, state['norm.weight']) @ state['output.weight'].T).numpy()


def test_logits(tmp_path):
  state = make(tmp_path / 'meta')
  config, params = load_meta(tmp_path / 'meta')
  assert config == presets.llama(D, N, H, G, d_ff=F, vocab_size=V, rope_theta=5e5)
  tokens = hf_models.batch().tokens
  got = jax.jit(Transformer(config).apply)({'params': params}, tokens)
  np.testing.assert_allclose(got, forward(state, torch.tensor(np.asarray(tokens)).long()), rtol=0, atol=1e-5)


def test_round_trip_through_hugging_face(tmp_path):
  state = make(tmp_path / 'meta')
  hf.save_pretrained(tmp_path / 'hf', *load_meta(tmp_path / 'meta'))
  save_meta(tmp_path / 'again', *hf.load_pretrained(tmp_path / 'hf'), dtype='float32')
  again = hf_models.tensors(tmp_path / 'again')
  assert again.keys() == state.keys() - {'rope.freqs'}
  assert all(again[name].tobytes() == state[name].tobytes() for name in again)
  assert load_meta(tmp_path / 'again')[0] == load_meta(tmp_path / 'meta')[0]


def test_several_files(tmp_path):
  """Each tensor whole in one of them."""
  state = make(tmp_path)
  _, want = load_meta(tmp_path)
  (tmp_path / 'consolidated.safetensors').unlink()
  for i, part in enumerate(('attention', 'e')):
    names = [name for name in state if ('attention' in name) == (part == 'attention')]
    safetensors.numpy.save_file({name: state[name] for name in names}, tmp_path / f'consolidated.{i:02d}.safetensors')
  jax.tree.map(np.testing.assert_array_equal, load_meta(tmp_path)[1], want)


@pytest.mark.parametrize('given, width', (  # of the published models
  (dict(dim=4096, n_heads=32, multiple_of=256), 11_008),
  (dict(dim=8192, n_heads=64, multiple_of=4096, ffn_dim_multiplier=1.3), 28_672),
  (dict(dim=4096, n_heads=32, multiple_of=1024, ffn_dim_multiplier=1.3), 14_336),
  (dict(dim=4096, n_heads=32, hidden_dim=14_336, head_dim=128, sliding_window=4096), 14_336),  # Mistral's
))
def test_feed_forward_widths(given, width, tmp_path):
  (tmp_path / 'params.json').write_text(json.dumps(given | dict(n_layers=1, vocab_size=10)))
  safetensors.numpy.save_file({'x': np.zeros(1, np.float32)}, tmp_path / 'consolidated.safetensors')
  with pytest.raises(ConfigError, match=rf'missing layers\.0\.feed_forward\.w1\.weight \[{width}, {given["dim"]}\]'):
    load_meta(tmp_path)


@pytest.mark.parametrize('scaling', (None, arch.Llama3Scaling(), arch.Llama3Scaling(32.0)))
@pytest.mark.parametrize('d_ff', (None, 100, 14_336))
def test_params_json_round_trip(d_ff, scaling, tmp_path):
  config = presets.llama(64, 1, 4, 2, d_ff=d_ff, vocab_size=8, scaling=scaling)
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(
    lambda: Transformer(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']))
  save_meta(tmp_path / 'out', config, params)
  assert hf.config_to_hf(load_meta(tmp_path / 'out')[0]) == hf.config_to_hf(config)


def test_what_it_cannot_say(tmp_path):
  make(tmp_path / 'meta')
  for change, field in ((dict(moe=dict(num_experts=8)), 'moe'), (dict(n_layers=-1), 'n_layers')):
    (tmp_path / 'meta' / 'params.json').write_text(json.dumps(PARAMS | change))
    with pytest.raises(ConfigError, match=f'^{field} = '):
      load_meta(tmp_path / 'meta')
  with pytest.raises(ConfigError, match=r'^model\.pattern\[0\]\.feed_forward = '):
    save_meta(tmp_path / 'out', presets.gpt2(32, 2, 4), {})
  with pytest.raises(ConfigError, match=r'attention\.head_dim = '):
    save_meta(tmp_path / 'out', presets.llama(32, 2, 4, head_dim=16), {})
  assert not (tmp_path / 'out').exists()


def test_pickles_are_refused(tmp_path):
  (tmp_path / 'params.json').write_text(json.dumps(PARAMS))
  (tmp_path / 'consolidated.00.pth').write_bytes(b'cos\nsystem\n(S"exit 1"\ntR.')
  with pytest.raises(ConfigError, match=r'consolidated\.00\.pth.*convert them to safetensors'):
    load_meta(tmp_path)
