"""Adapters and quantisation of google/qwix apply to our decoder from outside: no module has a line for them."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from llm_jax import paths
from llm_jax.config import presets
from llm_jax.config.run import Mesh
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.sharding.mesh import make_mesh

CONFIG = presets.llama(32, 2, 4, num_kv_heads=2, d_ff=64, vocab_size=64)
LINEARS = {f'blocks/block_0/attention/{name}' for name in ('query', 'key', 'value', 'out')}
LINEARS |= {f'blocks/block_0/feed_forward/{name}' for name in ('gate', 'up', 'down')}
RANK = 3


class Base(NamedTuple):
  """A model, its parameters, tokens and their logits."""
  model: Transformer
  params: dict
  tokens: jax.Array
  logits: jax.Array


@pytest.fixture(scope='module', params=('float32', pytest.param('bfloat16', marks=pytest.mark.slow)))
def base(request) -> Base:
  """One in each compute dtype."""
  model = Transformer(CONFIG, Execution(dtype=request.param, kernels='xla', unroll=False))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 16)), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
  logits = jax.jit(model.apply)({'params': params}, tokens)
  return Base(model, params, tokens, logits)


def test_lora(base):
  """Every linear layer of the blocks gets its pair of adapters, and they alone carry the gradient's new leaves."""
  model, params, tokens, want = base
  provider = qwix.LoraProvider(module_path='blocks/.*', rank=RANK, alpha=2.0 * RANK)
  adapted = qwix.apply_lora_to_model(model, provider)
  with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
    made = jax.jit(adapted.init)(jax.random.key(0), tokens)['params']
    new = {path: leaf.shape for path, leaf in paths.leaves(made) if 'lora' in path}
    assert {path.rsplit('/', 1)[0] for path in new} == LINEARS
    assert {path.rsplit('/', 1)[1] for path in new} == {'w_lora_a', 'w_lora_b'}
    assert all(RANK in shape and shape[0] == CONFIG.num_layers for shape in new.values())
    assert {path for path, _ in paths.leaves(made)} - new.keys() == {path for path, _ in paths.leaves(params)}

    leaves = dict(paths.leaves(params))
    merged = paths.map_named(lambda path, leaf: leaves.get(path, leaf), made)
    apply = jax.jit(lambda p: adapted.apply({'params': p}, tokens))
    # One half of each pair starts at zero: no change yet.
    exact = model.execution.dtype == 'float32'
    np.testing.assert_allclose(apply(merged), want, rtol=0, atol=1e-5 if exact else 1e-2)
    moved = paths.map_named(lambda path, leaf: leaf + 0.1 if 'lora' in path else leaf, merged)
    assert np.abs(apply(moved) - want).max() > 1e-3


def test_int8_weights(base):
  """Post-training quantisation: int8 weights in every linear layer, logits close to the float ones.

  The blocks are quantised one by one: qwix states the axes of a scanned weight without the leading one.
  """
  model, params, tokens, want = base
  rules = [qwix.QuantizationRule(module_path='blocks/.*', weight_qtype='int8')]
  quantized = qwix.quantize_model(model, qwix.PtqProvider(rules))
  with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
    blocks = jax.eval_shape(quantized.init, jax.random.key(0), tokens)['params']['blocks']
    block = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), blocks)
    convert = jax.vmap(lambda one: qwix.quantize_params(one, block))
    converted = {**params, 'blocks': convert(params['blocks'])}
    int8 = {path for path, leaf in paths.leaves(converted) if leaf.dtype == jnp.int8}
    assert {path.split('/w/')[0] for path in int8} == LINEARS and len(int8) == len(LINEARS)
    got = jax.jit(lambda p: quantized.apply({'params': p}, tokens))(converted)
  error = np.linalg.norm(got - want) / np.linalg.norm(want)
  assert 1e-5 < error < 0.05
