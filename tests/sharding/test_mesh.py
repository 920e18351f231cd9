"""Which devices lie beside each other, on machines that are not here: described as jax describes theirs."""
import dataclasses
import itertools

import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Mesh
from llm_jax.sharding.mesh import arrange, make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  platform: str
  device_kind: str
  process_index: int
  slice_index: int
  coords: tuple[int, ...] = ()
  core_on_chip: int = 0


def gpus(hosts, each=8):
  return [Device(i, 'gpu', 'H100', i // each, i // each) for i in range(hosts * each)]


def tpus(*torus, slices=1):
  coords = [tuple(reversed(c)) for c in itertools.product(*map(range, reversed(torus)))]
  return [Device(i, 'tpu', 'TPU v5', i // 4, part, c)
          for i, (part, c) in enumerate(itertools.product(range(slices), coords))]


def slices(mesh, axis):
  """How many slices are met along the axis, from the first device."""
  line = np.moveaxis(mesh, axis, 0).reshape(mesh.shape[axis], -1)[:, 0]
  return len({device.slice_index for device in line})


@pytest.mark.parametrize('devices, sizes, between', [
  (gpus(4), (4, 8, 1, 1, 1), (4, 1, 1, 1, 1)),     # replicas on hosts, shards within
  (gpus(4), (2, 16, 1, 1, 1), (2, 2, 1, 1, 1)),    # shards over two hosts
  (gpus(4), (1, 32, 1, 1, 1), (1, 4, 1, 1, 1)),
  (gpus(2), (1, 1, 16, 1, 1), (1, 1, 2, 1, 1)),    # as it must
  (gpus(3), (8, 3, 1, 1, 1), (1, 3, 1, 1, 1)),
  (gpus(1), (2, 1, 2, 2, 1), (1, 1, 1, 1, 1)),
  (tpus(2, 2, 4, slices=2), (2, 16, 1, 1, 1), (2, 1, 1, 1, 1)),
  (tpus(2, 2, 4, slices=4), (2, 8, 4, 1, 1), (2, 2, 1, 1, 1)),
  (tpus(4, 4, 4), (4, 16, 1, 1, 1), (1, 1, 1, 1, 1)),
])
def test_only_the_first_axes_lead_from_slice_to_slice(devices, sizes, between):
  mesh = arrange(sizes, devices)
  assert mesh.shape == sizes and set(mesh.flat) == set(devices)
  assert tuple(slices(mesh, axis) for axis in range(5)) == between


@pytest.mark.parametrize('sizes', [(8, 8, 1, 1, 1), (1, 8, 1, 1, 8), (1, 2, 32, 1, 1), (2, 1, 1, 8, 4)])
def test_an_axis_may_take_a_part_of_a_torus_axis(sizes):
  devices = tpus(4, 4, 4)
  mesh = arrange(sizes, devices)
  assert mesh.shape == sizes and set(mesh.flat) == set(devices)


def test_slices_of_different_sizes_are_refused():
  with pytest.raises(ConfigError, match="mesh = .*'fsdp': 12.*use whole slices"):
    make_mesh(Mesh(data=1, fsdp=12), gpus(2)[:12])
