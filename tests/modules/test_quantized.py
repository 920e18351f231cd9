"""Quantised weights against `bitsandbytes` and `qwix`, and models that compute with them."""
import dataclasses
import math

import bitsandbytes.functional as bitsandbytes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

from llm_jax import paths
from llm_jax.blockwise import dynamic_values
from llm_jax.config.adapters import LoRA
from llm_jax.config.model.architecture import GLU, MixtureOfExperts, SoftmaxRouter
from llm_jax.config.run import Mesh
from llm_jax.decode.generate import generate
from llm_jax.decode.sampling import Greedy
from llm_jax.matrices import Matrix, split_shape
from llm_jax.modules import quantized
from llm_jax.modules.execution import Execution
from llm_jax.modules.low_rank import init_adapters, join, merge
from llm_jax.modules.parameters import parameter_shapes
from llm_jax.modules.quantized import NF4_VALUES, Int4Weight, Int8Weight, NF4Weight, nf4_values
from llm_jax.modules.transformer import Transformer
from llm_jax.modules.weight_storage import assembled, expanded, stored
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings
from tests.modules import decoders


@pytest.mark.parametrize('shape, matrix, spread', (
  ((64, 96), Matrix((-2,), (-1,)), 0.02), ((128, 10, 70), Matrix((-3,), (-2, -1)), 1.0),
  ((4, 32, 9), Matrix((-3, -2), (-1,)), 1e-4), ((3, 64, 40), Matrix((-2,), (-1,)), 3.0)), ids=str)
def test_nf4_is_bitsandbytes(shape, matrix, spread):
  """Codes and scales of both levels to the bit, and the values that they stand for, of the linear layer of PyTorch,
  whose weight has the outputs in front."""
  rng = np.random.default_rng(0)
  w = (rng.standard_normal(shape) * spread).astype(np.float32)
  w[0] = 0  # blocks of zeros
  experts, inputs, outputs = split_shape(shape, matrix)
  linear = np.swapaxes(w.reshape(*experts, math.prod(inputs), math.prod(outputs)), -1, -2)
  ours = jax.jit(lambda w: NF4Weight.quantize(w, matrix))(w)
  codes, state = bitsandbytes.quantize_4bit(torch.tensor(linear.copy()), quant_type='nf4')
  pairs = codes.numpy().reshape(*experts, math.prod(outputs), -1, 32)
  theirs = np.stack([pairs >> 4, pairs & 15], -1).reshape(*pairs.shape[:-1], 64)
  got = np.concatenate([ours.codes >> 4, ours.codes & 15], len(experts) + 1)
  got = got.reshape(*got.shape[:len(experts) + 2], -1)
  np.testing.assert_array_equal(np.moveaxis(got, -1, len(experts)), theirs)

  # Of float32 their library chooses a neighbour of the nearest code for 2 of 1,000 numbers; of float64 the nearest.
  np.testing.assert_allclose(ours.scale_mean, state.absmax.mean(), rtol=1e-6)  # of sums in another order
  mean = torch.tensor(np.asarray(ours.scale_mean))
  values = bitsandbytes.create_dynamic_map()
  scale_codes, maxima = torch.ops.bitsandbytes.quantize_blockwise((state.absmax - mean).double(), values, 256)
  np.testing.assert_array_equal(dynamic_values(), values.numpy())
  np.testing.assert_allclose(ours.scale_maxima, maxima.numpy(), rtol=2e-7)  # compiled, a difference has other last bits
  is_one_block = not maxima.any()  # then the scale is the mean, and its code says nothing
  assert is_one_block or np.array_equal(ours.scale_codes, scale_codes.numpy())

  scales = values[scale_codes.long()] * maxima.repeat_interleave(256)[:len(scale_codes)] + mean
  want = _dequantize_4bit_compute(codes.reshape(-1), scales, state.code, 64, linear.shape, torch.float32)
  want = np.swapaxes(want.numpy(), -1, -2).reshape(shape)
  np.testing.assert_allclose(ours.dense(jnp.float32), want, rtol=1e-5, atol=1e-7 * spread)


def test_values_are_chosen_as_they_are_read():
  codes = jnp.arange(16, dtype=jnp.uint8)
  assert np.array_equal(quantized._choose_values(codes), NF4_VALUES)  # pyright: ignore[reportPrivateUsage]
  assert np.array_equal(nf4_values(codes), NF4_VALUES)


def test_int8_is_qwix():
  w = np.random.default_rng(0).standard_normal((6, 4, 10, 3)).astype(np.float32)
  w[..., 0] = 0
  ours = Int8Weight.quantize(jnp.asarray(w), Matrix((-3,), (-2, -1)))
  theirs = qwix.quantize(jnp.asarray(w), 'int8', channelwise_axes=(0, 2, 3))
  np.testing.assert_array_equal(ours.values, theirs.qvalue)
  np.testing.assert_allclose(ours.dense(jnp.float32), qwix.dequantize(theirs), rtol=1e-6)


@pytest.mark.parametrize('shape, matrix', (((130, 6), Matrix((-2,), (-1,))), ((4, 40, 10), Matrix((-3, -2), (-1,))),
                                           ((3, 70, 5), Matrix((-2,), (-1,)))), ids=str)
