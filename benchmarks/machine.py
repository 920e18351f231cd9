"""The machine that a benchmark ran on."""
import os
import platform
import re


def machine() -> dict[str, str | int | None]:
  """name: of result files, by cores and maker of the CPU: 'cpu2_intel'."""
  try:
    with open('/proc/cpuinfo') as f:
      cpu = next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
  except (OSError, StopIteration):
    cpu = platform.processor()
  vendor = re.match('[a-z]*', cpu.lower()).group()
  return {
    'name': f'cpu{os.cpu_count()}_{vendor}'.rstrip('_'),
    'cpu': cpu,
    'cores': os.cpu_count(),
    'system': platform.platform(terse=True),
    'python': platform.python_version(),
  }
