"""Whether what a strategy is going to ask fits into what the model reads, before it asks anything."""
from collections.abc import Sequence

from lm_eval.api.instance import Instance

from llm_jax.config.errors import require
from llm_jax.config.strategies import ActivePrompt, Chaining, Prompting, TreeOfThoughts, ZeroShotCoT
from llm_jax.harness.model import arguments, prompt_ids, writing_of
from llm_jax.harness.text import HarnessText
from llm_jax.prompting.chaining import Link, literal_text, placeholders
from llm_jax.prompting.lines_of_thought import INSTRUCTION
from llm_jax.prompting.program import Exemplar
from llm_jax.prompting.strategy_model import AS_IT_IS, Files, without

ANSWER_ROOM = 64  # tokens of the words between reasoning and answer, and of the answer
BALLOT_ROOM = 128  # tokens of a ballot
CHOICE_ROOM = 16  # tokens of the words around a choice


def check_room(text: HarnessText, strategy: Prompting, requests: Sequence[Instance], files: Files = ()) -> None:
  """Refuses a strategy that would ask more than the model reads: ConfigError.

  files: what `read_files` gave for the strategy.
  """
  for request in requests:
    if request.request_type != 'generate_until':
      continue
    prompt, options = arguments(request)
    writing = writing_of(options)
    prompt_ids(text, prompt, writing)
    needed, hint = _needed(text, strategy, prompt, writing.max_new_tokens, files)
    require(needed <= text.max_length, '--strategy', strategy.name,
            f'question {request.doc_id} takes up to {needed} tokens with it, and the model reads {text.max_length}: '
            f'{hint}')


def _needed(text: HarnessText, strategy: Prompting, prompt: str, max_new_tokens: int, files: Files) -> tuple[int, str]:
  """The longest text that is read or written, in tokens, and what makes it shorter."""
  length = len(text.encode(prompt))
  match strategy:
    case ZeroShotCoT(tokens=tokens):
      return length + tokens + ANSWER_ROOM, f'use fewer examples, or {strategy.name}:tokens={tokens // 2}'
    case Chaining():
      return _of_chain(text, files, length), 'shorten its templates, or lower max_new_tokens in its file'
    case TreeOfThoughts() as tree:
      whole = tree.depth * (tree.tokens + 1)
      choices = tree.breadth * (tree.thoughts + 1) * (whole + CHOICE_ROOM)
      ballot = len(text.encode(INSTRUCTION)) + length + choices + BALLOT_ROOM
      return ballot, f'use fewer examples, or a smaller breadth, depth or tokens of {strategy.name}'
    case ActivePrompt():
      exemplars = [file for file in files if isinstance(file, Exemplar)]
      behind = AS_IT_IS.prompt(prompt, without(exemplars, prompt))
      return len(text.encode(behind)) + max_new_tokens, 'annotate fewer questions, or shorten what you wrote'
    case _:
      return length + max_new_tokens, 'use fewer examples'


def _of_chain(text: HarnessText, files: Files, prompt_length: int) -> int:
  """The longest prompt of a chain with its answer."""
  longest, lengths = 0, {'input': prompt_length, 'previous': prompt_length}
  for link in files:
    assert isinstance(link, Link)
    filled = sum(lengths[name] for name in placeholders(link))
    longest = max(longest, len(text.encode(literal_text(link))) + filled + link.max_new_tokens)
    lengths[link.name] = lengths['previous'] = link.max_new_tokens
  return longest
