"""Norms of queries and keys against transformers' Qwen3, Gemma 3 and OLMo 2; with a cache, over devices, with
adapters."""
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import torch
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.qwen3 import modeling_qwen3

from launch.experiment_file import load_run
from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import GLU, Attention, Block, LayerNorm, RMSNorm, RoPE, ZeroCenteredRMSNorm
from llm_jax.config.model.attention import FullWidthNorm, PerHeadNorm
from llm_jax.config.run import Mesh
from llm_jax.hf.configs import config_to_hf
from llm_jax.hf.layouts import to_ours, to_theirs
from llm_jax.hf.parts import ATTENTION
from llm_jax.hf.uptrain import group_heads
from llm_jax.modules import attention
from llm_jax.modules.cache import init_cache
from llm_jax.modules.execution import Execution
from llm_jax.modules.layer_inputs import LayerInputs
from llm_jax.modules.positions import rotation
from llm_jax.modules.transformer import Transformer
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings
from tests.modules.decoders import VOCAB, D, decoder, make_params

B, T, H, G, K = 2, 11, 4, 2, 6
EPS, WINDOW = 1e-3, 4
SIZES = dict(hidden_size=D, num_attention_heads=H, num_key_value_heads=G, head_dim=K, rms_norm_eps=EPS,
             num_hidden_layers=1, attn_implementation='eager')
POSITIONS = np.tile(np.arange(T), (B, 1))
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (B, T))
QK_NORMS = {'per head': PerHeadNorm(RMSNorm(EPS)), 'full width': FullWidthNorm(RMSNorm(EPS))}

# Their configuration, attention and rotary angles; and ours.
PAIRS = {
  'qwen3': (modeling_qwen3.Qwen3Config(**SIZES), modeling_qwen3.Qwen3Attention, modeling_qwen3.Qwen3RotaryEmbedding,
            Attention(H, G, K, qk_norm=QK_NORMS['per head'])),
  'gemma3': (modeling_gemma3.Gemma3TextConfig(**SIZES, query_pre_attn_scalar=9, sliding_window=WINDOW,
                                              layer_types=['sliding_attention']),
             modeling_gemma3.Gemma3Attention, None,
             Attention(H, G, K, window=WINDOW, scale=1 / 3, qk_norm=PerHeadNorm(ZeroCenteredRMSNorm(EPS)))),
  'olmo2': (modeling_olmo2.Olmo2Config(**SIZES), modeling_olmo2.Olmo2Attention, modeling_olmo2.Olmo2RotaryEmbedding,
            Attention(H, G, K, qk_norm=QK_NORMS['full width'])),
}
BOTH = pytest.mark.parametrize('qk_norm', QK_NORMS.values(), ids=QK_NORMS)


# ------------------------------------------------------------------------------------------------ transformers
def rows(config):
  """(our path in the attention, their name in the attention, layout, our shape) of every parameter."""
  shapes = {path: leaf.shape for path, leaf in paths.leaves(jax.eval_shape(
    module(config, 'xla').init, jax.random.key(0), jnp.zeros((1, 1, D)), inputs_of(np.zeros((1, 1), np.int32)), None,
    None)['params'])}
  found = []
  for ours, theirs, layout in ATTENTION:
    path = ours.removeprefix('attention/')
    if path in shapes:
      found.append((path, theirs.removeprefix('model.layers.{N}.self_attn.'), layout, shapes[path]))
  assert {path for path, *_ in found} == shapes.keys()
  return found


def module(config, kernels):
  return attention.Attention(config, Execution(kernels=kernels), 0.02, 0.02, 0.0)


def inputs_of(positions, slots=None):
  return LayerInputs((rotation(RoPE(), K, positions),), positions, None, slots, ((None, K),))


