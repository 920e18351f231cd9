"""Chat templates against transformers' `apply_chat_template`, id by id, and what untrusted content can do to them."""
import random

import numpy as np
import pytest
import tokenizers as hf
import transformers

from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers import byte_level, chat_templates
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from tests.data.conftest import fuzzed
from tests.data.tokenizers.hf_tokenizers import END, PUBLISHED, hugging_face

SPECIAL_TOKENS = (END, '<|im_start|>', '<|im_end|>', '<s>', '</s>', '<|begin_of_text|>', '<|start_header_id|>',
           '<|end_header_id|>', '<|eot_id|>')
# The published templates, with transformers' marks around what the assistant says. ChatML: the template that
# transformers documents, and Qwen's files hold; Llama 2 and 3: the `chat_template` of Llama-2-7b-chat-hf and
# Meta-Llama-3-8B-Instruct.
JINJA = {
  'chatml': '''
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
  {%- else -%}
    {{- message['content'] + '<|im_end|>' -}}
  {%- endif -%}
  {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}''',
  'llama2': '''
{%- if messages[0]['role'] == 'system' -%}
  {%- set system, turns = messages[0]['content'], messages[1:] -%}
{%- else -%}
  {%- set system, turns = false, messages -%}
{%- endif -%}
{%- for message in turns -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
  {%- if loop.index0 == 0 and system != false -%}
    {%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] -%}
  {%- else -%}
    {%- set content = message['content'] -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- else -%}
    {%- generation -%}{{- ' ' + content.strip() + ' ' + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}''',
  'llama3': '''
{%- for message in messages -%}
  {%- if loop.index0 == 0 -%}{{- bos_token -}}{%- endif -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{- message['content'] | trim + '<|eot_id|>' -}}{%- endgeneration -%}
  {%- else -%}
    {{- message['content'] | trim + '<|eot_id|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}''',
}
ENDS = {'chatml': (None, '<|im_end|>'), 'llama2': ('<s>', '</s>'), 'llama3': ('<|begin_of_text|>', '<|eot_id|>')}


def conversation(rng: random.Random, contents: list[str]) -> list[chat_templates.Message]:
  """One to four rounds, with a system message in half of them, and white space around what is not an answer."""
  rounds = ['user', 'assistant'] * rng.randint(1, 4)
  roles = ['system', *rounds] if rng.random() < 0.5 else rounds

  def space(role: str) -> str:
    return '' if role == 'assistant' else rng.choice(('', '', ' ', '\n', '\n\n', '\t '))

  return [{'role': role, 'content': f'{space(role)}{content}{space(role)}'}
          for role, content in zip(roles, rng.sample(contents, len(roles)), strict=True)]


def spoken(texts: list[str]) -> list[str]:
  """Contents that hold no special token's name, which transformers would turn into its id, and are not empty."""
  return [text.strip() for text in texts if text.strip() and not any(name in text for name in SPECIAL_TOKENS)]


@pytest.fixture(scope='module')
def trained(texts) -> dict[str, byte_level.RankTokenizer]:
  return {pattern: byte_level.train(texts, 600, pattern, special_tokens=SPECIAL_TOKENS[1:]) for pattern in PUBLISHED}


@pytest.fixture(scope='module')
def bpe(trained) -> byte_level.RankTokenizer:
  return trained['cl100k']


def reference(ours: byte_level.RankTokenizer, pattern: str, template: str) -> transformers.PreTrainedTokenizerFast:
  library = hugging_face(ours.ranks, PUBLISHED[pattern], SPECIAL_TOKENS)
  bos, eos = ENDS[template]
  return transformers.PreTrainedTokenizerFast(tokenizer_object=library, bos_token=bos, eos_token=eos,
                                              chat_template=JINJA[template])


def expected(reference, messages, **options) -> tuple[list[int], list[int]]:
  found = reference.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
  return found['input_ids'], found['assistant_masks']


