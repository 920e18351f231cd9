"""Learning from rewards against TRL's GRPOTrainer: answers and whole steps a second, side by side in one run.

python -m benchmarks.rollouts [--cases digits texts] [--rounds 3] [--steps 12] [--threads 2]

Both get the same model (random weights in a folder of transformers), the same prompts, the same reward and the same
settings: GRPO without a reference, 32 prompts with 8 answers a step, one update on all of them, AdamW, float32. Each
turn is a process of its own; ours and TRL's follow one another, `--rounds` times. A step is the time from one call of
the reward to the next, which both make once a step; a rollout is sampling, scoring, advantages and, for ours, the
log-probabilities that the loss compares with, which TRL leaves out where a rollout is learnt from once. The first
steps of a turn, in which programs are compiled, do not count. TRL generates with transformers' `generate`, and takes
the better of 1 and --threads threads; ours takes the better of 1 and so many devices of the CPU (`--cpu_devices`).

Beside the seconds stand those of the processor, which other processes of the machine do not lengthen as much, and the
share of the tokens of a training step that is padding. `digits` has prompts of 7 bytes and answers of up to 8 tokens;
`texts` has prompts of 16 to 96 bytes and answers of up to 64.
"""
import argparse
import dataclasses
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

PROMPTS, ANSWERS, RATE = 32, 8, 3e-4
WARM = 4  # steps of a turn that do not count
UNITS = {'llm_jax': 'devices', 'trl': 'threads'}
PACKAGES = ('jax', 'jaxlib', 'flax', 'torch', 'transformers', 'trl')


@dataclasses.dataclass(frozen=True)
class Case:
  """prompt_bytes: the shortest and the longest prompt.   seq_len: of our rows, which answers share."""
  d_model: int
  layers: int
  heads: int
  prompt_bytes: tuple[int, int]
  new_tokens: int
  seq_len: int


CASES = {'digits': Case(64, 2, 4, (7, 7), 8, 16), 'texts': Case(128, 4, 4, (16, 96), 64, 320)}


@dataclasses.dataclass
class Turn:
  """Of each step that counts: seconds, seconds of the processor; the same of its rollout; and its padding."""
  steps: list[float]
  step_cpu: list[float]
  rollouts: list[float]
  rollout_cpu: list[float]
  padding: list[float]


# ---------------------------------------------------------------------------------------------- both sides
def write_inputs(case: Case, folder: pathlib.Path) -> None:
  """A model with its tokenizer, and prompts with their right answers."""
  import jax
  import jax.numpy as jnp

  from llm_jax import hf
  from llm_jax.config import presets
  from llm_jax.data.tokenizers.byte_level import ByteTokenizer
  from llm_jax.modules.execution import Execution
  from llm_jax.modules.transformer import Transformer
  tokenizer = ByteTokenizer()
  config = presets.llama(case.d_model, case.layers, case.heads, vocab_size=tokenizer.vocab_size, tied_head=True)
  params = Transformer(config, Execution(unroll=False)).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  hf.save_pretrained(folder / 'model', config, jax.device_get(params), eos=tokenizer.eot,
                     extra=hf.tokenizer_files(tokenizer))
  rng = random.Random(0)
  rows = []
  for _ in range(4_000):
    text = ''.join(rng.choices('0123456789', k=rng.randint(*case.prompt_bytes) - 1))
    rows.append({'prompt': f'{text}>', 'answer': ''.join(sorted(text))[:case.new_tokens - 1]})
  (folder / 'prompts.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


class Stamps:
  """When the reward was called, and how long rollouts took, in seconds and in those of the processor."""

  def __init__(self):
    self.calls: list[tuple[float, float]] = []
    self.rollouts: list[tuple[float, float]] = []

  def reward(self, given: list[str], right: list[str]) -> list[float]:
    """Part of the digits that stand in their places: a spread of rewards, so that there is something to learn."""
    self.calls.append((time.perf_counter(), time.process_time()))
    return [sum(a == b for a, b in zip(text, want, strict=False)) / len(want)
            for text, want in zip(given, right, strict=True)]

  def timed(self, function):
    """The function that makes a rollout, with its time noted."""
    def run(*args, **kwargs):
      since = time.perf_counter(), time.process_time()
      found = function(*args, **kwargs)
      self.rollouts.append((time.perf_counter() - since[0], time.process_time() - since[1]))
      return found
    return run

  def turn(self, padding: list[float]) -> Turn:
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.calls, self.calls[1:], strict=False)][WARM:]
    rollouts = self.rollouts[WARM:]
    return Turn([wall for wall, _ in steps], [cpu for _, cpu in steps], [wall for wall, _ in rollouts],
                [cpu for _, cpu in rollouts], padding[WARM:])


