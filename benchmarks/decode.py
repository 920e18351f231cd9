"""Greedy decoding against Hugging Face transformers: tokens per second, side by side in one run.

python -m benchmarks.decode [--cases gpt2-tiny llama-small] [--batches 1 8] [--rounds 8] [--threads 2]

Each implementation runs in a process of its own; all are built and warmed up, then they take turns, so that whatever
else the machine does meets them alike. Ours is `llm_jax.generate`, from lists of tokens to lists of tokens. Theirs is
`generate` in eager mode with its default dynamic cache, and with its static cache. Same weights (a random model of
transformers, saved and loaded by `llm_jax.hf`), prompts, float32, threads and allocator settings
(llm_jax/runtime/cpu.py).
The tokens must be the same: another token is an error.

Two things keep a busy machine from deciding. A turn during which other processes used more than --max_other cores is
thrown away and taken again: torch's OpenMP threads spin at every barrier, and with one foreign process on one core of
two, transformers fell from 340 to between 3 and 60 tokens/s (gpt2-tiny, batch 1), which says nothing about it. And
transformers takes each turn with one thread and with all, of which the faster median counts. Without --rounds clean
turns of everything, what was measured is printed as contended and no results file is written.
"""
import argparse
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import machine
from benchmarks.records import write_results

PROMPT, NEW = 16, 64
TURN_SECONDS = 0.5  # a turn repeats the call for about so long: the CPU clocks in /proc tick at 10 ms
CASES = {
    'gpt2-tiny': dict(model_type='gpt2', vocab_size=4096, n_positions=256, n_embd=256, n_layer=4, n_head=4),
    'llama-small': dict(model_type='llama', vocab_size=32000, hidden_size=384, intermediate_size=1024,
                        num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2,
                        max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False),
}
IMPLEMENTATIONS = ('llm_jax', 'transformers', 'transformers-static')
PACKAGES = ('jax', 'jaxlib', 'flax', 'torch', 'transformers')


# ---------------------------------------------------------------------------------------------- both sides
def make_model(case, folder):
  """A random model in a folder, as both read it."""
  import torch
  import transformers
  torch.manual_seed(0)
  # Larger than the usual 0.02: the tokens vary, and no two logits are equal to rounding.
  config = transformers.AutoConfig.for_model(**CASES[case], initializer_range=0.1, bos_token_id=0, eos_token_id=None,
                                             pad_token_id=0)
  transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def prompts(case, batch):
  import numpy as np
  return np.random.default_rng(1).integers(1, CASES[case]['vocab_size'], (batch, PROMPT)).tolist()


def build_llm_jax(folder):
  import jax

  import llm_jax
  from llm_jax import hf
  from llm_jax.runtime import cpu
  cpu.compute_in_calling_thread()  # as launch.sample does
  config, params = hf.load_pretrained(folder)
  params = jax.device_put(params)
  return lambda given, threads: llm_jax.generate(config, params, given, NEW).tokens


def build_transformers(folder, cache=None):
  import torch
  import transformers
  transformers.logging.set_verbosity_error()
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  options = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
  if cache is not None:
    options.update(cache_implementation=cache)

  def run(given, threads):
    torch.set_num_threads(threads)
    tokens = torch.tensor(given)
    with torch.no_grad():
      out = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return out[:, PROMPT:].tolist()

  return run


BUILD = {'llm_jax': build_llm_jax, 'transformers': build_transformers,
         'transformers-static': lambda folder: build_transformers(folder, 'static')}


# ---------------------------------------------------------------------------------------------- processes
def worker(name, folder, case, batches, threads):
  """Answers lines on stdin, `batch threads`, with the seconds of one call; anything else ends."""
  run = BUILD[name](folder)
  given, tokens, first = {batch: prompts(case, batch) for batch in batches}, {}, {}
  for batch in batches:
    start = time.perf_counter()
    run(given[batch], threads)
    first[batch] = time.perf_counter() - start
    tokens[batch] = run(given[batch], 1)
  print(json.dumps({'tokens': tokens, 'first_call_seconds': first}), flush=True)
  for line in sys.stdin:
    if line.startswith('end'):
      break
    batch, count = map(int, line.split())
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < TURN_SECONDS:
      run(given[batch], count)
      calls += 1
    print(json.dumps((time.perf_counter() - start) / calls), flush=True)


def start_worker(name, folder, case, args):
  from llm_jax.runtime import cpu
  env = {**os.environ, **cpu.ALLOCATOR, 'OMP_NUM_THREADS': str(args.threads), 'JAX_PLATFORMS': 'cpu'}
  env['XLA_FLAGS'] = f'--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={args.threads}'
  command = [sys.executable, '-m', 'benchmarks.decode', '--worker', name, folder, '--cases', case,
             '--batches', *map(str, args.batches)]
  process = subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  return process, json.loads(process.stdout.readline())


def ask(process, line):
  process.stdin.write(f'{line}\n')
  process.stdin.flush()
  return json.loads(process.stdout.readline())


