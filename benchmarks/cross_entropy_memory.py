"""Memory of a training step with a vocabulary of 32,000: chunked cross-entropy against materialised logits.

python -m benchmarks.cross_entropy_memory [--batch 4] [--seq_len 512] [--steps 2]

The same Llama-like decoder (6 layers, width 384, 12 million parameters in the head) and the same train step, once with
`LanguageModelObjective` and once with a loss that computes the logits [batch, time, vocab] and hands them to Optax.
Each runs in a process of its own. Printed: what XLA plans for temporaries, the process's peak resident memory (imports
and compilation included) and the loss, which must agree.
"""
import argparse
import json
import pathlib
import subprocess
import sys

VOCAB = 32_000


def materialised_objective(model):
  """The textbook loss."""
  import optax

  from llm_jax.config.objectives import LanguageModel
  from llm_jax.objectives.loss import Loss
  from llm_jax.objectives.protocol import Objective

  class Materialised(Objective):
    def __call__(self, params, frozen, batch, rng, statistics=None):
      logits_BTV = self.model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids)
      nll_BT = optax.losses.softmax_cross_entropy_with_integer_labels(logits_BTV, batch.targets)
      return Loss((nll_BT * batch.weights).sum(), batch.weights.sum(), {})

  return Materialised(model, LanguageModel())


def worker(name, args):
  import jax
  import numpy as np

  from benchmarks.train_step import peak_memory
  from llm_jax.batch import LanguageModelBatch
  from llm_jax.config import presets
  from llm_jax.config.optimizers import AdamW
  from llm_jax.config.schedules import Constant
  from llm_jax.modules.transformer import Transformer
  from llm_jax.objectives.language_model import LanguageModelObjective
  from llm_jax.optim.optimizers import make_optimizer
  from llm_jax.optim.schedules import make_schedule
  from llm_jax.runtime import cpu
  from llm_jax.train.state import TrainState
  from llm_jax.train.step import make_train_step

  model = Transformer(presets.llama(384, 6, 6, 2, d_ff=1024, vocab_size=VOCAB))
  init = lambda: model.init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  optimizer = make_optimizer(AdamW(), jax.eval_shape(init))
  state = jax.jit(lambda: TrainState.create(init(), optimizer, ema=False))()
  objective = LanguageModelObjective(model) if name == 'chunked' else materialised_objective(model)
  ids = np.random.default_rng(1).integers(0, VOCAB, (args.batch, args.seq_len + 1)).astype(np.int32)
  ones = np.ones((args.batch, args.seq_len), np.int32)
  positions = np.broadcast_to(np.arange(args.seq_len, dtype=np.int32), ones.shape)
  batch = LanguageModelBatch(ids[:, :-1], ids[:, 1:], ones.astype(np.float32), positions, ones)

  step = jax.jit(make_train_step(objective, optimizer, make_schedule(Constant(3e-4), 1_000)), donate_argnums=0)
  with cpu.releasing_memory():
    step = step.lower(state, None, batch).compile()
  losses = []
  for _ in range(args.steps):
    state, metrics = step(state, None, batch)
    losses.append(float(metrics['loss']))
  print(json.dumps({'temporaries_mib': step.memory_analysis().temp_size_in_bytes / 2**20,
                    'peak_memory_mib': peak_memory() / 2**20, 'losses': losses}))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--seq_len', type=int, default=512)
  parser.add_argument('--steps', type=int, default=2)
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in results/cross_entropy_memory/')
  parser.add_argument('--worker', choices=('chunked', 'materialised'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return worker(args.worker, args)

  from benchmarks.machine import machine
  from benchmarks.records import write_results
  results = {'machine': machine(), 'vocab': VOCAB, 'batch': args.batch,
             'seq_len': args.seq_len, 'logits_mib': 4 * args.batch * args.seq_len * VOCAB / 2**20}
  print(f"logits of the whole batch: {results['logits_mib']:.0f} MiB")
  for name in ('materialised', 'chunked'):
    command = [sys.executable, '-m', 'benchmarks.cross_entropy_memory', '--worker', name,
               '--batch', args.batch, '--seq_len', args.seq_len,
               '--steps', args.steps]
    out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    r = results[name] = json.loads(out)
    print(f"{name:13} temporaries {r['temporaries_mib']:6.0f} MiB   peak memory {r['peak_memory_mib']:6.0f} MiB   "
          f"loss {r['losses'][0]:.6f} .. {r['losses'][-1]:.6f}", flush=True)
  a, b = results['chunked'], results['materialised']
  print(f"{'ratio':13} temporaries {a['temporaries_mib'] / b['temporaries_mib']:6.2f}       peak memory "
        f"{a['peak_memory_mib'] / b['peak_memory_mib']:6.2f}")
  write_results('cross_entropy_memory', results, args.output)


if __name__ == '__main__':
  main()
