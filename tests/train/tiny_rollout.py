"""A run of a few seconds that learns from its own answers, for tests. The argument is not read."""
from llm_jax.config.experiment import (
  PPO,
  Bytes,
  Checkpoints,
  Constant,
  DigitTexts,
  Exact,
  KLInLoss,
  LoRA,
  Mesh,
  Params,
  PassRate,
  PolicyGradient,
  Regex,
  Rollout,
  SortedDigits,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(argument):
  rows = dict(steps=11, seq_len=32, batch_size=8, learning_rate=Constant(peak=2e-3), skip_spikes=None)
  rollout = Rollout((Exact(), Regex('[0-4]', weight=0.5)), answers=4, max_new_tokens=6, temperature=0.9, minibatches=2,
                    replays=2, rows_at_once=8, samples_every=1)
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=264, dropout=0.1),
    mesh=Mesh(data=-1),
    checkpoints=Checkpoints(every=3, keep=2),
    stages=(
      stage('texts', mix(DigitTexts(digits=3, count=400), packing='best_fit'), seq_len=32, batch_size=16, steps=12,
            learning_rate=Constant(peak=1e-2)),
      stage('rewards', SortedDigits(digits=3, count=200), **rows, objective=PolicyGradient(kl=KLInLoss(0.01)),
            rollout=rollout, init=Params('texts'), microbatches=2, evals=(PassRate(every=5, prompts=8, samples=2),)),
      stage('adapters', SortedDigits(digits=3, count=200), **rows, objective=PolicyGradient(kl=KLInLoss(0.01)),
            rollout=rollout, init=Params('rewards'), adapters=LoRA(rank=2), evals=()),
      stage('critic', SortedDigits(digits=3, count=200), **rows, objective=PPO(), rollout=rollout, init=Params('texts'),
            evals=(PassRate(prompts=8, temperature=1e-3),)),
    ),
  )
