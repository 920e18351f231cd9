"""Result files, and what they say of the machine that they were measured on."""
import json
import os
import pathlib
import platform
import re

RESULTS = pathlib.Path(__file__).parent / 'results'


def machine():
  """name: of result files, by cores and maker of the CPU: 'cpu2_intel'."""
  try:
    with open('/proc/cpuinfo') as f:
      cpu = next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
  except (OSError, StopIteration):
    cpu = platform.processor()
  vendor = re.match('[a-z]*', cpu.lower()).group()
  return {'name': f'cpu{os.cpu_count()}_{vendor}'.rstrip('_'), 'cpu': cpu, 'cores': os.cpu_count(),
          'system': platform.platform(terse=True), 'python': platform.python_version()}


def write_results(benchmark, results, output=None):
  """Writes `results`, which hold `machine()` under 'machine', to `output` or to results/<benchmark>_<machine>.json."""
  output = output or RESULTS / f"{benchmark}_{results['machine']['name']}.json"
  output.parent.mkdir(parents=True, exist_ok=True)
  output.write_text(json.dumps(results, indent=1) + '\n')
