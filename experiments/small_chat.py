"""A Llama of 100M parameters to a chat model on one GPU: pretrain, anneal, average checkpoints, SFT, DPO.

python -m launch.train --config=experiments/small_chat.py:FOLDER --workdir=runs/small_chat

FOLDER holds web/*.jsonl.gz and best/*.jsonl.gz (text under "text"), chats.jsonl ({"messages": [{"role", "content"},
...]}) and pairs.jsonl ({"prompt", "chosen", "rejected"}). The recipe is Llama 3's in small (Dubey et al. 2024, sections
3.4.3 and 4.1): learning rate to zero on the best data, the mean of the last checkpoints, loss on the assistant's turns
alone, then DPO with formatting tokens masked and 0.2 of the chosen answer's log-likelihood.
"""
from llm_jax.config.experiment import (
  BPE,
  DPO,
  AdamW,
  Answers,
  Average,
  Baselines,
  Checkpoints,
  Constant,
  Conversations,
  Cosine,
  Generations,
  HeldOut,
  Jsonl,
  LinearToZero,
  Params,
  Preferences,
  Resume,
  experiment,
  mix,
  presets,
  stage,
)


def get_config(folder):
  web = Jsonl(f'{folder}/web/*.jsonl.gz', val_fraction=0.001)
  best = Jsonl(f'{folder}/best/*.jsonl.gz', val_fraction=0.001)
  held_out = HeldOut(every=500, batches=4)
  rows = dict(seq_len=1_024, batch_size=256, microbatches=8)
  return experiment(
    seed=0,
    tokenizer=BPE(vocab_size=32_768, special_tokens=('<|im_start|>', '<|im_end|>')),
    model=presets.llama(d_model=768, num_layers=12, num_heads=12, num_kv_heads=4, vocab_size=32_768, tied_head=True),
    checkpoints=Checkpoints(every=250, keep=4),
    log_every=10,
    stages=(
      stage('pretrain', web, **rows, steps=10_000, learning_rate=Constant(peak=6e-4, warmup=200),
            evals=(held_out, Generations(('The ',), every=1_000), Baselines())),
      stage('anneal', mix(web, (best, ((0, .1), (1, 2.0)))), **rows, steps=2_000, learning_rate=LinearToZero(peak=6e-4),
            init=Resume('pretrain'), evals=(held_out, Baselines())),
      stage('average', best, **rows, steps=0, learning_rate=Constant(peak=0.0), init=Average('anneal', last=4)),
      stage('sft', mix(Conversations(f'{folder}/chats.jsonl', 'chatml'), packing='best_fit'), seq_len=1_024,
            batch_size=64, microbatches=2, steps=800, learning_rate=Cosine(peak=5e-5, warmup=20, final=0.1),
            optimizer=AdamW(weight_decay=0.0), init=Params('average'),
            evals=(HeldOut(every=100), Answers())),
      stage('dpo', Preferences(f'{folder}/pairs.jsonl', 'chatml'), seq_len=1_024, batch_size=32, microbatches=4,
            steps=300, objective=DPO(beta=0.1, nll_weight=0.2), learning_rate=Constant(peak=1e-6, warmup=30),
            optimizer=AdamW(weight_decay=0.0), init=Params('sft'),
            evals=(HeldOut(every=50),)),
    ),
  )
