"""What the machine can do, and how much of its memory is in use."""
import dataclasses
import functools
import math
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

# Dense peaks of one jax device in FLOP/s, by (bfloat16, float32); the first name found in `device_kind` decides.
# float32 is what XLA's default precision uses there: TF32 tensor cores on NVIDIA GPUs since Ampere, one bfloat16 pass
# on TPUs. Sources: NVIDIA's data sheets (T4 2018, A100 2020, H100, L4, L40S 2023, H200, B200, GB200 NVL72 2024), halved
# where they print figures "with sparsity"; Google Cloud's TPU pages, which print figures per chip, halved where jax
# shows two devices a chip (v3, TPU7x).
PEAKS = (
    # device, bfloat16, float32
    ('GB200', 2.5e15, 1.25e15),
    ('B200', 2.25e15, 1.125e15),
    ('H100 PCIe', 756e12, 378e12),
    ('H100', 989.4e12, 494.7e12),
    ('H200', 989.4e12, 494.7e12),
    ('A100', 312e12, 156e12),
    ('L40S', 362e12, 183e12),
    ('L4', 121e12, 60e12),
    ('T4', 65e12, 8.1e12),  # no bfloat16 tensor cores: the float16 figure
    ('TPU7x', 1153.5e12, 1153.5e12),
    ('TPU v6', 918e12, 918e12),
    ('TPU v5 lite', 197e12, 197e12),
    ('TPU v5e', 197e12, 197e12),
    ('TPU v5', 459e12, 459e12),
    ('TPU v4', 275e12, 275e12),
    ('TPU v3', 61.5e12, 61.5e12),
)
MEASURE_SECONDS = 0.25
FIRST_WITH_BFLOAT16 = 8  # compute capability of NVIDIA GPUs


def peak_flops(device: Any, dtype: Any) -> float:
  """FLOP/s that `device` can reach at best in `dtype` ('bfloat16' or 'float32'; others count as float32).

  A device that the table lacks, and every CPU, is measured once a process: see `measured_matmul_flops`.
  """
  is_half = jnp.dtype(dtype).itemsize == 2
  is_cpu = device.platform == 'cpu'
  if not is_cpu:
    for name, bfloat16, float32 in PEAKS:
      if name.lower() in device.device_kind.lower():
        return bfloat16 if is_half else float32
  # A device of another process cannot be measured here, one like it can.
  alike = [local for local in jax.local_devices(backend=device.platform) if local.device_kind == device.device_kind]
  # XLA rarely reaches a CPU's own bfloat16 units: its float32 peak is what both dtypes are compared with.
  return measured_matmul_flops(alike[0], 'bfloat16' if is_half and not is_cpu else 'float32')


def has_bfloat16_units(device: Any) -> bool:
  """Whether products of bfloat16 matrices are fast: on accelerators, but for NVIDIA GPUs before Ampere, such as T4 and
  V100, which have tensor cores for float16 alone."""
  if device.platform == 'cpu':
    return False
  version = re.fullmatch(r'(\d+)\.(\d+)', str(getattr(device, 'compute_capability', '')))
  return version is None or int(version[1]) >= FIRST_WITH_BFLOAT16


def total_peak_flops(devices: Iterable[Any], dtype: Any) -> float:
  """FLOP/s of all `devices` together. Virtual CPU devices of one process share its cores, so they count once."""
  devices = list(devices)
  if devices[0].platform == 'cpu':
    return len({d.process_index for d in devices}) * peak_flops(devices[0], dtype)
  return sum(peak_flops(d, dtype) for d in devices)


@functools.cache
def measured_matmul_flops(device: Any, dtype: str) -> float:
  """The best FLOP/s of a square matmul on `device`, in about 0.3 s.

  1,024^3 on a CPU (4 MiB a matrix; about 10 ms on two cores), 8,192^3 elsewhere; the fastest of the repetitions that
  fit in MEASURE_SECONDS, after one that compiles. Other work on the same cores lowers it.
  """
  size = 1_024 if device.platform == 'cpu' else 8_192
  x = jax.device_put(jnp.ones((size, size), dtype), device)
  matmul = jax.jit(lambda a: jax.lax.dot_general(a, a, (((1,), (0,)), ((), ())), precision=jax.lax.Precision.DEFAULT))
  jax.block_until_ready(matmul(x))
  best = math.inf
  end = time.perf_counter() + MEASURE_SECONDS
  while time.perf_counter() < end or best == math.inf:
    start = time.perf_counter()
    jax.block_until_ready(matmul(x))
    best = min(best, time.perf_counter() - start)
  return 2 * size ** 3 / best


def memory_in_use() -> int:
  """Bytes in use: the fullest local device's, or this process's resident memory where devices do not tell (CPU)."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  in_use = max((each.get('bytes_in_use', 0) for each in stats), default=0)
  return in_use or resident_memory()


def resident_memory() -> int:
  """Bytes of this process in RAM (its peak where the system has no /proc)."""
  try:
    with open('/proc/self/statm') as file:
      pages = int(file.read().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


@dataclasses.dataclass(frozen=True)
class Machine:
  """Where a run ran, as its lineage and its report show it.

  devices: such as '8 x gpu (NVIDIA H100 80GB HBM3)', of all processes.
  cpu_cores: of this host; None where the system does not tell.
  """
  devices: str
  processes: int
  cpu_cores: int | None
  system: str
  python: str
  jax: str


def describe_machine() -> Machine:
  device = jax.devices()[0]
  kind = _cpu_name() if device.platform == 'cpu' else device.device_kind
  return Machine(
    devices=f'{jax.device_count()} x {device.platform} ({kind})',
    processes=jax.process_count(),
    cpu_cores=os.cpu_count(),
    system=platform.platform(terse=True),
    python=platform.python_version(),
    jax=jax.__version__,
  )


def _cpu_name() -> str:
  try:
    with open('/proc/cpuinfo') as file:
      for line in file:
        if line.startswith('model name'):
          return line.split(':', 1)[1].strip()
  except OSError:  # not Linux
    pass
  return platform.processor() or platform.machine()
