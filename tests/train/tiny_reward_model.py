"""Two reward models and PPO on them in a few seconds, for tests: FOLDER holds prompts.jsonl and pairs.jsonl. With
FOLDER,WORKDIR a third model is that of another run."""
from llm_jax.config.experiment import (
  PPO,
  Bytes,
  Checkpoints,
  Constant,
  KLInReward,
  LoRA,
  Params,
  PassRate,
  Preferences,
  Prompts,
  Regex,
  RewardModel,
  RewardModelScore,
  Rollout,
  SavedRun,
  experiment,
  presets,
  stage,
)


def get_config(argument):
  folder, _, other = argument.partition(',')
  pairs = Preferences(f'{folder}/pairs.jsonl', template='plain', val_fraction=0.2)
  rows = dict(seq_len=32, batch_size=8, learning_rate=Constant(1e-2))
  rewards = (RewardModelScore(Params('helpful')), RewardModelScore(Params('safe'), 'safety', weight=0.5),
             Regex('e', weight=0.0))
  if other:
    rewards = (*rewards, RewardModelScore(SavedRun(other, 'safe'), 'other'))
  return experiment(
    seed=1,
    tokenizer=Bytes(),
    model=presets.llama(d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, d_ff=32, vocab_size=264),
    checkpoints=Checkpoints(every=3, keep=2),
    stages=(
      stage('helpful', pairs, **rows, steps=4, objective=RewardModel(center=0.01)),
      stage('safe', pairs, **rows, steps=4, objective=RewardModel(), init=Params('helpful'),
            adapters=LoRA(rank=2)),
      stage('ppo', Prompts(f'{folder}/prompts.jsonl', template='plain', val_fraction=0.2), **rows, steps=7,
            objective=PPO(kl=KLInReward(0.05)), init=Params('helpful'),
            rollout=Rollout(rewards, answers=2, max_new_tokens=5, minibatches=2, replays=2, samples_every=1),
            evals=(PassRate(prompts=5, reward='regex'),)),
    ),
  )
