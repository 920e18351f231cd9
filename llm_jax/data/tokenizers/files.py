"""The files that a saved tokenizer is made of."""
import json
import os
from collections.abc import Mapping
from typing import Any

from llm_jax.runtime.buckets import place
from llm_jax.runtime.files import write_atomic

META_FILE = 'llm_jax_tokenizer.json'
RANKS_FILE = 'ranks.tiktoken'
HUGGING_FACE_FILE = 'tokenizer.json'


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
  """files: content by name."""
  folder = place(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    write_atomic(folder / name, content)


def encode_meta(meta: Mapping[str, Any]) -> bytes:
  """What META_FILE holds."""
  return json.dumps(meta, indent=1).encode()
