"""What the compilers are told."""
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.train.compiler_options import GPU, TPU, TPU_SLICES, compile_with_options, options_for


def mesh(num_devices, num_slices=1):
  devices = np.array([types.SimpleNamespace(slice_index=i % num_slices) for i in range(num_devices)])
  return types.SimpleNamespace(size=num_devices, devices=devices)


def test_options_go_by_the_devices():
  assert options_for('tpu', mesh(16), {}) == TPU
  assert options_for('tpu', mesh(16, num_slices=2), {}) == TPU | TPU_SLICES
  assert options_for('gpu', mesh(8), {}) == GPU
  assert options_for('tpu', mesh(1), {}) == options_for('cpu', mesh(8), {}) == {}


def test_a_users_flag_is_left_alone():
  flags = {'LIBTPU_INIT_ARGS': '--xla_enable_async_all_gather=false', 'XLA_FLAGS': '--xla_other=1'}
  assert options_for('tpu', mesh(16), flags).keys() == TPU.keys() - {'xla_enable_async_all_gather'}


def test_a_compiler_that_does_not_know_an_option_compiles(capsys):
  lowered = jax.jit(lambda x: x + 1).lower(jnp.zeros(3))
  program = compile_with_options(lowered, TPU)
  assert program(jnp.zeros(3)).tolist() == [1, 1, 1]
  assert 'compiles without them' in capsys.readouterr().out


@pytest.mark.parametrize('message, compiles', [
  ('INTERNAL: RET_CHECK failure (lookup.h:1) it != end Cannot find value\nstack', True),
  ('RESOURCE_EXHAUSTED: 17.6G of 15.75G hbm', False)])
def test_a_compiler_that_fails_inside_with_the_options_compiles_without(message, compiles, capsys):
  lowered = jax.jit(lambda x: x + 1).lower(jnp.zeros(3))

  def compile(compiler_options=None):
    if compiler_options:
      raise jax.errors.JaxRuntimeError(message)
    return lowered.compile()

  failing: Any = types.SimpleNamespace(compile=compile)
  if compiles:
    assert compile_with_options(failing, TPU)(jnp.zeros(3)).tolist() == [1, 1, 1]
    assert 'compiles without them (INTERNAL: RET_CHECK failure' in capsys.readouterr().out
  else:
    with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'):
      compile_with_options(failing, TPU)