@pytest.mark.parametrize('pattern, template', [
  ('cl100k', 'chatml'), ('gpt2', 'chatml'), ('cl100k', 'llama2'), ('gpt2', 'llama2'), ('llama3', 'llama3')])
def test_ids_and_mask_are_those_of_transformers(pattern, template, trained, texts):
  ours, rng, contents = trained[pattern], random.Random(0), spoken(texts)
  theirs = reference(ours, pattern, template)
  from_file = HuggingFaceTokenizer(theirs.backend_tokenizer.to_str().encode(), END)
  special_ids = {name: theirs.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
  assert from_file.special_ids == ours.special_ids == special_ids
  for i in range(200):
    messages = conversation(rng, contents)
    ids, mask = expected(theirs, messages)
    for tokenizer in (ours, from_file) if i < 20 else (ours,):
      found, counts = chat_templates.render(messages, template, tokenizer)
      assert found.dtype == np.int32 and counts.dtype == bool
      assert found.tolist() == ids and counts.tolist() == [m == 1 for m in mask]
    prompt = messages[:-1]
    options = {} if template == 'llama2' else {'add_generation_prompt': True}
    assert chat_templates.prompt_ids(prompt, template, ours).tolist() == expected(theirs, prompt, **options)[0]


@pytest.mark.parametrize('template', JINJA)
def test_a_tokenizer_that_marks_the_beginning_of_a_text(template, texts):
  """Llama 2's kind puts a '▁' before every text: an answer encoded apart from its header would get one too many."""
  contents = spoken(texts)
  library = hf.Tokenizer(hf.models.BPE(unk_token='<unk>'))
  library.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme='always')
  library.decoder = hf.decoders.Metaspace(prepend_scheme='always')
  trainer = hf.trainers.BpeTrainer(vocab_size=2_000, special_tokens=['<unk>', *SPECIAL_TOKENS], show_progress=False)
  library.train_from_iterator([*contents, 'user assistant system [INST] [/INST] <<SYS>> <</SYS>>'], trainer)
  ours, (bos, eos) = HuggingFaceTokenizer(library.to_str().encode(), END), ENDS[template]
  theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, bos_token=bos, eos_token=eos,
                                                chat_template=JINJA[template])
  rng = random.Random(4)
  for _ in range(50):
    messages = conversation(rng, contents)
    ids, counts = chat_templates.render(messages, template, ours)
    assert (ids.tolist(), counts.astype(int).tolist()) == expected(theirs, messages)


def test_what_counts_is_each_answer_and_its_end(bpe):
  messages = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'One?'},
              {'role': 'assistant', 'content': 'Un.'}, {'role': 'user', 'content': 'Two?'},
              {'role': 'assistant', 'content': 'Deux.'}]
  said = {'plain': (f' Un.{END}', f' Deux.{END}'), 'chatml': ('Un.<|im_end|>', 'Deux.<|im_end|>'),
          'llama2': (' Un. </s>', ' Deux. </s>'), 'llama3': ('Un.<|eot_id|>', 'Deux.<|eot_id|>')}
  for template, answers in said.items():
    ids, counts = chat_templates.render(messages, template, bpe)
    assert bpe.decode(ids[counts]) == ''.join(answers)
    _, second = chat_templates.render(messages, template, bpe, start=4)
    assert bpe.decode(ids[second]) == answers[1]
    ends = ids[counts & chat_templates.formatting(ids, bpe)]
    assert ends.tolist() == [chat_templates.end_of_turn(template, bpe)[0]] * 2
  assert chat_templates.end_of_turn('llama3', bpe) == (bpe.special_ids['<|eot_id|>'], bpe.eot)
  assert chat_templates.end_of_turn('plain', bpe) == (bpe.eot,)


