"""Importing a Llama of a billion parameters from sharded safetensors: seconds and peak memory.

python -m benchmarks.import_llama [--dtype float32] [--shard_gb 1]

A folder is made at random in the temporary directory, Llama 3.2 1B's shape with a head of its own, and removed
afterwards. Then `llm_jax.hf.load_pretrained` reads it in a process of its own, into NumPy arrays and onto a mesh of one
device: the seconds of the call, and the process's peak resident memory beyond what it held before, imports included in
neither. The aim: under 60 s, and no more memory than the parameters, the largest tensor and 1 GB.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

SECONDS, SLACK = 60, 1e9


def model():
  from llm_jax.config import presets
  return presets.llama3_2_1b(vocab_size=64_000, tied_head=False, num_layers=16)


def make(folder, dtype, shard_gb):
  """Random tensors, one by one, as `save_pretrained` writes them."""
  import flax.traverse_util
  import numpy as np

  from llm_jax import hf
  from llm_jax.hf.weights import parameter_shapes
  random, config = np.random.default_rng(0), model()
  params = {path: 0.02 * random.standard_normal(shape, np.float32) for path, shape in parameter_shapes(config).items()}
  hf.save_pretrained(folder, config, flax.traverse_util.unflatten_dict(params, sep='/'), dtype=dtype,
                     max_shard_bytes=int(shard_gb * 1e9))


def memory(key):
  """VmRSS or VmHWM (the peak) of this process, in bytes."""
  with open('/proc/self/status') as status:
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def worker(folder, target):
  """Loads the folder and prints what it took."""
  import jax
  import numpy as np

  from llm_jax import hf
  from llm_jax.config.run import Mesh
  from llm_jax.hf.tensor_file import TensorFiles
  from llm_jax.sharding.mesh import make_mesh
  mesh = make_mesh(Mesh()) if target == 'mesh' else None
  jax.block_until_ready(jax.numpy.zeros(1))
  before, begun, cpu = memory('VmRSS'), time.perf_counter(), time.process_time()
  _, params = hf.load_pretrained(folder, mesh)
  jax.block_until_ready(params)
  seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
  tensors = TensorFiles(sorted(pathlib.Path(folder).glob('*.safetensors')))
  embedding = np.asarray(tensors['model.embed_tokens.weight'])
  checked = float(np.mean(np.asarray(params['embedding']['w'][-1]) - embedding[-1]))
  assert checked == 0, 'the last embedding is not what the file says'
  print(json.dumps({
    'seconds': seconds, 'cpu_seconds': cpu, 'peak_bytes': memory('VmHWM') - before,
    'parameter_bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'file_bytes': sum(tensor.nbytes for tensor in tensors.values()), 'files': len(list(
      pathlib.Path(folder).glob('*.safetensors'))),
    'largest_tensor_bytes': max(tensor.nbytes for tensor in tensors.values())}))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--dtype', default='bfloat16', choices=('bfloat16', 'float32'), help='of the files')
  parser.add_argument('--shard_gb', type=float, default=1.0)
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in benchmarks/results/import_llama/')
  parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    worker(*args.worker)
    return
  from benchmarks.machine import machine
  from benchmarks.records import write_results
  temporary = pathlib.Path(tempfile.mkdtemp())
  result = {'machine': machine(), 'dtype': args.dtype, 'runs': {}}
  try:
    make(temporary / 'model', args.dtype, args.shard_gb)
    for target in ('numpy', 'mesh'):
      command = [sys.executable, '-m', 'benchmarks.import_llama', '--worker', str(temporary / 'model'), target]
      done = subprocess.run(command, capture_output=True, text=True)
      if done.returncode:
        sys.exit(done.stderr)
      run = result['runs'][target] = json.loads(done.stdout)
      run['extra_bytes'] = run['peak_bytes'] - run['parameter_bytes']
      run['within'] = run['seconds'] < SECONDS and run['extra_bytes'] <= run['largest_tensor_bytes'] + SLACK
      print(f'{target}: {run["parameters"]:,} parameters in {run["seconds"]:.1f} s '
            f'({run["cpu_seconds"]:.1f} s of processor time), peak memory '
            f'{run["peak_bytes"] / 1e9:.2f} GB, {run["extra_bytes"] / 1e9:.2f} GB beyond the parameters '
            f'({"within" if run["within"] else "beyond"} the aim)')
  finally:
    shutil.rmtree(temporary)
  write_results('import_llama', result, args.output)


if __name__ == '__main__':
  main()