@functools.cache
def theirs(name):
  """Their parameters, input, output, the output's gradient, and the gradients of the parameters and the input."""
  config, attention_class, rotary_class, _ = PAIRS[name]
  torch.manual_seed(0)
  reference = attention_class(config, 0)
  rotary = rotary_class(config) if rotary_class else modeling_qwen3.Qwen3RotaryEmbedding(PAIRS['qwen3'][0])
  with torch.no_grad():
    for parameter in reference.parameters():
      parameter.normal_(std=0.4)
  x = torch.randn(B, T, D, requires_grad=True)
  times = np.arange(T)
  hidden = times[:, None] < times
  if name == 'gemma3':
    hidden |= times[:, None] - times >= WINDOW
  mask = torch.where(torch.tensor(hidden), -torch.inf, 0.0)[None, None]
  y = reference(x, rotary(x, torch.tensor(POSITIONS)), mask)[0]
  dy = torch.randn(y.shape)
  y.backward(dy)
  arrays = {key: value.detach().numpy() for key, value in reference.named_parameters()}
  gradients = {key: value.grad.numpy() for key, value in reference.named_parameters()}
  return arrays, x.detach().numpy(), y.detach().numpy(), dy.numpy(), gradients, x.grad.numpy()


@pytest.mark.parametrize('name, kernels', [
  ('qwen3', 'cpu'), ('gemma3', 'xla'), ('olmo2', 'cpu'), *(pytest.param(*each, marks=pytest.mark.slow) for each in (
    ('qwen3', 'xla'), ('gemma3', 'cpu'), ('olmo2', 'xla')))])
def test_attention_and_its_gradients_are_those_of_transformers(name, kernels):
  config = PAIRS[name][-1]
  arrays, x, want, dy, want_gradients, want_dx = theirs(name)
  params = {}
  for path, key, layout, shape in rows(config):
    whole = (slice(None),) * len(shape)
    params[path] = np.array(to_ours(arrays[key], layout, [shape], 0, 0, whole))
  nest = lambda flat: {name: {key.split('/')[1]: flat[key] for key in flat if key.startswith(f'{name}/')}
                       for name in {key.split('/')[0] for key in flat}}
  layer = module(config, kernels)
  run = lambda params, x: layer.apply({'params': nest(params)}, x, inputs_of(POSITIONS), None, None)[0]
  y, pull = jax.vjp(jax.jit(run), params, x)
  np.testing.assert_allclose(y, want, rtol=0, atol=2e-5)
  gradients, dx = pull(jnp.asarray(dy))
  np.testing.assert_allclose(dx, want_dx, rtol=0, atol=1e-4)
  for path, key, layout, _ in rows(config):
    np.testing.assert_allclose(to_theirs([np.asarray(gradients[path])], layout, 0), want_gradients[key], rtol=1e-4,
                               atol=1e-4, err_msg=path)


def test_the_two_kinds_differ():
  """Else a test of one would be a test of the other."""
  outputs = []
  for qk_norm in QK_NORMS.values():
    model = decoder_with(qk_norm)
    outputs.append(np.array(jax.jit(Transformer(model).apply)({'params': make_params(model)}, TOKENS)))
  assert np.abs(outputs[0] - outputs[1]).max() > 1e-2


# ------------------------------------------------------------------------------------------------ the whole decoder
def decoder_with(qk_norm, **changes):
  """Two layers; one of them sees a window, so that its cache rolls."""
  block = Block(Attention(H, G, K, qk_norm=qk_norm), GLU(48), RMSNorm())
  local = dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=WINDOW))
  return decoder((block, local), **changes)


@pytest.mark.parametrize('qk_norm', [
  QK_NORMS['per head'], pytest.param(QK_NORMS['full width'], marks=pytest.mark.slow)], ids=QK_NORMS)
def test_decoding_from_the_cache_is_the_full_forward_pass(qk_norm):
  config = decoder_with(qk_norm)
  model, params = Transformer(config, Execution(kernels='xla')), make_params(config)
  full = jax.jit(model.apply)({'params': params}, TOKENS)
  step = jax.jit(lambda tokens, cache: model.apply({'params': params}, tokens, cache=cache))
  cache, pieces = init_cache(config, B, T), []
  for start, stop in ((0, 5), (5, 6), (6, 7), (7, 10), (10, 11)):
    logits, cache = step(TOKENS[:, start:stop], cache)
    pieces.append(logits)
  np.testing.assert_allclose(np.concatenate(pieces, 1), full, rtol=0, atol=1e-5)