def test_int4_is_qwix(shape, matrix):
  """Of each group of 64 inputs; qwix has no groups of several axes, nor a last one that is not full."""
  w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  w[..., 0] = 0
  ours = Int4Weight.quantize(jnp.asarray(w), matrix)
  num_inputs = 160 if len(matrix.inputs) == 2 else shape[-2]
  rows = np.pad(w.reshape(-1, num_inputs, shape[-1]), ((0, 0), (0, -num_inputs % 64), (0, 0)))
  theirs = qwix.quantize(jnp.asarray(rows), 'int4', channelwise_axes=(0, 2), tiled_axes={1: 64})
  want = np.asarray(qwix.dequantize(theirs))[:, :num_inputs].reshape(shape)
  np.testing.assert_allclose(ours.dense(jnp.float32), want, rtol=1e-6)
  assert np.abs(want - w).max() < np.abs(w).max() / 14


def test_quantised_weights_are_put_together_again():
  """From the arrays that a checkpoint has."""
  shapes = parameter_shapes(MIXTURE)
  for kind in ('int8', 'int4', 'nf4'):
    params = stored_params(MIXTURE, kind)
    saved = paths.nest(dict(paths.leaves(params)))
    got = assembled(saved, shapes)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(params)))


def test_bytes_a_number():
  w = jax.ShapeDtypeStruct((4_096, 14_336), jnp.float32)
  kept = jax.eval_shape(lambda w: NF4Weight.quantize(w, Matrix((-2,), (-1,))), w)
  num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
  assert num_bytes / w.size < 0.517  # QLoRA, section 3: 4 + 8 / 64 + 32 / (64 x 256) bits


# ---------------------------------------------------------------------------------------------- models
def stored_params(config, kind):
  flat = paths.flat(decoders.make_params(config))
  return paths.nest({path: stored(path, jnp.asarray(leaf), kind) for path, leaf in flat.items()})


def tokens(batch=4, time=12):
  return jnp.asarray(np.random.default_rng(0).integers(0, decoders.VOCAB, (batch, time)), jnp.int32)


MIXTURE = dataclasses.replace(decoders.decoder((dataclasses.replace(
  decoders.LLAMA, feed_forward=MixtureOfExperts(4, 2, GLU(16), SoftmaxRouter(), shared=GLU(12))),), 2), vocab_size=54)
CONFIGS = {'latent': decoders.DECODERS['latent'], 'everything': decoders.DECODERS['everything'], 'experts': MIXTURE}


def moved(trained):
  """Adapters that change something."""
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda leaf: leaf + rng.normal(0, .1, leaf.shape).astype(np.float32), trained)


@pytest.mark.parametrize('name, base', (
  ('latent', 'nf4'), ('everything', 'bfloat16'), ('experts', 'int8'), ('everything', 'int4'), ('experts', 'int4')))
def test_a_quantised_model_is_its_expanded_one(name, base):
  """Also with adapters, merged and not, scanned and not, on both sets of kernels."""
  config = CONFIGS[name]
  params = stored_params(config, base)
  lora = LoRA(rank=3, alpha=6.0)
  trained = moved(init_adapters(params, lora, jax.random.key(1)))
  want = jax.jit(lambda p: Transformer(config).apply({'params': p}, tokens()))(expanded(params))
  for execution in (Execution(kernels='cpu', unroll=True), Execution(kernels='xla', unroll=False)):
    apply = jax.jit(lambda p, execution=execution: Transformer(config, execution).apply({'params': p}, tokens()))
    np.testing.assert_allclose(apply(params), want, rtol=0, atol=1e-5)
    adapted = apply(join(params, trained, lora))
    assert np.abs(adapted - want).max() > 1e-2
    np.testing.assert_allclose(apply(merge(params, trained, lora)), adapted, rtol=0, atol=2e-5)


@pytest.mark.parametrize('name', ('latent', 'experts'))
def test_decoding_with_adapters(name):
  """With a cache, where latent attention uses its weights the other way round, as without."""
  config = CONFIGS[name]
  params = stored_params(config, 'nf4')
  lora = LoRA(rank=3, base='nf4')
  trained = moved(init_adapters(params, lora, jax.random.key(1)))
  prompts = [list(row) for row in np.asarray(tokens(2, 5))]
  got = generate(config, join(params, trained, lora), prompts, 6, Greedy(), jax.random.key(0))
  want = generate(config, merge(params, trained, lora), prompts, 6, Greedy(), jax.random.key(0))
  assert [list(row) for row in got.tokens] == [list(row) for row in want.tokens]


@pytest.mark.parametrize('name, mesh', (
  ('latent', Mesh(data=4, fsdp=2)), ('experts', Mesh(data=2, tensor=2, expert=2)), ('experts', Mesh(data=4, fsdp=2))),
  ids=str)
def test_sharded_as_whole(name, mesh):
  """Quantised weights and adapters on 8 devices: the same loss and the same gradient of every adapter."""
  config = CONFIGS[name]
  params = stored_params(config, 'nf4')
  lora = LoRA(rank=4, base='nf4')
  trained = moved(init_adapters(params, lora, jax.random.key(1)))

  def loss(trained, params):
    logits = Transformer(config, Execution(kernels='xla', unroll=False)).apply(
      {'params': join(params, trained, lora)}, tokens(8))
    return jnp.square(logits).mean()

  want_loss, want = jax.jit(jax.value_and_grad(loss))(trained, params)
  devices = make_mesh(mesh)
  with jax.set_mesh(devices):
    place = lambda tree: jax.device_put(tree, param_shardings(tree, devices))
    got_loss, got = jax.jit(jax.value_and_grad(loss))(place(trained), place(params))
  np.testing.assert_allclose(got_loss, want_loss, rtol=1e-5)
  for (path, one), (_, other) in zip(paths.leaves(got), paths.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=path)
