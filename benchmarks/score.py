"""Few-shot multiple choice against lm-evaluation-harness's `hf` backend, and samples that share a prompt against such
that do not: seconds, side by side in one run.

python -m benchmarks.score [--cases llama gemma2 samples] [--kinds text letters] [--rounds 3]

The harness's own adapters answer the same requests: ours and `hf`, on the same folder (a random model of transformers),
in float32 and in batches of 16, each in a process of its own, warmed up. They take turns. Every process computes on one
core, so that its CPU seconds are the seconds it would take on a machine that does nothing else; these are compared.
The scores must be the same: another choice, or a log-probability that differs by more than rounding, is an error.

Requests: questions with three choices each behind five examples, the same for all questions ('text', 'letters', the
latter one token long) or other ones for each ('own examples').
"""
import argparse
import importlib.metadata
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import machine
from benchmarks.records import write_results

QUESTIONS, SHOTS, BATCH, LENGTH = 60, 5, 16, 2_048
PROMPT, SAMPLES, NEW = 600, 16, 48
SAMPLES_CASE = 'samples'  # of llama
SIZE = dict(vocab_size=4_096, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
            intermediate_size=688, max_position_embeddings=LENGTH, rms_norm_eps=1e-5)
CASES = {
    'llama': dict(model_type='llama', **SIZE),
    'gemma2': dict(model_type='gemma2', head_dim=32, query_pre_attn_scalar=32, sliding_window=128, **SIZE),
}
KINDS = ('text', 'letters', 'own examples')
PACKAGES = ('jax', 'jaxlib', 'flax', 'torch', 'transformers', 'lm_eval')
WORDS = ('river stone house light green winter paper garden music window bread ocean forest silver morning letter '
         'bridge summer candle market').split()


# ---------------------------------------------------------------------------------------------- both sides
def make_folder(case, folder):
  """A random model and a tokenizer with a token for every word."""
  import torch
  import transformers

  from llm_jax.data.tokenizers.byte_level import train
  from llm_jax.hf.tokenizer import tokenizer_files
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(**CASES[case], initializer_range=0.1, bos_token_id=0, eos_token_id=0,
                                             pad_token_id=0)
  transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
  tokenizer = train((text for text, _ in requests('text')), 512, 'gpt2')
  tokenizer.save(folder / 'ours')
  for name, content in tokenizer_files(tokenizer).items():
    (folder / name).write_bytes(content)


def requests(kind):
  """(context, continuation) of every choice of every question."""
  draw = random.Random(0)
  sentence = lambda count: ' '.join(draw.choices(WORDS, k=count))
  count = QUESTIONS + SHOTS * (QUESTIONS if kind == 'own examples' else 1)
  items = [(sentence(draw.randint(40, 70)), [sentence(draw.randint(2, 6)) for _ in range(3)]) for _ in range(count)]
  shots, asked = items[QUESTIONS:], items[:QUESTIONS]

  def put(item):
    question, choices = item
    listed = ''.join(f'\n{letter}. {choice}' for letter, choice in zip('ABC', choices, strict=True))
    return f'{question}{listed if kind == "letters" else ""}\nAnswer:'

  found = []
  for i, item in enumerate(asked):
    examples = shots[i * SHOTS:(i + 1) * SHOTS] if kind == 'own examples' else shots
    before = ''.join(f'{put(example)} {"A" if kind == "letters" else example[1][0]}\n\n' for example in examples)
    choices = 'ABC' if kind == 'letters' else item[1]
    found += [(before + put(item), f' {choice}') for choice in choices]
  return found


def build_llm_jax(folder):
  import jax

  from llm_jax import hf
  from llm_jax.data.tokenizers.base import load_tokenizer
  from llm_jax.harness.model import HarnessModel, Reader
  from llm_jax.harness.text import HarnessText
  from llm_jax.modules.execution import Execution
  config, params = hf.load_pretrained(folder)
  tokenizer = load_tokenizer(folder / 'ours')
  text = HarnessText(tokenizer, None, True, config.vocab_size, LENGTH)
  return HarnessModel(text, Reader(config, jax.device_put(params), Execution(), (tokenizer.eot,), BATCH))


def build_hf(folder):
  import torch
  from lm_eval.models.huggingface import HFLM
  torch.set_num_threads(1)
  return HFLM(str(folder), device='cpu', dtype='float32', batch_size=BATCH, max_length=LENGTH)


BUILD = {'llm_jax': build_llm_jax, 'hf': build_hf}