STAMPS = Stamps()


def reward_of_ours(prompts, answers, answer, **columns):
  return STAMPS.reward(answers, answer)


def run_ours(case: Case, folder: pathlib.Path, steps: int) -> Turn:
  import jax

  from benchmarks import rollouts as this  # the module that the reward's file names, not `__main__`
  from llm_jax import hf
  from llm_jax.config.experiment import (
    AdamW,
    Bytes,
    Checkpoints,
    Constant,
    Function,
    HuggingFace,
    Prompts,
    Rollout,
    grpo,
    mix,
  )
  from llm_jax.config.run import Run
  from llm_jax.config.stage import Stage
  from llm_jax.rollout.source import RolloutSource
  from llm_jax.runtime import cpu
  from llm_jax.tracking.metrics import read_metrics
  from llm_jax.train.run import train
  cpu.compute_in_calling_thread()  # as launch.train does
  make = this.STAMPS.timed(RolloutSource.make)

  def make_after_step(source, number, params, frozen):
    jax.block_until_ready(params)  # the step before is no part of the rollout
    return make(source, number, params, frozen)

  RolloutSource.make = make_after_step
  (folder / 'rewards.py').write_text('from benchmarks.rollouts import reward_of_ours as score\n')
  rollout = Rollout((Function(f'{folder}/rewards.py:score'),), answers=ANSWERS, max_new_tokens=case.new_tokens,
                    samples_every=0)
  stage = Stage('grpo', mix(Prompts(f'{folder}/prompts.jsonl', template=None)), steps=steps, seq_len=case.seq_len,
                batch_size=PROMPTS * ANSWERS, learning_rate=Constant(peak=RATE), objective=grpo(), rollout=rollout,
                optimizer=AdamW(weight_decay=0.0), init=HuggingFace(f'{folder}/model'), skip_spikes=None, evals=())
  run = Run(hf.read_config(folder / 'model'), (stage,), tokenizer=Bytes(), checkpoints=Checkpoints(every=0),
            trackers=())
  with tempfile.TemporaryDirectory() as workdir:
    train(run, pathlib.Path(workdir))
    padding = [record['padding'] for record in read_metrics(pathlib.Path(workdir)) if record['kind'] == 'train']
  return this.STAMPS.turn(padding)


def run_trl(case: Case, folder: pathlib.Path, steps: int) -> Turn:
  import datasets
  import transformers
  import trl
  transformers.logging.set_verbosity_error()
  rows = [json.loads(line) for line in (folder / 'prompts.jsonl').read_text().splitlines()]
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'model')
  tokenizer.pad_token = tokenizer.eos_token
  args = trl.GRPOConfig(
    output_dir=str(folder / 'trl'), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.0,
    per_device_train_batch_size=PROMPTS * ANSWERS, num_generations=ANSWERS, max_completion_length=case.new_tokens,
    temperature=1.0, top_p=1.0, loss_type='grpo', max_steps=steps, learning_rate=RATE, lr_scheduler_type='constant',
    weight_decay=0.0, save_strategy='no', logging_steps=1_000, disable_tqdm=True, dataloader_num_workers=0)
  trainer = trl.GRPOTrainer(
    transformers.AutoModelForCausalLM.from_pretrained(folder / 'model'),
    lambda completions, answer, **_: STAMPS.reward(completions, answer), args,
    train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
  padding = []
  make = STAMPS.timed(trainer._generate_and_score_completions)

  def make_and_count(inputs):
    found = make(inputs)
    masks = [found['prompt_mask'], found['completion_mask']]
    padding.append(1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks))
    return found

  trainer._generate_and_score_completions = make_and_count
  trainer.train()
  return STAMPS.turn(padding)


