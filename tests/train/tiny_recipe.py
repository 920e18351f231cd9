"""A whole recipe of a few seconds, for tests: pretrain, anneal, average, SFT, DPO. FOLDER holds its four files."""
from llm_jax.config.experiment import (
  BPE,
  DPO,
  Answers,
  Average,
  Checkpoints,
  Constant,
  Conversations,
  Generations,
  HeldOut,
  Jsonl,
  LinearToZero,
  MultipleChoice,
  Params,
  Preferences,
  Ramp,
  Resume,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(folder):
  text = Jsonl(f'{folder}/text.jsonl', val_fraction=0.1)
  rows = dict(seq_len=48, batch_size=8)
  return experiment(
    seed=1,
    tokenizer=BPE(vocab_size=300, special_tokens=('<|im_start|>', '<|im_end|>')),
    model=presets.llama(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=304),
    checkpoints=Checkpoints(every=4, keep=3),
    stages=(
      stage('pretrain', mix(text, (Jsonl(f'{folder}/text.jsonl', field='text', val_fraction=0.0),
                                 ((0, 0.0), (1, 1.0)))),
            seq_len=24, batch_size=8, ramp=(Ramp(tokens=6 * 8 * 24, batch_size=12, seq_len=48),), steps=12,
            learning_rate=Constant(3e-3, warmup=4)),
      stage('anneal', text, **rows, steps=12, learning_rate=LinearToZero(3e-3), init=Resume('pretrain')),
      stage('average', text, **rows, steps=0, learning_rate=Constant(0.0), init=Average('anneal', last=3)),
      stage('sft', mix(Conversations(f'{folder}/chats.jsonl', val_fraction=0.1), packing='best_fit'), **rows, steps=12,
            learning_rate=Constant(3e-3), init=Params('average'),
            evals=(HeldOut(every=6), Generations(('def f',)), Answers(),
                   MultipleChoice(f'{folder}/questions.jsonl', delimiter='\n'))),
      stage('dpo', Preferences(f'{folder}/pairs.jsonl', val_fraction=0.1), **rows, steps=12,
            evals=(HeldOut(every=6),),
            objective=DPO(nll_weight=0.2), learning_rate=Constant(3e-3), init=Params('sft')),
    ),
  )
