"""What each chat template writes of a conversation, exact to what was published: texts and special tokens, in order."""
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.config.source import NAMED_TEMPLATES

Message = Mapping[str, Any]
Writer = Callable[[Sequence[Message]], Iterator['Part']]


class Part(NamedTuple):
  """A part of a rendered conversation: a text, or a special token.

  by_assistant: whether the assistant says it; the end of its turn counts.
  """
  text: str = ''
  special: str = ''
  by_assistant: bool = False


# Stand for what a document of the tokenizer begins with, and for its end of text, whatever their names.
BEGINNING = Part(special='beginning')
ANSWER_ENDS = Part(special='end of text', by_assistant=True)


def _plain(messages: Sequence[Message]) -> Iterator[Part]:
  """No special token but those at both ends of every document."""
  yield BEGINNING
  for message in messages:
    role = message['role']
    content = message['content']
    if role == 'assistant':
      yield Part('Assistant:')
      yield Part(f' {content}', by_assistant=True)
      yield ANSWER_ENDS
    else:
      yield Part(f'{role.title()}: {content}\n\n')


def _chatml(messages: Sequence[Message]) -> Iterator[Part]:
  """OpenAI's Chat Markup Language (openai-python, chatml.md), as Qwen and many others use it; nothing is trimmed."""
  for message in messages:
    by_assistant = message['role'] == 'assistant'
    yield Part(special='<|im_start|>')
    yield Part(f'{message["role"]}\n')
    yield Part(message['content'], by_assistant=by_assistant)
    yield Part(special='<|im_end|>', by_assistant=by_assistant)
    yield Part('\n')


def _llama2(messages: Sequence[Message]) -> Iterator[Part]:
  """Llama 2 Chat (Touvron et al. 2023, appendix A.3.3; the `chat_template` of Llama-2-7b-chat-hf)."""
  system = ''
  for message in messages:
    content = message['content']
    match message['role']:
      case 'system':
        system = f'<<SYS>>\n{content}\n<</SYS>>\n\n'
      case 'user':
        yield Part(special='<s>')
        yield Part(f'[INST] {(system + content).strip()} [/INST]')
        system = ''
      case _:
        yield Part(f' {content.strip()} ', by_assistant=True)
        yield Part(special='</s>', by_assistant=True)


def _llama3(messages: Sequence[Message]) -> Iterator[Part]:
  """Llama 3 Instruct (the `chat_template` of Meta-Llama-3-8B-Instruct)."""
  yield Part(special='<|begin_of_text|>')
  for message in messages:
    by_assistant = message['role'] == 'assistant'
    yield Part(special='<|start_header_id|>')
    yield Part(message['role'])
    yield Part(special='<|end_header_id|>')
    yield Part('\n\n')
    yield Part(message['content'].strip(), by_assistant=by_assistant)
    yield Part(special='<|eot_id|>', by_assistant=by_assistant)


WRITERS: dict[str, Writer] = dict(zip(NAMED_TEMPLATES, (_plain, _chatml, _llama2, _llama3), strict=True))
TRIMMED = ('llama2', 'llama3')  # templates that cut white space off both ends of a content
# Written where the tokenizer has it: a tokenizer without it has no beginning of text anywhere.
OPTIONAL = ('<|begin_of_text|>',)
QUESTION: Message = {'role': 'user', 'content': 'a'}
ANSWER: Message = {'role': 'assistant', 'content': 'b'}


@functools.cache  # every conversation that is read needs it
def example(template: str) -> tuple[Part, ...]:
  """A conversation of two messages, written by a template."""
  return tuple(WRITERS[template]((QUESTION, ANSWER)))
