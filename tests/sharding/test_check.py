"""A mesh that does not fit is refused by arithmetic, naming field, value and hint."""
import subprocess
import sys

import pytest

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Mesh
from llm_jax.sharding.check import check_divides, mesh_sizes

MODEL = presets.llama(d_model=100, num_layers=2, num_heads=10, num_kv_heads=2, d_ff=240, vocab_size=400)


@pytest.mark.parametrize('mesh, devices, expected', [
    (Mesh(), 8, (1, 8, 1, 1, 1, 1)), (Mesh(), 1, (1, 1, 1, 1, 1, 1)), (Mesh(fsdp=2, tensor=2), 8, (1, 2, 2, 2, 1, 1)),
    (Mesh(data=1, fsdp=-1), 8, (1, 1, 8, 1, 1, 1)), (Mesh(data=2, context=4), 8, (1, 2, 1, 1, 4, 1)),
    (Mesh(data=2, expert=-1), 6, (1, 2, 1, 1, 1, 3)), (Mesh(pipeline=4), 8, (4, 2, 1, 1, 1, 1))])
def test_what_is_left_is_resolved(mesh, devices, expected):
  assert tuple(mesh_sizes(mesh, devices).values()) == expected


@pytest.mark.parametrize('mesh, field', [
    (Mesh(data=3), 'mesh.data'), (Mesh(fsdp=3), 'mesh.fsdp'), (Mesh(data=2, fsdp=2), 'mesh.data'),
    (Mesh(data=1, fsdp=-1, tensor=16), 'mesh.tensor'), (Mesh(data=1), 'mesh.data')])
def test_wrong_number_of_devices(mesh, field):
  with pytest.raises(ConfigError, match='number of devices, 8') as error:
    mesh_sizes(mesh, 8)
  assert error.value.field == field


@pytest.mark.parametrize('mesh, says', [
    (Mesh(data=1, fsdp=16), 'mesh.fsdp = 16: mesh fsdp=16 does not divide d_model=100, use a divisor, such as 4'),
    (Mesh(data=1, tensor=3), 'tensor=3 does not divide vocab_size=400, use a divisor, such as 1, or vocab_size=402'),
    (Mesh(data=1, tensor=4), 'mesh tensor=4 does not divide num_heads=10'),
    (Mesh(data=1, context=5), 'mesh context=5 cuts every sequence into 10 chunks, which do not divide seq_len=64'),
    (Mesh(data=1, context=64), 'mesh.context = 64: .* into 128 chunks'),  # a token for each device, but not two chunks
    (Mesh(data=3), 'data x fsdp = 3 does not divide the 8 sequences of a microbatch .* use batch_size=18'),
    (Mesh(data=1, expert=2), 'no experts')])
def test_mesh_that_does_not_divide(mesh, says):
  with pytest.raises(ConfigError, match=says):
    check_divides(MODEL, mesh, batch_size=16, seq_len=64, microbatches=2)


def test_names_the_stage_whose_context_does_not_divide():
  with pytest.raises(ConfigError, match="do not divide seq_len=36 of stage 'long', use seq_len=40") as error:
    check_divides(MODEL, Mesh(data=1, context=4), batch_size=16, seq_len=36, stage='long')
  assert error.value.field == 'mesh.context'


def test_mesh_that_divides():
  for mesh in (Mesh(), Mesh(fsdp=4), Mesh(fsdp=2, tensor=2), Mesh(data=1, context=8)):
    check_divides(MODEL, mesh, batch_size=16, seq_len=64, num_devices=8, microbatches=2)
  check_divides(MODEL, Mesh(data=1, tensor=5), batch_size=3, seq_len=64)  # two key/value heads stay whole


def test_is_checked_with_what_is_left():
  with pytest.raises(ConfigError, match='mesh fsdp=8 does not divide d_model=100'):
    check_divides(MODEL, Mesh(data=1, fsdp=-1), batch_size=16, seq_len=64, num_devices=8)


def test_needs_no_jax():
  code = "import sys, llm_jax.sharding.check; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
