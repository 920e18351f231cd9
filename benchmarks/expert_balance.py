"""How evenly a mixture of experts is used with the auxiliary-loss-free balance bias, and without it.

python -m benchmarks.expert_balance [--steps 200] [--bias_rate 0.01]

A byte-level decoder with DeepSeek-V3's routing (16 experts, 2 chosen, sigmoid scores) is trained twice on the Python
files of the standard library, same initial parameters and same batches, once with bias_rate 0. The sequence-wise loss
is off in both, so that nothing but the bias balances. Load spread is the fullest expert's load over the mean in one
step, averaged over the layers (DeepSeek-V3, section 4.5.3, calls it relative expert load): 1 is perfect balance, 8 is
two experts that do all.

Written: the curves, and a picture of them beside their file. The pace of training is not measured.
"""
import argparse
import pathlib

from benchmarks.machine import machine
from benchmarks.records import write_results

EXPERTS, CHOSEN, BATCH, SEQ_LEN, WIDTH, LAYERS = 16, 2, 8, 128, 64, 2


def text():
  """The standard library's bytes, one file after another."""
  import numpy as np

  from llm_jax.config.sources import StandardLibrary
  from llm_jax.data.sources.documents import open_source
  documents = [content.encode() for _, content in open_source(StandardLibrary()).documents('train')]
  return np.frombuffer(b'\0'.join(documents), np.uint8)


def train(bias_rate, steps, data):
  """Load spread and nll (nats a byte) of every step."""
  import jax
  import numpy as np

  from llm_jax.batch import LanguageModelBatch
  from llm_jax.config.model.architecture import (
    GLU,
    Architecture,
    Attention,
    Block,
    MixtureOfExperts,
    RMSNorm,
    RoPE,
    SigmoidRouter,
  )
  from llm_jax.config.optimizers import AdamW
  from llm_jax.config.schedules import Constant
  from llm_jax.modules.transformer import Transformer
  from llm_jax.objectives.language_model import LanguageModelObjective
  from llm_jax.optim.optimizers import make_optimizer
  from llm_jax.optim.schedules import make_schedule
  from llm_jax.train.state import TrainState
  from llm_jax.train.step import make_train_step

  router = SigmoidRouter(bias_rate=bias_rate, sequence_balance_weight=0.0)
  mixture = MixtureOfExperts(EXPERTS, CHOSEN, GLU(WIDTH), router, shared=GLU(WIDTH))
  block = Block(Attention(4), mixture, RMSNorm())
  model = Transformer(Architecture(256, WIDTH, LAYERS, pattern=(block,), positions=RoPE(), norm=RMSNorm(),
                                   tied_head=False))
  params = model.init(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  optimizer = make_optimizer(AdamW(), params)
  step = jax.jit(make_train_step(LanguageModelObjective(model), optimizer, make_schedule(Constant(3e-3, 20), steps),
                                 clip_norm=1.0), donate_argnums=0)
  state, random = TrainState.create(params, optimizer, ema=False), np.random.default_rng(0)
  ones = np.ones((BATCH, SEQ_LEN), np.int32)
  positions = np.broadcast_to(np.arange(SEQ_LEN, dtype=np.int32), ones.shape)
  spread, nll = [], []
  for _ in range(steps):
    starts = random.integers(0, len(data) - SEQ_LEN - 1, BATCH)
    ids = data[starts[:, None] + np.arange(SEQ_LEN + 1)].astype(np.int32)
    batch = LanguageModelBatch(ids[:, :-1], ids[:, 1:], ones.astype(np.float32), positions, ones)
    state, metrics = step(state, None, batch)
    spread.append(round(float(metrics['load_spread']), 4))
    nll.append(round(float(metrics['nll']), 4))
  return {'load_spread': spread, 'nll': nll}


def plot(results, path):
  import matplotlib
  matplotlib.use('svg')
  import matplotlib.pyplot as plt
  matplotlib.rcParams.update({'svg.hashsalt': 'llm_jax', 'svg.fonttype': 'none', 'font.size': 10})
  figure, axes = plt.subplots(figsize=(6.4, 3.4))
  steps = range(1, results['steps'] + 1)
  for name, label, color in (('without_bias', 'without balance bias', '#c0504d'), ('with_bias', 'with', '#1f77b4')):
    axes.plot(steps, results[name]['load_spread'], label=label, color=color, linewidth=1.4)
  axes.axhline(1, color='0.6', linewidth=0.8, linestyle=':')
  axes.set(xlabel='step', ylabel='load of the fullest expert / mean', ylim=(0.8, None),
           title=f'{EXPERTS} experts, {CHOSEN} a token, standard library, bias rate {results["bias_rate"]}')
  axes.legend(frameon=False)
  axes.spines[['top', 'right']].set_visible(False)
  figure.tight_layout()
  figure.savefig(path, metadata={'Date': None})


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--bias_rate', type=float, default=0.01)
  parser.add_argument('--output', type=pathlib.Path, help='default: a new file in benchmarks/results/expert_balance/')
  args = parser.parse_args()
  data = text()
  results = {'machine': machine(), 'steps': args.steps, 'experts': EXPERTS,
             'chosen': CHOSEN, 'tokens_per_step': BATCH * SEQ_LEN, 'bias_rate': args.bias_rate}
  for name, rate in (('without_bias', 0.0), ('with_bias', args.bias_rate)):
    curves = train(rate, args.steps, data)
    last = {key: sum(values[-20:]) / len(values[-20:]) for key, values in curves.items()}
    results[name] = {**curves, 'last_20_steps': {key: round(value, 4) for key, value in last.items()}}
    print(f"{name:13} load spread {curves['load_spread'][0]:.2f} at the first step, {last['load_spread']:.2f} in the "
          f"last 20; nll {last['nll']:.3f}", flush=True)
  path = write_results('expert_balance', results, args.output)
  plot(results, path.with_suffix('.svg'))


if __name__ == '__main__':
  main()