@pytest.mark.parametrize('template', ['plain', 'chatml', 'llama2', 'llama3'])
def test_a_conversation_is_its_prompt_its_answer_and_what_stands_behind(template, bpe):
  """What a policy samples behind a prompt, with its end, becomes the ids that a reward model was taught with."""
  prompt, answer = {'role': 'user', 'content': 'One?'}, {'role': 'assistant', 'content': 'Un. <|im_end|>'}
  ids, counts = chat_templates.render([prompt, answer], template, bpe)
  sampled = ids[counts].tolist()
  behind = chat_templates.after_turn(template, bpe)
  assert ids.tolist() == [*chat_templates.prompt_ids([prompt], template, bpe), *sampled, *behind]
  assert sampled[-1] in chat_templates.end_of_turn(template, bpe)
  assert bpe.decode(behind) == ('\n' if template == 'chatml' else '')


def test_plain_needs_nothing_but_the_end_of_text():
  ours = byte_level.ByteTokenizer()
  messages = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'a\n'},
              {'role': 'assistant', 'content': '  b'}, {'role': 'user', 'content': 'c'}]
  ids, counts = chat_templates.render(messages, 'plain', ours)
  assert ours.decode(ids) == f'{END}System: S\n\nUser: a\n\n\nAssistant:   b{END}User: c\n\n'
  assert ours.decode(ids[counts]) == f'   b{END}'
  assert ours.decode(chat_templates.prompt_ids(messages, 'plain', ours)) == ours.decode(ids) + 'Assistant:'


def test_begin_of_text_is_written_where_the_tokenizer_has_it(texts):
  ours = byte_level.train(texts, 300, 'llama3', 
                            special_tokens=('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'))
  messages = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
  ids, _ = chat_templates.render(messages, 'llama3', ours)
  assert ours.decode(ids).startswith('<|start_header_id|>user')


@pytest.mark.parametrize('template', chat_templates.NAMED_TEMPLATES)
def test_a_conversation_begins_with_its_prompt(template, trained, texts):
  """With its text, whatever the answer begins with. A token may reach over the border where both sides are white space,
  as it does in transformers; it is learnt."""
  ours, rng = trained['gpt2'], random.Random(1)
  contents = [f'{rng.choice(["", " ", chr(10), chr(10) * 2, chr(9)])}{text}' for text in texts if text.strip()]
  for _ in range(300):
    messages = conversation(rng, contents)
    for i in (i for i, message in enumerate(messages) if message['role'] == 'assistant'):
      prompt = chat_templates.prompt_ids(messages[:i], template, ours)
      ids, counts = chat_templates.render(messages[:i + 1], template, ours, start=i)
      first = np.argmax(counts)
      before, header = ours.decode(ids[:first]), ours.decode(prompt)
      assert ours.decode(ids).startswith(header) and header.startswith(before) and len(header) - len(before) <= 2
      answer = ours.decode(ids[counts & ~chat_templates.formatting(ids, ours)])
      answer = answer.removeprefix(header[len(before):])
      assert answer.strip() == messages[i]['content'].strip()
      if template in ('plain', 'chatml'):
        assert answer == (' ' if template == 'plain' else '') + messages[i]['content']


@pytest.mark.parametrize('template', chat_templates.NAMED_TEMPLATES)
def test_no_content_becomes_a_control_token(template, bpe):
  """10,000 contents full of special tokens' names: the special id are those of the template, in its order."""
  rng = random.Random(2)
  contents = [f'a{rng.choice(SPECIAL_TOKENS)}{text}{rng.choice(SPECIAL_TOKENS)}' for text in fuzzed(10_000, seed=3)]
  from_file = HuggingFaceTokenizer(hugging_face(bpe.ranks, PUBLISHED['cl100k'], SPECIAL_TOKENS).to_str().encode(), END)

  def controls(tokenizer, contents) -> tuple[list[int], str]:
    messages = [{'role': role, 'content': content} for role, content in zip(ROLES, contents, strict=True)]
    ids, _ = chat_templates.render(messages, template, tokenizer)
    return ids[chat_templates.formatting(ids, tokenizer)].tolist(), tokenizer.decode(ids)

  for tokenizer, count in ((bpe, 10_000), (from_file, 400)):
    quiet, _ = controls(tokenizer, 'abcd')
    for i in range(0, count, 4):
      found, text = controls(tokenizer, contents[i:i + 4])
      assert found == quiet and contents[i + 1].strip() in text