MESHES = {'tensor 2': Mesh(data=1, tensor=2, fsdp=4), 'tensor 4': Mesh(data=2, tensor=4)}
SPLITS = list(itertools.product(QK_NORMS, ('cpu', 'xla'), MESHES))
QUICK = ('per head', 'cpu', 'tensor 4'), ('full width', 'xla', 'tensor 2')


@pytest.mark.parametrize('kind, kernels, mesh', [
  pytest.param(*each, marks=[] if each in QUICK else [pytest.mark.slow]) for each in SPLITS])
def test_heads_split_over_devices_change_nothing(kind, kernels, mesh):
  """With tensor=4 the four query heads are split and the two key heads are not."""
  config = dataclasses.replace(decoder_with(QK_NORMS[kind]), vocab_size=64)  # which the mesh divides
  model, params = Transformer(config, Execution(kernels=kernels, unroll=False)), make_params(config)
  tokens = np.tile(TOKENS, (2, 1))
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(len(tokens), T, 64)), jnp.float32)
  loss = jax.jit(jax.value_and_grad(lambda params: (model.apply({'params': params}, tokens) * weights).sum()))
  want, want_gradient = loss(params)
  mesh = make_mesh(MESHES[mesh])
  with jax.set_mesh(mesh):
    got, gradient = loss(jax.device_put(params, param_shardings(params, mesh)))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for (path, leaf), (_, other) in zip(paths.leaves(want_gradient), paths.leaves(gradient), strict=True):
    np.testing.assert_allclose(other, leaf, rtol=1e-3, atol=1e-3 * np.abs(leaf).max(), err_msg=path)


@BOTH
def test_adapters_and_int8_weights_apply(qk_norm):
  """qwix adds its pairs to every linear layer and to nothing else: the norms are no products."""
  config = decoder_with(qk_norm, num_layers=2)
  model, params = Transformer(config, Execution(kernels='xla', unroll=False)), make_params(config)
  adapted = qwix.apply_lora_to_model(model, qwix.LoraProvider(module_path='blocks/.*', rank=3, alpha=6.0))
  with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
    made = jax.eval_shape(adapted.init, jax.random.key(0), np.tile(TOKENS, (2, 1)))['params']
  with_pair = {path.rsplit('/', 1)[0] for path, _ in paths.leaves(made) if 'lora' in path}
  linears = {path.removesuffix('/w') for path, _ in paths.leaves(params)
             if path.startswith('blocks') and path.endswith('/w')}
  assert with_pair == linears and len(linears) == 2 * 7


def test_it_is_chosen_on_the_command_line():
  attention = 'model.pattern[0].attention.qk_norm'
  run = load_run('experiments/quickstart.py', ((f'{attention}.kind', 'FullWidthNorm'),
                                               (f'{attention}.norm.kind', 'LayerNorm')))
  assert run.model.pattern[0].attention.qk_norm == FullWidthNorm(LayerNorm())


# ------------------------------------------------------------------------------------------------ what cannot have it
@BOTH
def test_families_without_it_refuse_to_export(qk_norm):
  model = presets.gpt2(32, 2, 4, vocab_size=64, max_length=16)
  block = model.pattern[0]
  changed = dataclasses.replace(block, attention=dataclasses.replace(block.attention, qk_norm=qk_norm))
  with pytest.raises(ConfigError, match=r'^model\.pattern\[0\]\.attention\.qk_norm = .*cannot be exported'):
    config_to_hf(dataclasses.replace(model, pattern=(changed,)))


def test_pooling_key_heads_needs_a_scale_per_head():
  config = decoder_with(QK_NORMS['per head'])
  grouped, params = group_heads(config, make_params(config), 1)
  jax.eval_shape(Transformer(grouped).apply, {'params': params}, TOKENS)
  config = decoder_with(QK_NORMS['full width'])
  with pytest.raises(ConfigError, match=r'key_norm/scale = .* num_kv_heads=1 it must be'):
    group_heads(config, make_params(config), 1)