def cpu_seconds(pid=None):
  """CPU time of a process, or of the whole machine (time stolen by its host included)."""
  ticks = os.sysconf('SC_CLK_TCK')
  if pid is None:
    with open('/proc/stat') as f:
      user, nice, system, _, _, *interrupts = map(int, f.readline().split()[1:9])
    return (user + nice + system + sum(interrupts)) / ticks
  with open(f'/proc/{pid}/stat') as f:
    return sum(map(int, f.read().rsplit(')', 1)[1].split()[11:13])) / ticks


def take_turn(process, batch, threads):
  """(seconds a call, cores that other processes used meanwhile)."""
  start, everything, own = time.perf_counter(), cpu_seconds(), cpu_seconds(process.pid)
  seconds = ask(process, f'{batch} {threads}')
  others = cpu_seconds() - everything - (cpu_seconds(process.pid) - own)
  return seconds, max(0.0, others) / (time.perf_counter() - start)


def measure(case, args):
  """All implementations on one case, in turns."""
  with tempfile.TemporaryDirectory() as folder:
    make_model(case, folder)
    workers = {name: start_worker(name, folder, case, args) for name in IMPLEMENTATIONS}
  counts = {name: (args.threads,) if name == 'llm_jax' else sorted({1, args.threads}) for name in IMPLEMENTATIONS}
  keys = [(batch, name, threads) for batch in args.batches for name in IMPLEMENTATIONS for threads in counts[name]]
  clean, dirty = {key: [] for key in keys}, {key: [] for key in keys}
  deadline = time.monotonic() + args.max_seconds
  while time.monotonic() < deadline and (todo := [key for key in keys if len(clean[key]) < args.rounds]):
    for batch, name, threads in todo:
      seconds, others = take_turn(workers[name][0], batch, threads)
      (clean if others <= args.max_other else dirty)[batch, name, threads].append(seconds)
  for process, _ in workers.values():
    process.communicate('end\n')
  facts = {name: fact for name, (_, fact) in workers.items()}
  return {f'batch {batch}': summary(batch, clean, dirty, facts, args.rounds) for batch in args.batches}


def summary(batch, clean, dirty, facts, rounds):
  result = {}
  for name in IMPLEMENTATIONS:
    if facts[name]['tokens'][str(batch)] != facts['llm_jax']['tokens'][str(batch)]:
      raise SystemExit(f'batch {batch}: {name} and llm_jax generate different tokens')
    keys = [key for key in clean if key[:2] == (batch, name)]
    turns = {key: clean[key] or dirty[key] for key in keys}
    best = min((key for key in keys if turns[key]), key=lambda key: statistics.median(turns[key]))
    result[name] = {'tokens_per_second': batch * NEW / statistics.median(turns[best]),
                    'best_tokens_per_second': batch * NEW / min(turns[best]), 'threads': best[2],
                    'contended': min(len(clean[key]) for key in keys) < rounds,
                    'clean_turns': {key[2]: len(clean[key]) for key in keys},
                    'dropped_turns': {key[2]: len(dirty[key]) for key in keys},
                    'first_call_seconds': facts[name]['first_call_seconds'][str(batch)]}
  for name in IMPLEMENTATIONS[1:]:
    result[name]['ratio'] = {kind: result['llm_jax'][kind] / result[name][kind]
                             for kind in ('tokens_per_second', 'best_tokens_per_second')}
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cases', nargs='+', default=list(CASES), choices=list(CASES))
  parser.add_argument('--batches', nargs='+', type=int, default=[1, 8])
  parser.add_argument('--rounds', type=int, default=8, help='clean turns each implementation takes')
  parser.add_argument('--max_other', type=float, default=0.1, help='cores that others may use during a clean turn')
  parser.add_argument('--max_seconds', type=float, default=300, help='a case, after which it counts as contended')
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in benchmarks/results/decode/')
  parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return worker(*args.worker, args.cases[0], args.batches, args.threads)

  results = {'machine': machine(), 'threads': args.threads,
             'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
             'prompt_tokens': PROMPT, 'new_tokens': NEW, 'rounds': args.rounds, 'cases': {}}
  for case in args.cases:
    results['cases'][case] = measure(case, args)
    for batch, result in results['cases'][case].items():
      for name, r in result.items():
        ratio = (f"  llm_jax is {r['ratio']['tokens_per_second']:.2f} x as fast (best to best "
                 f"{r['ratio']['best_tokens_per_second']:.2f})" if 'ratio' in r else '')
        ratio += '  CONTENDED' if r['contended'] else ''
        print(f"{case:12} {batch:8} {name:20} {r['tokens_per_second']:8.0f} tokens/s (best "
              f"{r['best_tokens_per_second']:.0f}, {r['threads']} threads)  first call "
              f"{r['first_call_seconds']:.1f} s{ratio}", flush=True)
  if any(r['contended'] for case in results['cases'].values() for batch in case.values() for r in batch.values()):
    print('other processes were running: no results written; run it again on a quiet machine')
    return 1
  write_results('decode', results, args.output)


if __name__ == '__main__':
  sys.exit(main())
