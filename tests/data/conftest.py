"""Text to fuzz tokenizers with, and a small trained tokenizer."""
import random

import pytest

from llm_jax.data.tokenizers import byte_level

SPECIAL_TOKENS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '</s>')
WORDS = ["don't", "WE'LL", "it'ſ", 'def f(x):\n    return x', '\r\n\r\n', '\t\t', '   ', '\n \n', '٣٤٥', '½²', '日本語',
         'naïve', 'e\u0301', '👩\u200d👩\u200d👧', '\x00', '\u2028', '\xa0', '....!?\n', '<|', '|>', 'ﬀ', 'İ', '𝟘𝟙',
         '1234567', '-0.5e10', '"', '\\']


def fuzzed(count: int, seed: int = 0) -> list[str]:
  """Strings of words that tokenizers get wrong, special tokens' names, digits, whitespace and any characters at all."""
  rng = random.Random(seed)

  def part() -> str:
    any_character = chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))))
    return rng.choice([rng.choice(SPECIAL_TOKENS), rng.choice(WORDS), any_character, any_character + rng.choice(WORDS),
                       ''.join(rng.choices(' \t\n\r', k=rng.randint(1, 5))),
                       ''.join(rng.choices('0123456789', k=rng.randint(1, 8))),
                       ''.join(rng.choices("etaoin shrdlu'", k=rng.randint(1, 12)))])

  return ['', *(''.join(part() for _ in range(rng.randint(1, 12))) for _ in range(count - 1))]


@pytest.fixture(scope='session')
def texts() -> list[str]:
  return fuzzed(4_000)


@pytest.fixture(scope='session')
def bpe(texts) -> byte_level.RankTokenizer:
  return byte_level.train(texts, 500, 'cl100k')
