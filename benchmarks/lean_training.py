"""Losses with parameters and moments in fewer bits, beside those with everything in float32.

python -m benchmarks.lean_training FILE.txt [--steps 2000] [--width 64] [--seeds 1]

FILE.txt is tiny Shakespeare or another text; its last tenth is held out. The setting of
`experiments/shakespeare_char.py`, with half the layers and half the width so that it takes minutes. Every choice reads
the same data in the same order. Printed: the held-out loss of each after the last step, over that in float32.
"""
import argparse
import dataclasses
import pathlib
import tempfile

from benchmarks.machine import machine
from benchmarks.records import write_results
from llm_jax.config.experiment import AdamW, Bytes, Checkpoints, Cosine, HeldOut, Text, mix, presets
from llm_jax.config.optimizers import Optimizer
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.tracking.metrics import read_metrics
from llm_jax.train.run import train

LAYERS, HEADS, TIME, ROWS = 2, 4, 64, 12
FULL = 'float32'


@dataclasses.dataclass(frozen=True)
class Choice:
  """parameters: how they are stored, as in `Stage`."""
  parameters: str
  optimizer: Optimizer


CHOICES = {
  FULL: Choice('float32', AdamW(b2=0.99)),
  'bfloat16 parameters': Choice('bfloat16', AdamW(b2=0.99)),
  'int8 moments': Choice('float32', AdamW(b2=0.99, moments='int8')),
  'bfloat16 parameters, int8 moments': Choice('bfloat16', AdamW(b2=0.99, moments='int8')),
}


def make_run(choice: Choice, path: str, steps: int, width: int, seed: int) -> Run:
  stage = Stage('pretrain', mix(Text(path, val_fraction=0.1)), steps=steps, seq_len=TIME, batch_size=ROWS,
                learning_rate=Cosine(peak=4e-3, warmup=100, final=0.0), evals=(HeldOut(),),
                parameters=choice.parameters, optimizer=choice.optimizer)
  model = presets.gpt2(d_model=width, num_layers=LAYERS, num_heads=HEADS, vocab_size=257, max_length=TIME)
  return Run(model, (stage,), tokenizer=Bytes(), checkpoints=Checkpoints(every=0), seed=seed, log_every=100,
             trackers=())


def held_out_loss(run: Run) -> float:
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder)
    train(run, workdir)
    [final] = [record for record in read_metrics(workdir) if record['kind'] == 'final']
    return final['loss']


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('text', metavar='FILE.txt')
  parser.add_argument('--steps', type=int, default=2_000)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--seeds', type=int, default=1, help='runs of each choice, whose losses are averaged')
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in results/lean_training/')
  args = parser.parse_args()
  means: dict[str, float] = {}
  losses: dict[str, list[float]] = {}
  for name, choice in CHOICES.items():
    runs = [make_run(choice, args.text, args.steps, args.width, seed) for seed in range(args.seeds)]
    losses[name] = [held_out_loss(run) for run in runs]
    means[name] = sum(losses[name]) / args.seeds
    print(f'{name:35} held-out loss {means[name]:.4f}   {means[name] / means[FULL] - 1:+.2%}', flush=True)
  write_results('lean_training', {
    'machine': machine(), 'steps': args.steps, 'width': args.width, 'layers': LAYERS, 'losses': losses, 'means': means})


if __name__ == '__main__':
  main()
