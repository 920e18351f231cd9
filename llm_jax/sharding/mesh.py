"""The device mesh: five named axes, always all there, so that a strategy is only a choice of sizes."""
from collections.abc import Sequence

import jax
from jax.sharding import AxisType

from llm_jax.config.run import Mesh
from llm_jax.sharding.check import mesh_sizes


def make_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """A mesh of axes (data, fsdp, tensor, context, expert) over `devices`, by default all devices of all processes.

  The axes are Auto: `constrain` states where an activation lives and the compiler chooses the rest. Enter it with
  `jax.set_mesh(mesh)`; under `with mesh:` the constraints are silently nothing.

  Raises: ConfigError where the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