# ---------------------------------------------------------------------------------------------- turns
def take_turn(name: str, case: str, folder: pathlib.Path, steps: int, count: int) -> Turn:
  """count: TRL's threads, our devices."""
  from llm_jax.runtime import cpu
  env = {**os.environ, **cpu.ALLOCATOR, 'OMP_NUM_THREADS': str(count), 'JAX_PLATFORMS': 'cpu',
         'LLM_JAX_CACHE': str(folder / 'cache'), 'JAX_COMPILATION_CACHE_DIR': str(folder / 'xla'),
         'JAX_NUM_CPU_DEVICES': str(count)}
  command = [sys.executable, '-m', 'benchmarks.rollouts', '--worker', name, str(folder), '--cases', case, '--steps',
             str(steps)]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f'{name} failed:\n{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}')
  return Turn(**json.loads(done.stdout.splitlines()[-1]))


def summary(turns: list[Turn]) -> dict[str, float]:
  """Medians over the steps of all turns."""
  middle = lambda field: statistics.median(value for turn in turns for value in getattr(turn, field))
  answers = PROMPTS * ANSWERS
  return {
    'rollouts_per_second': answers / middle('rollouts'), 'steps_per_second': 1 / middle('steps'),
    'rollouts_per_cpu_second': answers / middle('rollout_cpu'), 'steps_per_cpu_second': 1 / middle('step_cpu'),
    'padding': statistics.mean(value for turn in turns for value in turn.padding),
    'steps': sum(len(turn.steps) for turn in turns),
  }


def measure(case: str, args: argparse.Namespace) -> dict:
  counts = sorted({1, args.threads})
  turns: dict[tuple[str, int], list[Turn]] = {(name, count): [] for name in UNITS for count in counts}
  with tempfile.TemporaryDirectory() as folder:
    write_inputs(CASES[case], pathlib.Path(folder))
    for _ in range(args.rounds):
      for name, count in turns:
        turns[name, count].append(take_turn(name, case, pathlib.Path(folder), args.steps, count))
  found = {name: max((summary(turns[name, count]) | {unit: count} for count in counts),
                     key=lambda each: each['steps_per_second']) for name, unit in UNITS.items()}
  names = ('rollouts_per_second', 'steps_per_second', 'rollouts_per_cpu_second', 'steps_per_cpu_second')
  found['ratio'] = {name: found['llm_jax'][name] / found['trl'][name] for name in names}
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cases', nargs='+', default=list(CASES), choices=list(CASES))
  parser.add_argument('--rounds', type=int, default=3, help='turns of each')
  parser.add_argument('--steps', type=int, default=12, help='of a turn')
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in benchmarks/results/rollouts/')
  parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    name, folder = args.worker
    run = {'llm_jax': run_ours, 'trl': run_trl}[name]
    print(json.dumps(dataclasses.asdict(run(CASES[args.cases[0]], pathlib.Path(folder), args.steps))))
    return 0
  results = {'machine': machine(), 'threads': args.threads, 'prompts': PROMPTS, 'answers': ANSWERS,
             'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
             'rounds': args.rounds, 'load': os.getloadavg()[0], 'cases': {}}
  for case in args.cases:
    found = results['cases'][case] = measure(case, args)
    for name in UNITS:
      each = found[name]
      print(f'{case:7} {name:8} {each["rollouts_per_second"]:8.1f} answers/s {each["steps_per_second"]:6.3f} steps/s   '
            f'of the processor {each["rollouts_per_cpu_second"]:8.1f} and {each["steps_per_cpu_second"]:6.3f}   '
            f'padding {each["padding"]:.1%}', flush=True)
    ratios = '  '.join(f'{name} {ratio:.2f}x' for name, ratio in found['ratio'].items())
    print(f'{case:7} ratios   {ratios}', flush=True)
  write_results('rollouts', results, args.output)
  return 0


if __name__ == '__main__':
  sys.exit(main())
