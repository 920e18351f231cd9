"""Tokenizers of the `tokenizers` library with the ranks of ours."""
from collections.abc import Sequence

import tokenizers as hf

from llm_jax.data.tokenizers.huggingface import byte_alphabet

END = '<|endoftext|>'
SPECIAL_TOKENS = (END, '<|im_start|>', '<|im_end|>', '</s>')
# As published: openai/gpt-2 src/encoder.py; openai/tiktoken (first cl100k_base); meta-llama/llama3 tokenizer.py.
PUBLISHED = {
  'gpt2': r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
  'cl100k': (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
             r'\s*[\r\n]+|\s+(?!\S)|\s+'),
}
PUBLISHED['llama3'] = PUBLISHED['cl100k']


def merge_pairs(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
  """The merge that made each token: its bytes merged by lower ranks until two parts are left."""
  pairs = []
  for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
      best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
      parts[best:best + 2] = [parts[best] + parts[best + 1]]
    if len(token) > 1:
      pairs.append((parts[0], parts[1]))
  return pairs


def hugging_face(ranks: dict[bytes, int], pattern: str, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> hf.Tokenizer:
  """The same byte-level BPE built with the `tokenizers` library; ids of `special_tokens` follow the ranks."""
  letter = {byte: character for character, byte in byte_alphabet().items()}

  def spell(token: bytes) -> str:
    return ''.join(letter[byte] for byte in token)

  vocab = {spell(token): rank for token, rank in ranks.items()}
  model = hf.models.BPE(vocab, [(spell(a), spell(b)) for a, b in merge_pairs(ranks)])
  tokenizer = hf.Tokenizer(model)
  tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([
    hf.pre_tokenizers.Split(hf.Regex(pattern), 'isolated'),
    hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  tokenizer.decoder = hf.decoders.ByteLevel()
  tokenizer.add_special_tokens(list(special_tokens))
  return tokenizer
