"""How text is cut before bytes are merged: by a regular expression, and, where it is long, into pieces before that."""
import re
from collections.abc import Iterator

from llm_jax.config.errors import require

# How text is cut before merging. gpt2: Radford et al. 2019 in tiktoken's equivalent form; cl100k: GPT-3.5 and GPT-4;
# llama3: Llama 3's tokenizer (meta-llama/llama-models). {digits} is where numbers are cut.
PATTERNS = {
  'gpt2': r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|{digits}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
  'cl100k': (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|{digits}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
             r'\s*[\r\n]|\s+(?!\S)|\s'),
  'llama3': (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
             r'\s*[\r\n]+|\s+(?!\S)|\s+'),
}
DIGITS = {'gpt2': r' ?\p{N}++', 'cl100k': r'\p{N}{1,3}+', 'llama3': r'\p{N}{1,3}'}

# Long texts are encoded in pieces of about PIECE characters, in parallel. The regular expression engine of tiktoken
# dies on runs of a million spaces, so no piece is longer than LONGEST.
PIECE = 1 << 16
LONGEST = 200_000
# Where every pattern above cuts too, so that pieces give the ids of the whole: before a single space, after a single
# line feed.
SAFE_CUT = re.compile(r'(?<=\S) (?=\S)|(?<=\S\n)(?=\S)')


def pattern_for(name: str, split_digits: bool) -> str:
  """The regular expression for a pattern's name, or `name` itself where it is one."""
  if name in PATTERNS:
    return PATTERNS[name].replace('{digits}', r'\p{N}' if split_digits else DIGITS[name])
  require(not split_digits, 'tokenizer.split_digits', True,
          f'works with the patterns {tuple(PATTERNS)}; in a pattern of your own write \\p{{N}} for one digit')
  return name


def cut(text: str, safe: bool) -> Iterator[str]:
  """Pieces of a long text; `safe` cuts where the named patterns cut too."""
  start = 0
  while len(text) - start > PIECE:
    longest_end = min(len(text), start + LONGEST)
    found = SAFE_CUT.search(text, start + PIECE, longest_end) if safe else None
    end = found.start() if found else longest_end
    yield text[start:end]
    start = end
  if start < len(text) or not text:
    yield text[start:]


def is_named(pattern: str) -> bool:
  """Whether a regular expression is that of one of PATTERNS."""
  return any(pattern == pattern_for(name, split_digits) for name in PATTERNS for split_digits in (False, True))
