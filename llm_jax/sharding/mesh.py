"""The device mesh: it always has the same six named axes, so that a strategy is only a choice of sizes."""
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Mesh
from llm_jax.sharding.check import mesh_sizes


def make_mesh(config: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """A mesh of axes (pipeline, data, fsdp, tensor, context, expert) over `devices`, by default all of all processes.

  devices: of type jax.Device, which type checkers take for a variable.

  The axes are Auto: `constrain` states the sharding of some activations and the compiler chooses the rest. Enter the
  mesh with `jax.set_mesh(mesh)`; under `with mesh:` the constraints would silently have no effect.

  Raises: ConfigError if the sizes do not multiply to the number of devices, or the slices are not equal.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  try:
    array = arrange(tuple(sizes.values()), devices)
  except (ValueError, AssertionError) as error:
    raise ConfigError('mesh', sizes, f'the {len(devices)} devices do not lie so that they make this mesh '
                      f'({str(error)[:200]}): use whole slices (hosts, of GPUs) of one size') from error
  return jax.sharding.Mesh(array, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def arrange(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """The devices as an array of `sizes`. Later axes get faster links.

  Devices of one slice (of a TPU pod; or the GPUs of one host) have fast links to each other. With several slices, the
  first axes lead from slice to slice: pipeline as far as its size goes, then data, then fsdp, then the others.
  """
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  between, left = [], slices
  for size in sizes:
    between.append(math.gcd(size, left))
    left //= between[-1]
  within = [size // factor for size, factor in zip(sizes, between, strict=True)]

  def place(**options) -> np.ndarray:
    if slices == 1:
      return mesh_utils.create_device_mesh(within, devices, **options)
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, **options)

  try:
    return place()
  except NotImplementedError:  # such as an axis of 8 on a torus of 4 x 4 x 4, which must use a part of a torus axis
    return place(allow_split_physical_axes=True)
