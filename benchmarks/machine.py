"""What a result file says of the machine that it was measured on."""
import os
import platform


def machine():
  try:
    with open('/proc/cpuinfo') as f:
      cpu = next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
  except (OSError, StopIteration):
    cpu = platform.processor()
  return {'name': f'cpu{os.cpu_count()}', 'cpu': cpu, 'cores': os.cpu_count(), 'system': platform.platform(terse=True),
          'python': platform.python_version()}