# ---------------------------------------------------------------------------------------------- processes
def worker(name, folder):
  """Answers lines on stdin, a kind of requests each, with the seconds of one call and the scores."""
  from lm_eval.api.instance import Instance
  model = BUILD[name](pathlib.Path(folder))
  print('ready', flush=True)
  for line in sys.stdin:
    kind = line.strip()
    instances = [Instance('loglikelihood', {}, pair, i) for i, pair in enumerate(requests(kind))]
    wall, cpu = time.perf_counter(), time.process_time()
    scores = model.loglikelihood(instances, disable_tqdm=True)
    taken = time.process_time() - cpu, time.perf_counter() - wall
    print('answer ' + json.dumps([*taken, [float(score) for score, _ in scores]]), flush=True)


def samples_worker(folder):
  """Prints the seconds of samples that share a prompt, and of such that do not, in turns."""
  import jax

  import llm_jax
  from llm_jax import hf
  from llm_jax.decode.sampling import Sampling
  config, params = hf.load_pretrained(folder)
  params = jax.device_put(params)
  prompt = [random.Random(0).randrange(1, 500) for _ in range(PROMPT)]
  options = dict(sampling=Sampling(0.8), rng=jax.random.key(0))
  calls = {
    'shared': lambda: llm_jax.generate(config, params, [prompt], NEW, samples=SAMPLES, **options),
    'apart': lambda: llm_jax.generate(config, params, [prompt] * SAMPLES, NEW, **options),
  }
  drawn = {name: call().tokens for name, call in calls.items()}  # which compiles
  assert drawn['shared'] == drawn['apart'], 'the samples differ'
  for line in sys.stdin:
    start = time.process_time()
    calls[line.strip()]()
    print('answer ' + json.dumps(time.process_time() - start), flush=True)


def start(words, core):
  env = {**os.environ, 'OMP_NUM_THREADS': '1', 'JAX_PLATFORMS': 'cpu', 'TQDM_DISABLE': '1'}
  return subprocess.Popen(
    ['taskset', '-c', str(core), sys.executable, '-m', 'benchmarks.score', '--worker', *words], env=env, text=True,
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def answer(process, line):
  process.stdin.write(line + '\n')
  process.stdin.flush()
  for text in process.stdout:
    if text.startswith('answer '):
      return json.loads(text.removeprefix('answer '))
  raise RuntimeError(f'a worker ended with {process.wait()}')


def check_equal(ours, theirs):
  for one, other in zip(ours, theirs, strict=True):
    assert abs(one - other) <= 1e-6 * abs(other) + 1e-4, (one, other)


def compare(folder, kinds, rounds, core):
  """By kind, the median seconds of both and their ratio."""
  workers = {name: start([name, str(folder)], core) for name in BUILD}
  found = {}
  for kind in kinds:
    first = {name: answer(process, kind) for name, process in workers.items()}
    check_equal(first['llm_jax'][2], first['hf'][2])
    turns = {name: [] for name in workers}
    for _ in range(rounds):
      for name, process in workers.items():
        turns[name].append(answer(process, kind)[0])
    medians = {name: statistics.median(seconds) for name, seconds in turns.items()}
    found[kind] = {
      'cpu_seconds': medians, 'first_call_cpu_seconds': {name: values[0] for name, values in first.items()},
      'hf_over_llm_jax': medians['hf'] / medians['llm_jax']}
    print(kind, json.dumps(found[kind]), flush=True)
  for process in workers.values():
    process.stdin.close()
    process.wait()
  return found


def compare_samples(folder, rounds, core):
  process = start([SAMPLES_CASE, str(folder)], core)
  turns = {'shared': [], 'apart': []}
  for _ in range(rounds):
    for name, seconds in turns.items():
      seconds.append(answer(process, name))
  process.stdin.close()
  process.wait()
  medians = {name: statistics.median(seconds) for name, seconds in turns.items()}
  print('samples', medians, flush=True)
  return {'cpu_seconds': medians, 'apart_over_shared': medians['apart'] / medians['shared']}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cases', nargs='+', default=[*CASES, SAMPLES_CASE], choices=[*CASES, SAMPLES_CASE])
  parser.add_argument('--kinds', nargs='+', default=KINDS, choices=KINDS, help='of requests')
  parser.add_argument('--rounds', type=int, default=3, help='turns of each implementation')
  parser.add_argument('--core', type=int, default=0, help='that everything is computed on')
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file under benchmarks/results/score')
  parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    name, folder = args.worker
    samples_worker(folder) if name == SAMPLES_CASE else worker(name, folder)
    return
  results = {'machine': machine(), 'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
             'questions': QUESTIONS, 'shots': SHOTS, 'batch': BATCH, 'rounds': args.rounds, 'cases': {}}
  for case in args.cases:
    with tempfile.TemporaryDirectory() as parent:
      folder = pathlib.Path(parent)
      make_folder('llama' if case == SAMPLES_CASE else case, folder)
      if case == SAMPLES_CASE:
        results['samples'] = compare_samples(folder, args.rounds, args.core)
      else:
        results['cases'][case] = compare(folder, args.kinds, args.rounds, args.core)
  write_results('score', results, args.output)


if __name__ == '__main__':
  main()