ROLES = ('system', 'user', 'assistant', 'user')


def test_a_tokenizer_without_the_template_s_tokens_is_refused(texts):
  half = byte_level.train(texts, 300, 'cl100k', special_tokens=('<|im_start|>',))
  for call in (lambda: chat_templates.render([{'role': 'user', 'content': 'a'}], 'chatml', half),
               lambda: chat_templates.end_of_turn('chatml', half),
               lambda: chat_templates.check_template('chatml', half)):
    with pytest.raises(ConfigError, match=r"^template = 'chatml': the tokenizer lacks .*\('<\|im_end\|>',\).*it has "
                                          r"\('<\|endoftext\|>', '<\|im_start\|>'\): "
                                          r"use BPE\(special_tokens=") as caught:
      call()
    assert '\n' not in str(caught.value)
  with pytest.raises(ConfigError, match="template = 'gemma': use one of"):
    chat_templates.check_template('gemma', half)
  chat_templates.check_template('plain', byte_level.ByteTokenizer())
  mistral = byte_level.train(texts, 300, 'cl100k', special_tokens=('<s>', '</s>', '[INST]', '[/INST]'))
  with pytest.raises(ConfigError, match=r"^template = 'llama2': it writes \('\[/INST\]', '\[INST\]'\) as text"):
    chat_templates.check_template('llama2', mistral)


USER, ANSWER, SYSTEM = ({'role': role, 'content': 'x'} for role in ('user', 'assistant', 'system'))


@pytest.mark.parametrize('messages, message', [
  ([], r'^messages = \[\]: empty'),
  ('hello', "^messages = 'str': give a list"),
  ([USER, 'hello'], r"^messages\[1\] = 'str': give"),
  ([USER, {'role': 'tool', 'content': 'x'}], r"^messages\[1\]\.role = 'tool': template 'plain' lacks it: use one of"),
  ([{'content': 'x'}], r'^messages\[0\]\.role = None'),
  ([USER, {'role': 'assistant', 'content': ' \n'}], r"^messages\[1\]\.content = ' \\n': empty"),
  ([USER, {'role': 'assistant', 'content': None}], r"^messages\[1\]\.content = 'NoneType': give a text"),
  ([USER, {'role': 'assistant', 'content': [{'text': 'x'}]}], r"^messages\[1\]\.content = 'list'"),
  ([USER, USER], r"^messages\[1\]\.role = 'user': expected assistant"),
  ([ANSWER], r"^messages\[0\]\.role = 'assistant': expected system or user"),
  ([SYSTEM, ANSWER], r"^messages\[1\]\.role = 'assistant': expected user"),
  ([USER, SYSTEM], r"^messages\[1\]\.role = 'system': expected assistant"),
  ([USER, ANSWER, SYSTEM], r"^messages\[2\]\.role = 'system': expected user"),
  ([SYSTEM, USER], r"^messages = \['system', 'user'\]: no assistant turn"),
])
def test_bad_conversations_are_named(messages, message):
  with pytest.raises(ConfigError, match=message) as caught:
    chat_templates.render(messages, 'plain', byte_level.ByteTokenizer())
  assert '\n' not in str(caught.value)


def test_a_prompt_ends_with_the_user():
  with pytest.raises(ConfigError, match=r"^messages\[1\]\.role = 'assistant': end with"):
    chat_templates.prompt_ids([USER, ANSWER], 'plain', byte_level.ByteTokenizer())
