"""Conversations, preferences and text in files, a tokenizer for them, and data read of them."""
import json
import pathlib

from llm_jax.config import experiment as config
from llm_jax.data import dataset
from llm_jax.data.tokenizers import byte_level

SPECIAL_TOKENS = ('<|im_start|>', '<|im_end|>')
QUESTIONS = [f'What is {i} and {i}? ' + 'Think. ' * (i % 4) for i in range(40)]
ANSWERS = [f'It is {2 * i}.' + ' Truly.' * (i % 5) for i in range(40)]


def dialogue(i: int) -> list[dict[str, str]]:
  rounds = [{'role': 'user', 'content': QUESTIONS[i]}, {'role': 'assistant', 'content': ANSWERS[i]}]
  again = [{'role': 'user', 'content': 'Sure?'}, {'role': 'assistant', 'content': f'Yes, {i}.'}]
  return [*([{'role': 'system', 'content': 'Add.'}] if i % 3 == 0 else []), *rounds, *(again if i % 2 else [])]


def pair(i: int) -> dict:
  """Prompt and answers as texts or as messages."""
  prompt = QUESTIONS[i] if i % 2 else dialogue(i - i % 2 + 1)[:-1]
  chosen = ANSWERS[i] if i % 3 else [{'role': 'assistant', 'content': ANSWERS[i]}]
  return {'prompt': prompt, 'chosen': chosen, 'rejected': f'No idea about {i}.'}


def write(path: pathlib.Path, rows: list) -> str:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def train_tokenizer() -> byte_level.RankTokenizer:
  return byte_level.train([*QUESTIONS, *ANSWERS], 320, 'cl100k', special_tokens=SPECIAL_TOKENS)


def write_files(folder: pathlib.Path) -> pathlib.Path:
  write(folder / 'chat.jsonl', [{'messages': dialogue(i)} for i in range(40)])
  write(folder / 'pairs.jsonl', [pair(i) for i in range(40)])
  write(folder / 'text.jsonl', [{'text': ' '.join(QUESTIONS[i:i + 4])} for i in range(36)])
  return folder


def conversations(folder, **options) -> config.Conversations:
  return config.Conversations(str(folder / 'chat.jsonl'), **{'val_fraction': 0.25, **options})


def preferences(folder, **options) -> config.Preferences:
  return config.Preferences(str(folder / 'pairs.jsonl'), **{'val_fraction': 0.25, **options})


def open_data(folder, tokenizer, *parts, split='train', seq_len=64, packing='best_fit', seed=0) -> dataset.Dataset:
  data = config.Data(tuple(config.Weighted(part) for part in parts), packing)
  return dataset.open_dataset(data, tokenizer, seq_len=seq_len, seed=seed, split=split, cache_dir=folder / 'cache')
