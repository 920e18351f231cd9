"""Positions against transformers and tables in float64."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as apply_partial_rotary

from llm_jax.config.model.architecture import (
  LinearScaling,
  Llama3Scaling,
  LongRoPEScaling,
  NTKScaling,
  RoPE,
  SinusoidalPositions,
  YaRNScaling,
)
from llm_jax.modules.positions import document_lengths, inverse_frequencies, rotate, rotation, sinusoids

KERNELS = ('cpu', 'xla')
LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
          'original_max_position_embeddings': 8192}
CASES = {  # ours, theta, transformers' rope_parameters
  'none': (None, 10_000.0, {'rope_type': 'default'}),
  'linear': (LinearScaling(4.0), 10_000.0, {'rope_type': 'linear', 'factor': 4.0}),
  'llama 3.1': (Llama3Scaling(), 500_000.0, LLAMA3),
  'llama 3.2': (Llama3Scaling(factor=32.0), 500_000.0, {**LLAMA3, 'factor': 32.0}),
  'llama3, other bounds': (Llama3Scaling(2.0, 2.0, 9.0, 512), 10_000.0, {
    'rope_type': 'llama3', 'factor': 2.0, 'low_freq_factor': 2.0, 'high_freq_factor': 9.0,
    'original_max_position_embeddings': 512}),
  'yarn': (YaRNScaling(16.0, 4096), 10_000.0, {
    'rope_type': 'yarn', 'factor': 16.0, 'original_max_position_embeddings': 4096}),
  'yarn, all set': (YaRNScaling(3.0, 100, 8.0, 2.0, attention_factor=0.7), 777.0, {
    'rope_type': 'yarn', 'factor': 3.0, 'original_max_position_embeddings': 100, 'beta_fast': 8.0, 'beta_slow': 2.0,
    'attention_factor': 0.7}),
  'yarn of DeepSeek-V3': (YaRNScaling(40.0, 4096, attention_factor=1.0), 10_000.0, {
    'rope_type': 'yarn', 'factor': 40.0, 'original_max_position_embeddings': 4096, 'beta_fast': 32, 'beta_slow': 1,
    'mscale': 1.0, 'mscale_all_dim': 1.0}),
  'yarn of gpt-oss': (YaRNScaling(32.0, 4096, truncate=False), 150_000.0, {
    'rope_type': 'yarn', 'factor': 32.0, 'original_max_position_embeddings': 4096, 'beta_fast': 32.0, 'beta_slow': 1.0,
    'truncate': False}),
  'yarn by 1': (YaRNScaling(1.0, 4096), 10_000.0, {
    'rope_type': 'yarn', 'factor': 1.0, 'original_max_position_embeddings': 4096}),
}


def llama(size, theta, parameters, length=131_072):
  return LlamaConfig(hidden_size=4 * size, num_attention_heads=4, max_position_embeddings=length,
                     rope_parameters={**parameters, 'rope_theta': theta})


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('size', [6, 64, 128])
def test_frequencies_and_magnitude_are_those_of_transformers(case, size):
  scaling, theta, parameters = CASES[case]
  theirs = LlamaRotaryEmbedding(llama(size, theta, parameters))
  ours = inverse_frequencies(RoPE(theta, scaling), size)
  assert ours.dtype == np.float64
  np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=1e-6)
  assert getattr(scaling, 'magnitude', 1.0) == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('kernels', KERNELS)
def test_rotated_queries_are_those_of_transformers(case, kernels):
  scaling, theta, parameters = CASES[case]
  B, T, H, K = 2, 48, 3, 16
  r = np.random.default_rng(0)
  x = r.standard_normal((B, T, H, K), np.float32)
  positions = np.sort(r.integers(0, 64, (B, T)), axis=1).astype(np.int32)
  cos, sin = LlamaRotaryEmbedding(llama(K, theta, parameters))(torch.tensor(x), torch.tensor(positions))
  want, _ = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin, unsqueeze_dim=2)
  got = jax.jit(lambda x, p: rotate(x, rotation(RoPE(theta, scaling), K, p, kernels)))(x, positions)
  np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


LONGROPE = LongRoPEScaling((1.0, 1.1, 1.5), (1.5, 4.0, 20.0), 4.0, original_length=16)


def phi3(**entries):
  return transformers.Phi3Config(
    hidden_size=32, num_attention_heads=4, max_position_embeddings=64, original_max_position_embeddings=16,
    partial_rotary_factor=0.75, rope_parameters={
      'rope_type': 'longrope', 'rope_theta': 10_000.0, 'short_factor': list(LONGROPE.short_factors),
      'long_factor': list(LONGROPE.long_factors), **entries})


@pytest.mark.parametrize('length', [1, 16, 17, 100])
def test_longrope_is_that_of_transformers(length):
  theirs, magnitude = ROPE_INIT_FUNCTIONS['longrope'](phi3(), seq_len=length)
  rope = RoPE(10_000.0, LONGROPE)
  np.testing.assert_allclose(inverse_frequencies(rope.at_length(length), 6), theirs.numpy(), rtol=1e-6)
  assert LONGROPE.magnitude == pytest.approx(magnitude, rel=1e-12) and magnitude > 1.1
  assert ROPE_INIT_FUNCTIONS['longrope'](phi3(attention_factor=0.7))[1] == 0.7 == dataclasses.replace(
    LONGROPE, attention_factor=0.7).magnitude
  plain = dataclasses.replace(LONGROPE, factor=1.0).magnitude
  assert ROPE_INIT_FUNCTIONS['longrope'](phi3(factor=1.0))[1] == 1.0 == plain


@pytest.mark.parametrize('kernels', KERNELS)
def test_a_part_of_a_head_is_turned_by_the_length_of_its_document(kernels):
  """Each document as transformers turns it alone; the last numbers of a head stay."""
  lengths, H, K = (16, 5, 17), 3, 8
  segments = np.repeat([1, 2, 3, 0], [*lengths, 2])[None]
  positions = np.concatenate([np.arange(length) for length in (*lengths, 2)])[None].astype(np.int32)
  x = np.random.default_rng(0).standard_normal((1, segments.size, H, K), np.float32)

  def turn(x, positions, segments):
    found = document_lengths(positions, segments)
    return rotate(x, rotation(RoPE(10_000.0, LONGROPE), 6, positions, kernels, found)), found

  got, found = jax.jit(turn)(x, positions, segments)
  assert found[0].tolist() == [16] * 16 + [5] * 5 + [17] * 17 + [2] * 2
  np.testing.assert_array_equal(got[..., 6:], x[..., 6:])
  for number, length in enumerate(lengths, 1):
    alone = torch.tensor(x[:, segments[0] == number])
    cos, sin = Phi3RotaryEmbedding(phi3())(alone, torch.arange(length)[None])
    want, _ = apply_partial_rotary(alone, alone, cos, sin, unsqueeze_dim=2)
    np.testing.assert_allclose(got[:, segments[0] == number], want.numpy(), atol=2e-5)


def test_without_documents_a_row_is_one():
  positions = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.int32)
  assert document_lengths(positions, None).tolist() == [[4] * 4, [8] * 4]


@pytest.mark.parametrize('size', [2, 6, 64])
@pytest.mark.parametrize('factor', [1.0, 5.0])
def test_ntk_is_a_larger_theta(size, factor):
  """transformers' dynamic form of factor 4 stretches a text of twice the trained length by 4 x 2 - 3 = 5."""
  ours = inverse_frequencies(RoPE(10_000.0, NTKScaling(factor)), size)
  if size > 2:
    larger = 10_000.0 * factor ** (size / (size - 2))
    np.testing.assert_allclose(ours, [larger ** (-2 * i / size) for i in range(size // 2)], rtol=1e-14)
    config = llama(size, 10_000.0, {'rope_type': 'dynamic', 'factor': 4.0}, length=256)
    theirs, magnitude = ROPE_INIT_FUNCTIONS['dynamic'](config, seq_len=256 if factor == 1 else 512)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
    assert magnitude == 1.0
  assert ours[0] == 1.0


@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('scaling', [None, Llama3Scaling(), YaRNScaling(16.0, 8192)])
@pytest.mark.parametrize('start', [0, 4_096, 32_768, 131_072])
def test_far_positions_match_a_float64_table(kernels, scaling, start):
  """Angles to 3e-4 radians, and what bfloat16 activations become to one unit in the last place of their length."""
  rope, K = RoPE(500_000.0, scaling), 64
  positions = np.arange(start - 50 if start else 0, start + 50, dtype=np.int32)[None]
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, positions.size, 2, K)), jnp.bfloat16)
  turn = jax.jit(lambda x, p: (rotation(rope, K, p, kernels), rotate(x, rotation(rope, K, p, kernels))))
  (cos, sin), y = turn(x, positions)
  assert (cos.dtype, sin.dtype, y.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)

  phases = positions[..., None].astype(np.float64) * inverse_frequencies(rope, K)
  magnitude = getattr(scaling, 'magnitude', 1.0)
  table = magnitude * np.exp(1j * phases)
  np.testing.assert_allclose(np.asarray(cos) + 1j * np.asarray(sin), table, atol=3e-4)

  x, y = (np.asarray(a, np.float64)[..., :K // 2] + 1j * np.asarray(a, np.float64)[..., K // 2:] for a in (x, y))
  assert (np.abs(y - x * table[:, :, None]) <= 2.0**-8 * magnitude * np.abs(x)).all()


@pytest.mark.parametrize('kernels', KERNELS)
def test_positions_of_rows_are_their_own(kernels):
  """The same position turns alike in every row and place, at and around a stride too."""
  positions = np.array([[0, 1023, 1024, 1025], [1025, 1024, 1023, 0]], np.int32)
  cos, sin = rotation(RoPE(), 8, positions, kernels)
  for a in (cos, sin):
    assert (np.asarray(a)[0] == np.asarray(a)[1, ::-1]).all()
  assert (np.asarray(cos)[0, 0] == 1).all() and (np.asarray(sin)[0, 0] == 0).all()


@pytest.mark.parametrize('size', [8, 10, 7])
def test_sinusoids_are_those_of_marian(size):
  """transformers keeps sines and cosines in halves, the paper in turn."""
  table = MarianSinusoidalPositionalEmbedding(40, size)
  table = table.create_weight().numpy()
  want = np.zeros_like(table)
  want[:, ::2], want[:, 1::2] = table[:, :-(-size // 2)], table[:, -(-size // 2):]
  got = jax.jit(lambda p: sinusoids(SinusoidalPositions(), size, p))(np.arange(40, dtype=np.int32)[None])
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got[0], want, atol=5e-6)


def test_sinusoids_far_away():
  positions = np.array([[131_071, 70_000]], np.int32)
  got = sinusoids(SinusoidalPositions(100.0), 6, positions)[0]
  want = [[f(p / 100.0 ** (2 * i / 6)) for i in range(3) for f in (np.sin, np.cos)] for p in positions[0]]
  np.testing.assert_allclose(got, want, atol=3e-4)
