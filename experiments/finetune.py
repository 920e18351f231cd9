"""SFT of a Hugging Face model on conversations of your own, on one GPU.

python -m launch.train --config=experiments/finetune.py:FOLDER --workdir=runs/finetune
python -m launch.convert --checkpoint=runs/finetune --to_hf=FOLDER-chat          (of adapters with --merge)

All parameters are trained where the device's memory holds them, else LoRA or QLoRA is; one line says which and why.

FOLDER holds config.json, *.safetensors and tokenizer.json, and chats.jsonl beside them ({"messages": [{"role",
"content"}, ...]}; '--config.stages[0].data.sources[0].source.path=FILE' names another). FOLDER may be the name of a
model on the Hugging Face hub, such as Qwen/Qwen3-0.6B; then that flag names the conversations. A model that brings a
chat template is trained on it; any other on 'plain', which asks nothing of the tokenizer. Of a model that has the
special tokens of another, say so: '--config.stages[0].data.sources[0].source.template=llama3'. Sequences are as long as
the model's positions are meant for, 1,024 tokens at most.
"""
from llm_jax import hf
from llm_jax.adapters.choose import choose_adapters
from llm_jax.config.experiment import (
  AdamW,
  Answers,
  Checkpoints,
  Conversations,
  Cosine,
  HeldOut,
  HuggingFace,
  experiment,
  mix,
  stage,
)


def get_config(folder):
  chats = Conversations(f'{folder}/chats.jsonl', template=hf.template_of(folder), val_fraction=0.05)
  model = hf.read_config(folder)
  adapters = choose_adapters(model)
  return experiment(
    seed=0,
    tokenizer=hf.read_tokenizer(folder),
    model=model,
    checkpoints=Checkpoints(every=100, keep=2),
    stages=(
      stage('sft', mix(chats, packing='best_fit'), steps=500, seq_len=min(1_024, model.meant_length or 1_024),
            batch_size=32, microbatches=4, adapters=adapters,
            learning_rate=Cosine(peak=2e-5 if adapters is None else 2e-4, warmup=20, final=0.1),
            optimizer=AdamW(weight_decay=0.0), remat='block', evals=(HeldOut(every=50), Answers()),
            init=HuggingFace(folder)),
    ),
  )
