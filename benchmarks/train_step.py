"""One training step against Hugging Face transformers: tokens per second and peak memory, side by side in one run.

python -m benchmarks.train_step [--cases gpt2-tiny llama-small] [--rounds 8] [--steps 4] [--threads 2]

Each implementation runs in a process of its own; both are built and warmed up, then they take turns, so that whatever
else the machine does meets both alike. Ours is what `launch.train` runs: `Transformer`, `LanguageModelObjective`,
`make_optimizer` and `make_train_step`, jitted with the state donated, with segment ids (one document a row).
transformers is its model in its default eager mode with its own loss and torch's fused AdamW. Same shapes, same scale
of weights, float32, same threads, same allocator settings (llm_jax/runtime/cpu.py). Memory is the peak resident memory
of the whole process, imports and compilation included.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from benchmarks.machine import machine
from benchmarks.records import write_results

CASES = {
    'gpt2-tiny': dict(family='gpt2', layers=4, width=256, heads=4, kv_heads=4, d_ff=1024, vocab=4096, seq_len=256,
                      batch=8),
    'llama-small': dict(family='llama', layers=6, width=384, heads=6, kv_heads=2, d_ff=1024, vocab=32000, seq_len=512,
                        batch=4),
}
IMPLEMENTATIONS = ('llm_jax', 'transformers')
LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY = 3e-4, 0.9, 0.95, 1e-8, 0.1


# ---------------------------------------------------------------------------------------------- ours
def build_llm_jax(case):
  import jax
  import numpy as np

  from llm_jax.batch import LanguageModelBatch
  from llm_jax.config import presets
  from llm_jax.config.optimizers import AdamW
  from llm_jax.config.run import Mesh
  from llm_jax.config.schedules import Constant
  from llm_jax.modules.transformer import Transformer
  from llm_jax.objectives.language_model import LanguageModelObjective
  from llm_jax.optim.optimizers import make_optimizer
  from llm_jax.optim.schedules import make_schedule
  from llm_jax.runtime import cpu
  from llm_jax.sharding.mesh import make_mesh
  from llm_jax.sharding.rules import batch_sharding, replicated, state_shardings
  from llm_jax.train.state import TrainState
  from llm_jax.train.step import make_train_step

  size = dict(d_model=case['width'], num_layers=case['layers'], num_heads=case['heads'], vocab_size=case['vocab'])
  if case['family'] == 'gpt2':
    architecture = presets.gpt2(**size, max_length=case['seq_len'])
  else:
    architecture = presets.llama(**size, num_kv_heads=case['kv_heads'], d_ff=case['d_ff'])
  cpu.compute_in_calling_thread()  # as launch.train does
  mesh = make_mesh(Mesh())
  jax.set_mesh(mesh)
  model = Transformer(architecture)
  init = lambda: model.init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  optimizer = make_optimizer(AdamW(B1, B2, EPS, WEIGHT_DECAY), jax.eval_shape(init))
  create = lambda: TrainState.create(init(), optimizer, ema=False)
  abstract = jax.eval_shape(create)
  shardings = state_shardings(abstract, abstract.params, mesh)
  abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
  step = make_train_step(LanguageModelObjective(model), optimizer, make_schedule(Constant(LEARNING_RATE), 1_000_000))
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
  put = lambda batch: jax.device_put(batch, batch_sharding(mesh))

  ones = np.ones((case['batch'], case['seq_len']), np.int32)
  positions = np.broadcast_to(np.arange(case['seq_len'], dtype=np.int32), ones.shape)
  batches = [LanguageModelBatch(x.astype(np.int32), y.astype(np.int32), ones.astype(np.float32), positions, ones)
             for x, y in tokens(case)]
  with cpu.releasing_memory():  # before there is a state, as in training
    step = step.lower(abstract, None, put(batches[0])).compile()
  state = jax.jit(create, out_shardings=shardings)()
  cpu.release_free_memory()

  def run(i):
    nonlocal state
    state, metrics = step(state, None, put(batches[i % len(batches)]))
    return float(metrics['loss'])

  return run, {'jax': jax.__version__}


# ---------------------------------------------------------------------------------------------- theirs
def build_transformers(case):
  import torch
  import transformers

  torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
  torch.manual_seed(0)
  ids = dict(bos_token_id=0, eos_token_id=None, use_cache=False)
  if case['family'] == 'gpt2':
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=case['vocab'], n_positions=case['seq_len'], n_embd=case['width'], n_layer=case['layers'],
        n_head=case['heads'], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids))
  else:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=case['vocab'], hidden_size=case['width'], intermediate_size=case['d_ff'],
        num_hidden_layers=case['layers'], num_attention_heads=case['heads'], num_key_value_heads=case['kv_heads'],
        max_position_embeddings=case['seq_len'], rms_norm_eps=1e-5, tie_word_embeddings=False, pad_token_id=None,
        **ids))
  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(B1, B2), eps=EPS,
                                weight_decay=WEIGHT_DECAY, fused=True)
  batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in tokens(case)]

  def run(i):
    x, y = batches[i % len(batches)]
    loss = model(input_ids=x, labels=y, shift_labels=y).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  return run, {'torch': torch.__version__, 'transformers': transformers.__version__}


# ---------------------------------------------------------------------------------------------- both
def tokens(case, count=8):
  """Inputs and targets: uniform random ids, the same for both."""
  import numpy as np
  ids = np.random.default_rng(1).integers(0, case['vocab'], (count, case['batch'], case['seq_len'] + 1), dtype=np.int64)
  return [(row[:, :-1].copy(), row[:, 1:].copy()) for row in ids]


def peak_memory():
  """Bytes: the most this process has had in RAM."""
  with open('/proc/self/status') as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))


def worker(name, case):
  """Answers lines on stdin: a number runs so many steps and prints their seconds; anything else ends."""
  start = time.perf_counter()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(os.environ['OMP_NUM_THREADS'])])  # XLA's threads too
  run, versions = {'llm_jax': build_llm_jax, 'transformers': build_transformers}[name](case)
  losses = [run(0)]
  ready = time.perf_counter() - start
  losses += [run(i) for i in range(1, 4)]
  print(json.dumps({'losses': losses, 'seconds_to_first_step': ready, 'versions': versions}), flush=True)
  done = 4
  for line in sys.stdin:
    if not line.strip().isdigit():
      break
    seconds = []
    for _ in range(int(line)):
      start = time.perf_counter()
      run(done)
      seconds.append(time.perf_counter() - start)
      done += 1
    print(json.dumps(seconds), flush=True)
  print(json.dumps({'peak_memory': peak_memory()}), flush=True)


def start_worker(name, case, args):
  from llm_jax.runtime import cpu
  env = {**os.environ, **cpu.ALLOCATOR, 'OMP_NUM_THREADS': str(args.threads), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-m', 'benchmarks.train_step', '--worker', name, '--cases', case]
  process = subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  return process, json.loads(process.stdout.readline())


def ask(process, line):
  process.stdin.write(f'{line}\n')
  process.stdin.flush()
  return json.loads(process.stdout.readline())


def measure(case, args):
  """Both implementations on one case, in turns."""
  workers = {name: start_worker(name, case, args) for name in IMPLEMENTATIONS}
  seconds = {name: [] for name in IMPLEMENTATIONS}
  for i in range(args.rounds):
    for name in IMPLEMENTATIONS[::1 if i % 2 else -1]:
      seconds[name].append(ask(workers[name][0], args.steps))
  count = CASES[case]['batch'] * CASES[case]['seq_len']
  result = {}
  for name, (process, started) in workers.items():
    memory = ask(process, 'end')['peak_memory']
    process.wait()
    flat = [s for turn in seconds[name] for s in turn]
    result[name] = {'tokens_per_second': count / statistics.median(flat), 'best_tokens_per_second': count / min(flat),
                    'step_seconds': statistics.median(flat), 'peak_memory_mib': memory / 2**20, **started}
  ours, theirs = (result[name] for name in IMPLEMENTATIONS)
  turns = [statistics.median(b) / statistics.median(a) for a, b in zip(*seconds.values(), strict=True)]
  result['ratio'] = {'tokens_per_second': ours['tokens_per_second'] / theirs['tokens_per_second'],
                     'best_tokens_per_second': ours['best_tokens_per_second'] / theirs['best_tokens_per_second'],
                     'median_of_turns': statistics.median(turns),
                     'peak_memory': ours['peak_memory_mib'] / theirs['peak_memory_mib']}
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cases', nargs='+', default=list(CASES), choices=list(CASES))
  parser.add_argument('--rounds', type=int, default=8, help='turns each implementation takes')
  parser.add_argument('--steps', type=int, default=4, help='steps a turn')
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in benchmarks/results/train_step/')
  parser.add_argument('--worker', choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return worker(args.worker, CASES[args.cases[0]])

  results = {'machine': machine(), 'threads': args.threads, 'cases': {}}
  for case in args.cases:
    result = results['cases'][case] = measure(case, args)
    for name in IMPLEMENTATIONS:
      r = result[name]
      print(f"{case:12} {name:13} {r['tokens_per_second']:8.0f} tokens/s (best {r['best_tokens_per_second']:.0f})  "
            f"peak memory {r['peak_memory_mib']:6.0f} MiB  first step after {r['seconds_to_first_step']:.1f} s  "
            f"loss {r['losses'][0]:.4f} .. {r['losses'][-1]:.4f}")
    r = result['ratio']
    print(f"{case:12} ratio         {r['tokens_per_second']:8.3f} x (best {r['best_tokens_per_second']:.3f}, "
          f"median of turns {r['median_of_turns']:.3f})  peak memory {r['peak_memory']:.2f} x", flush=True)
  write_results('train_step', results, args.output)


if __name__ == '__main__':
  main()
