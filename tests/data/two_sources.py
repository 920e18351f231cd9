"""Two sources of text, and data read of them."""
import json
import pathlib

from llm_jax.config import experiment as config
from llm_jax.data import dataset
from llm_jax.data.tokenizers import byte_level

BYTES = byte_level.ByteTokenizer()


def write_sources(folder: pathlib.Path) -> pathlib.Path:
  """The documents of `a` are in lower case, those of `b` in upper case."""
  for name, change in (('a', str.lower), ('b', str.upper)):
    rows = ({'text': change(f'Text {i} of {name}, ' * (1 + i % 5))} for i in range(80))
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def make_data(folder, weights=(0.7, 0.3), packing='concat', val_fraction=0.2) -> config.Data:
  sources = [config.Jsonl(str(folder / f'{name}.jsonl'), val_fraction=val_fraction) for name in 'ab']
  return config.Data(tuple(map(config.Weighted, sources, weights)), packing)


def open_data(folder, split='train', seq_len=16, seed=0, tokenizer=BYTES, **options) -> dataset.Dataset:
  return dataset.open_dataset(make_data(folder, **options), tokenizer, seq_len=seq_len, seed=seed, split=split,
                               cache_dir=folder / 'cache')
