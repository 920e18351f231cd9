"""Texts, chats and prompts of imported models against `AutoTokenizer` and `apply_chat_template`, id by id."""
import importlib.util
import json
import pathlib
import random
import re

import pytest
import transformers
from transformers.models.auto import tokenization_auto

from llm_jax import hf
from llm_jax.config.errors import ConfigError
from llm_jax.config.tokenizers import HuggingFaceFile
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import load_tokenizer, make_tokenizer, opened
from llm_jax.data.tokenizers.published import GENERIC, REBUILT, _class_name
from tests.hf import published_tokenizers as published

HELLO = [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'I am well.'}]


def open_both(kind, folder, **changes):
  """(ours, transformers') of a folder with a tokenizer of a kind."""
  published.write_folder(kind, folder, **changes)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  return make_tokenizer(HuggingFaceFile(str(folder / 'tokenizer.json'), theirs.eos_token)), theirs


def applied(theirs, messages, **options):
  return theirs.apply_chat_template(messages, return_dict=True, **options)['input_ids']


@pytest.mark.parametrize('kind', published.KINDS)
def test_ids_are_those_of_transformers(kind, tmp_path):
  ours, theirs = open_both(kind, tmp_path)
  assert ours.named == theirs.special_tokens_map and ours.vocab_size == len(theirs)
  rng = random.Random(0)
  for _ in range(150):
    messages = published.conversation(rng)
    said = messages[0]['content']
    document = theirs(said).input_ids
    assert [*ours.begin, *ours.encode(said)] == document and ours.decode(document) == theirs.decode(document)
    ids, counts = chat_templates.render(messages, 'model', ours)
    assert ids.tolist() == applied(theirs, messages)
    prompt = chat_templates.prompt_ids(messages[:-1], 'model', ours).tolist()
    assert prompt == applied(theirs, messages[:-1], add_generation_prompt=True)
    assert counts.any() and ours.decode(ids[counts]).count(ours.decode(chat_templates.end_of_turn('model', ours)[:1])) \
      == sum(message['role'] == 'assistant' for message in messages)


@pytest.mark.parametrize('kind', published.KINDS)
def test_nobody_writes_a_control_token(kind, tmp_path):
  """Names of special tokens in contents are text, in the ids that transformers gives a chat that it guards."""
  ours, theirs = open_both(kind, tmp_path)
  rng = random.Random(1)
  for _ in range(40):
    quiet = published.conversation(rng)
    loud = [{**message, 'content': message['content'][:5] + rng.choice([*ours.special_ids]) + message['content'][5:]}
            for message in quiet]
    ids, _ = chat_templates.render(loud, 'model', ours)
    assert ids.tolist() == applied(theirs, loud, sanitize_control_tokens=True)
    controls = lambda ids: ids[chat_templates.formatting(ids, ours)].tolist()
    assert controls(ids) == controls(chat_templates.render(quiet, 'model', ours)[0])


def test_the_assistant_thinks_in_tokens_and_nobody_opens_a_turn(tmp_path):
  """Added tokens need not be special: DeepSeek's marks of turns are not, nor are Qwen's around thoughts. The assistant
  says the latter, as with transformers."""
  published.write_folder('gpt2', tmp_path, chat_template=(
    "{% for m in messages %}{{ '<|User|>' + m['content'] if m['role'] == 'user' else '<|Assistant|>' + m['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% if thinks %}<think>{% endif %}{% endif %}"
  ))
  file = published.library.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  file.add_tokens([published.library.AddedToken(name, normalized=False) for name in
                   ('<|User|>', '<|Assistant|>', '<think>', '</think>')])
  file.save(str(tmp_path / 'tokenizer.json'))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '<|endoftext|>'))
  thinks = [HELLO[0], {'role': 'assistant', 'content': '<think>hm</think>Hi'}]
  assert chat_templates.render(thinks, 'model', ours)[0].tolist() == applied(theirs, thinks)
  loud = [{'role': 'user', 'content': 'a<|User|>b<think>c'}, {'role': 'assistant', 'content': 'd<|User|>e'}]
  ids, _ = chat_templates.render(loud, 'model', ours)
  assert ids.tolist() == applied(theirs, loud, sanitize_control_tokens=True)
  assert ids.tolist().count(theirs.convert_tokens_to_ids('<|User|>')) == 1


@pytest.mark.parametrize('kind', ('llama2', 'llama3', 'mistral', 'gemma', 'gpt2'))
def test_what_is_learnt_is_each_answer_and_its_end(kind, tmp_path):
  ours, _ = open_both(kind, tmp_path)
  messages = [*HELLO, {'role': 'user', 'content': 'And you?'}, {'role': 'assistant', 'content': 'a cat'}]
  ids, counts = chat_templates.render(messages, 'model', ours)
  ends = {'llama2': ' </s>', 'mistral': ' </s>', 'llama3': '<|eot_id|>', 'gemma': '<end_of_turn>', 'gpt2': '<|im_end|>'}
  both = [f'{answer}{ends[kind]}' for answer in ('I am well.', 'a cat')]
  assert [part.strip() for part in ours.decode(ids[counts]).split(ends[kind])] == ['I am well.', 'a cat', '']
  _, second = chat_templates.render(messages, 'model', ours, start=2)
  assert ours.decode(ids[second]).strip() == both[1]


def test_the_marks_of_a_template_are_transformers_mask(tmp_path):
  ours, theirs = open_both('gpt2', tmp_path)
  rng = random.Random(2)
  for _ in range(100):
    messages = published.conversation(rng)
    for message in messages:
      message['content'] = message['content'].strip()
    found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, counts = chat_templates.render(messages, 'model', ours)
    assert (ids.tolist(), counts.astype(int).tolist()) == (found['input_ids'], found['assistant_masks'])


@pytest.mark.parametrize('kind, name, model_type', [
  ('llama3', 'LlamaTokenizerFast', 'llama'),  # by mistake, as in many files: its own rules would break it
  ('llama2', 'LlamaTokenizer', 'mistral'), ('llama2', 'SomeTokenizer', 'llama'), ('llama2', 'GPT2Tokenizer', 'llama'),
  ('gemma', None, 'gemma2'), ('gemma', 'PreTrainedTokenizerFast', 'gemma'), ('gpt2', None, 'gpt2'),
  ('gpt2', 'GPT2TokenizerFast', 'llama')])
def test_classes_of_tokenizers(kind, name, model_type, tmp_path):
  """Which one reads the files follows from the configuration of the tokenizer and of the model."""
  published.write_folder(kind, tmp_path, tokenizer_class=name)
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), theirs.eos_token or '<|endoftext|>'))
  rng = random.Random(5)
  for _ in range(30):
    said = published.text(rng)
    assert [*ours.begin, *ours.encode(said)] == theirs(said).input_ids


def test_every_class_of_transformers_is_known_or_refused_in_one_line_that_names_it():
  """Those with rules of their own; a class that it does not know itself reads the file as it stands."""
  names = {name for name in dir(transformers) if name.endswith(('Tokenizer', 'TokenizerFast'))}
  refused = set()
  for name in names:
    found = tokenization_auto.tokenizer_class_from_name(name)
    is_generic = found is None or found.__name__ in GENERIC
    try:
      read_as = _class_name({'tokenizer_class': name}, {}, b'')
    except ConfigError as error:
      assert f"tokenizer_config.json = 'tokenizer_class = {name}'" in str(error) and '\n' not in str(error)
      assert not is_generic, name
      refused.add(name)
    else:
      assert is_generic or read_as in REBUILT or not issubclass(found, transformers.PreTrainedTokenizerBase), name
  assert {'T5Tokenizer', 'CodeLlamaTokenizer', 'CohereTokenizer'} <= refused


def test_added_tokens_of_every_kind(tmp_path):
  """Flags that the configuration changes, tokens that it adds, under older names and by roles of their own."""
  rng = random.Random(6)
  names = ('<new>', ' cat', 'user', '<x y>', 'hello', '<|tool|>')
  for i in range(24):
    folder = tmp_path / str(i)
    kind = rng.choice(('llama2', 'mistral', 'gpt2', 'flagged', 'gemma'))
    published.write_folder(kind, folder)
    file = json.loads((folder / 'tokenizer.json').read_text())
    flags = lambda: {flag: rng.random() < 0.3 for flag in ('lstrip', 'rstrip', 'single_word', 'normalized', 'special')}
    added = {str(token.pop('id')): {**token, **(flags() if rng.random() < 0.2 else {}), 'special': token['special']}
             for token in file['added_tokens']}
    first = 1 + max(*map(int, added), *file['model']['vocab'].values())
    added |= {str(first + place): {'content': name, **flags()} for place, name in enumerate(rng.sample(names, 2))}
    config = json.loads((folder / 'tokenizer_config.json').read_text())
    if i % 3:
      config['added_tokens_decoder'] = added
    else:
      (folder / 'special_tokens_map.json').write_text(json.dumps({'pad_token': {'content': '<pad>', 'lstrip': True}}))
      (folder / 'added_tokens.json').write_text(json.dumps({'<late>': first}))
    config |= rng.choice(({}, {'additional_special_tokens': ['<y>']}, {'extra_special_tokens': {'image_token': '<i>'}}))
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = make_tokenizer(HuggingFaceFile(str(folder / 'tokenizer.json'), theirs.eos_token))
    assert ours.named == theirs.special_tokens_map and ours.vocab_size == max(theirs.get_vocab().values()) + 1
    for _ in range(12):
      messages = published.conversation(rng)
      if any(name in message['content'] for name in ours.special_ids for message in messages):
        continue
      said = messages[0]['content']
      assert [*ours.begin, *ours.encode(said)] == theirs(said).input_ids
      assert chat_templates.render(messages, 'model', ours)[0].tolist() == applied(theirs, messages)


def test_marked_turns_from_a_message_on(tmp_path):
  ours, _ = open_both('gpt2', tmp_path)
  ids, counts = chat_templates.render([*HELLO, HELLO[0], {'role': 'assistant', 'content': 'a cat'}], 'model', ours, 2)
  assert ours.decode(ids[counts]) == 'a cat<|im_end|>'


def test_texts_of_words_are_cleaned_up_as_transformers_does_it(tmp_path):
  """It leaves those of BPE alone."""
  words = ['<unk>', '</s>', *"it ' s n't a cat . , ! ? the".split()]
  vocab = {word: i for i, word in enumerate(words)}
  tokenizer = published.library.Tokenizer(published.library.models.WordLevel(vocab, '<unk>'))
  tokenizer.pre_tokenizer = published.library.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(['</s>'])
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
  for cleans_up in (True, False):
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '</s>', 'unk_token': '<unk>',
      'clean_up_tokenization_spaces': cleans_up}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '</s>'))
    ids = theirs("the cat , a cat . it ' s n't ! ?").input_ids
    assert ours.decode(ids) == theirs.decode(ids) and (' ,' in ours.decode(ids)) != cleans_up


def test_a_beginning_that_only_the_configuration_asks_for(tmp_path, caplog):
  """transformers 5 does not put it there; the run says so."""
  published.write_folder('gpt2', tmp_path, add_bos_token=True, bos_token='<|im_start|>')
  ours = make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '<|endoftext|>'))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert [*ours.begin, *ours.encode('a cat')] == theirs('a cat').input_ids
  assert 'add_bos_token = true' in caplog.text
  assert opened(ours, ()) == [theirs.bos_token_id]


@pytest.mark.parametrize('kind, named', [('llama2', 'llama2'), ('llama2_first', 'llama2'), ('gpt2', 'chatml'),
                                         ('flagged', 'chatml'), ('llama3', 'llama3')])
def test_a_named_template_writes_what_the_model_s_own_does(kind, named, tmp_path):
  """Where the model's own is the same one, ids and prompts are `apply_chat_template`'s."""
  ours, theirs = open_both(kind, tmp_path)
  rng = random.Random(3)
  for _ in range(60):
    messages = published.conversation(rng)
    assert chat_templates.render(messages, named, ours)[0].tolist() == applied(theirs, messages)
    prompt = chat_templates.prompt_ids(messages[:-1], named, ours).tolist()
    assert prompt == applied(theirs, messages[:-1], add_generation_prompt=True)


@pytest.mark.parametrize('kind', published.KINDS)
def test_plain_begins_as_a_document_does(kind, tmp_path):
  ours, theirs = open_both(kind, tmp_path)
  ids, counts = chat_templates.render(HELLO, 'plain', ours)
  begin = tuple(theirs('a cat').input_ids[:len(ours.begin)])
  assert tuple(ids[:len(begin)].tolist()) == ours.begin == begin and ids[-1] == theirs.eos_token_id and counts[-1]
  for name, content in hf.tokenizer_files(ours, 'plain').items():
    (tmp_path / name).write_bytes(content)
  assert applied(transformers.AutoTokenizer.from_pretrained(tmp_path), HELLO) == ids.tolist()


def test_a_post_processor_that_ends_a_text_ends_documents(tmp_path):
  """And the end of text is not there twice."""
  published.write_folder('llama2', tmp_path)
  file = json.loads((tmp_path / 'tokenizer.json').read_text())
  template = file['post_processor']
  template['single'].append({'SpecialToken': {'id': '</s>', 'type_id': 0}})
  template['special_tokens']['</s>'] = {'id': '</s>', 'ids': [2], 'tokens': ['</s>']}
  (tmp_path / 'tokenizer.json').write_text(json.dumps(file))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '</s>'))
  assert [*ours.begin, *ours.encode('a cat'), *ours.end] == theirs('a cat').input_ids


def test_a_file_that_stands_alone_has_the_end_of_text_at_both_ends(tmp_path):
  published.write_folder('gpt2', tmp_path)
  (tmp_path / 'tokenizer_config.json').unlink()
  ours = make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '<|endoftext|>'))
  assert ours.begin == ours.end == (ours.eot,)
  for name, content in hf.tokenizer_files(ours).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs('a cat').input_ids == [ours.eot, *ours.encode('a cat')]


@pytest.mark.parametrize('kind', published.KINDS)
def test_an_import_is_saved_and_exported_as_it_came(kind, tmp_path):
  ours, theirs = open_both(kind, tmp_path / 'hub')
  ours.save(tmp_path / 'run')
  again = load_tokenizer(tmp_path / 'run')
  assert (again.fingerprint, again.begin, again.end) == (ours.fingerprint, ours.begin, ours.end)
  assert chat_templates.render(HELLO, 'model', again)[0].tolist() == applied(theirs, HELLO)
  files = hf.tokenizer_files(again, 'model')
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert files[name] == (tmp_path / 'hub' / name).read_bytes()


def test_a_template_in_a_file_of_its_own_goes_before_the_configuration(tmp_path):
  published.write_folder('gpt2', tmp_path)
  (tmp_path / 'chat_template.jinja').write_text("{{ messages[-1]['content'] }}{{ eos_token }}")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '<|endoftext|>'))
  assert chat_templates.prompt_ids(HELLO[:1], 'model', ours).tolist() == applied(theirs, HELLO[:1])
  assert hf.template_of(tmp_path) == 'model'
  assert 'chat_template.jinja' in hf.tokenizer_files(ours, 'model')
  assert 'chat_template.jinja' not in hf.tokenizer_files(ours, 'chatml')


def test_a_template_for_tools_beside_the_usual_one(tmp_path):
  published.write_folder('gpt2', tmp_path)
  (tmp_path / 'chat_template.jinja').write_text(published.CHATML)
  (tmp_path / 'additional_chat_templates').mkdir()
  (tmp_path / 'additional_chat_templates' / 'tool_use.jinja').write_text(WITH_TOOLS)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '<|endoftext|>')).save(tmp_path / 'run')
  ours = load_tokenizer(tmp_path / 'run')
  for tools in (None, TOOLS):
    assert chat_templates.render(HELLO, 'model', ours, tools=tools)[0].tolist() == applied(theirs, HELLO, tools=tools)
  assert 'additional_chat_templates/tool_use.jinja' in hf.tokenizer_files(ours, 'model')


TOOLS = [{'type': 'function', 'function': {'name': 'add', 'description': 'adds', 'parameters': {'a': 'int'}}}]
WITH_TOOLS = """{%- if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def test_tools_calls_and_reasoning_reach_the_template(tmp_path):
  ours, theirs = open_both('gpt2', tmp_path, chat_template=WITH_TOOLS)
  messages = [
    {'role': 'user', 'content': 'one and two?'},
    {'role': 'assistant', 'content': None, 'reasoning_content': 'add them',
     'tool_calls': [{'function': {'name': 'add', 'arguments': {'a': 'é<|im_end|>'}}}]},
    {'role': 'tool', 'content': '3'},
    {'role': 'assistant', 'content': 'Three.', 'thinking': 'easy'},
  ]
  ids, counts = chat_templates.render(messages, 'model', ours, tools=TOOLS)
  assert ids.tolist() == applied(theirs, messages, tools=TOOLS, sanitize_control_tokens=True)
  assert ours.decode(ids[counts]) == (
    '<think>add them</think>{"name": "add", "arguments": {"a": "é<|im_end|>"}}<|im_end|>'
    '<think>easy</think>Three.<|im_end|>')
  prompt = chat_templates.prompt_ids(messages[:3], 'model', ours, TOOLS).tolist()
  assert prompt == applied(theirs, messages[:3], tools=TOOLS, add_generation_prompt=True, sanitize_control_tokens=True)
  for wrong, name in (({'tool_calls': [1]}, 'tool_calls'), ({'reasoning_content': 'x'}, 'reasoning_content')):
    with pytest.raises(ConfigError, match=rf"^messages\[1\]\.{name} = .*template 'chatml' does not write it"):
      chat_templates.render([HELLO[0], {**HELLO[1], **wrong}], 'chatml', ours)
  with pytest.raises(ConfigError, match=r"^tools = .*template 'chatml' does not write them"):
    chat_templates.render(HELLO, 'chatml', ours, tools=TOOLS)


# Templates that say a turn in another way once another one follows, as those of models that think do.
THINKING = """{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if loop.last %}{{ message['content'] }}{% else %}{{ message['content'].split('</think>')[-1] }}{% endif %}
{{- '<|im_end|>\\n' }}{% endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"""


def test_turns_of_a_template_that_leaves_out_earlier_thoughts(tmp_path):
  ours, theirs = open_both('gpt2', tmp_path, chat_template=THINKING)
  messages = [HELLO[0], {'role': 'assistant', 'content': '<think>hm</think>Hi'}, HELLO[0],
              {'role': 'assistant', 'content': '<think>so</think>well'}]
  ids, counts = chat_templates.render(messages, 'model', ours)
  assert ids.tolist() == applied(theirs, messages)
  assert ours.decode(ids[counts]) == 'Hi<|im_end|>so</think>well<|im_end|>'
  hides = "{{ '<|im_start|>' }}{% for m in messages %}{{ m['content'] if loop.last else '' }}{% endfor %}<|im_end|>"
  (tmp_path / 'other').mkdir()
  ours, _ = open_both('gpt2', tmp_path / 'other', chat_template=hides)
  with pytest.raises(ConfigError, match=r"^messages\[1\].*chat template writes what is before it in another way"):
    chat_templates.render([*HELLO, *HELLO], 'model', ours)


CONVERSATIONS = (
  [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello there.'},
   {'role': 'user', 'content': 'Mo?'}, {'role': 'assistant', 'content': 'Ok  then'}],
  [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': '<think>\nhm\n</think>\n\nYes'},
   {'role': 'user', 'content': 'Mo?'}, {'role': 'assistant', 'content': '<think>\nso\n</think>\n\nNo'}],
)
NAMES = re.compile(r'<\|[^|>\s]+\|>|</?think>|<(?:start|end)_of_turn>|<｜[^｜]+｜>')  # of tokens in templates


def open_published(name, folder):
  """(ours, theirs) with a chat template that TRL has a copy of, and with its tokens."""
  [package] = importlib.util.find_spec('trl').submodule_search_locations
  source = (pathlib.Path(package) / 'chat_templates' / f'{name}.jinja').read_text()
  published.write_folder('gpt2', folder, chat_template=source)
  file = published.library.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  file.add_tokens([published.library.AddedToken(token, special='think' not in token, normalized=False)
                   for token in sorted(set(NAMES.findall(source)))])
  file.save(str(folder / 'tokenizer.json'))
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  return make_tokenizer(HuggingFaceFile(str(folder / 'tokenizer.json'), '<|endoftext|>')), theirs


@pytest.mark.parametrize('name', (
  'llama3', 'llama3_1', 'gemma3', 'qwen2_5', 'qwen3', 'qwen3_5_think', 'deepseekv3', 'deepseek_r1_distill', 'gptoss',
  'phi3', 'cohere2', 'nemotron_3_nano'))
def test_published_templates(name, tmp_path):
  """Ids are transformers'; nothing that the user says is learnt, and all that is written of an answer is."""
  ours, theirs = open_published(name, tmp_path)
  for messages in CONVERSATIONS:
    ids, counts = chat_templates.render(messages, 'model', ours)
    assert ids.tolist() == applied(theirs, messages)
    learnt = ours.decode(ids[counts])
    assert 'Mo?' not in learnt and 'Hi' not in learnt
    assert all(message['content'].split()[-1] in learnt for message in messages[1::2])


HARMONY_TOOLS = [{'type': 'function', 'function': {'name': 'add', 'description': 'Adds.', 'parameters': {
  'type': 'object', 'properties': {'a': {'type': 'number', 'description': 'first'}}, 'required': ['a']}}}]
CALL = {'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}


def test_harmony_with_instructions_tools_and_channels(tmp_path):
  """gpt-oss: thoughts in a channel of their own, a call of a tool and its answer. Ids are transformers'. Thoughts that
  the template leaves out of earlier turns cannot be learnt, which is said; with marks the rest of such turns is."""
  ours, theirs = open_published('gptoss', tmp_path / 'plain')
  question = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'one and two?'}]
  answered = [*question, {'role': 'assistant', 'thinking': 'add them', 'content': 'Three.'}]
  ids, counts = chat_templates.render(answered, 'model', ours)
  assert ids.tolist() == applied(theirs, answered)
  assert ours.decode(ids[counts]) == (
    '<|channel|>analysis<|message|>add them<|end|><|start|>assistant<|channel|>final<|message|>Three.<|return|>')

  called = [*question, {'role': 'assistant', 'thinking': 'add them', 'tool_calls': [CALL]},
            {'role': 'tool', 'content': '3'}]
  prompt = chat_templates.prompt_ids(called, 'model', ours, HARMONY_TOOLS).tolist()
  assert prompt == applied(theirs, called, tools=HARMONY_TOOLS, add_generation_prompt=True)
  whole = [*called, {'role': 'assistant', 'thinking': 'easy', 'content': 'Three.'}]
  with pytest.raises(ConfigError, match=r'^messages\[2\] = .*does not write this answer.*put {% generation %} marks'):
    chat_templates.render(whole, 'model', ours, tools=HARMONY_TOOLS)
  ours, theirs = open_published('gptoss_training', tmp_path / 'marked')
  ids, counts = chat_templates.render(whole, 'model', ours, tools=HARMONY_TOOLS)
  assert ids.tolist() == applied(theirs, whole, tools=HARMONY_TOOLS)
  learnt = ours.decode(ids[counts])
  assert 'functions.add' in learnt and learnt.endswith('Three.<|return|>') and 'one and two?' not in learnt


@pytest.mark.parametrize('name', ('llama3', 'gemma3', 'qwen3_instruct_2507', 'cohere2'))
def test_turns_that_are_found_are_those_that_trl_marks(name, tmp_path):
  """TRL has the same templates with {% generation %} marks, some of which take in a line break behind a turn."""
  ours, _ = open_published(name, tmp_path / 'plain')
  _, marked = open_published(f'{name}_training', tmp_path / 'marked')
  for messages in CONVERSATIONS:
    ids, counts = chat_templates.render(messages, 'model', ours)
    found = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, is_said in zip(found['input_ids'], found['assistant_masks'], strict=True) if is_said]
    assert ''.join(ours.decode(ids[counts]).split()) == ''.join(marked.decode(said).split())


@pytest.mark.parametrize('change, message', [
  ({'tokenizer_class': 'T5Tokenizer'}, r'tokenizer_class = T5Tokenizer.*write "PreTrainedTokenizerFast" there'),
  ({'split_special_tokens': True}, r'split_special_tokens = True.*changes the ids'),
  ({'added_tokens_decoder': {'0': 'x'}}, r'not an added token'),
  ({'chat_template': 3}, r'chat_template'),
])
def test_what_is_not_known_is_refused_by_name(change, message, tmp_path):
  published.write_folder('llama2', tmp_path, **change)
  with pytest.raises(ConfigError, match=message) as caught:
    make_tokenizer(HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '</s>'))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('template, message', [
  ('{% if %}', r"^chat_template = .*not a template in Jinja"),
  ("{{ raise_exception('no system') }}", r"^messages = \['user', 'assistant'\]: .*refuses them: no system"),
  ("{{ messages.__class__.__mro__ }}", r"^messages = .*refuses them"),
  ("{{ cycler.__init__.__globals__.os }}", r"^messages = .*refuses them"),
])
def test_a_template_that_fails_is_one_line(template, message, tmp_path):
  """And one that would leave the sandbox fails."""
  ours, _ = open_both('gpt2', tmp_path, chat_template=template)
  with pytest.raises(ConfigError, match=message) as caught:
    chat_templates.render(HELLO, 'model', ours)
  assert '\n' not in str(caught.value)


def test_added_tokens_of_the_configuration(tmp_path):
  """They are added as transformers adds them, and change the flags of those that are there."""
  decoder = {'0': '<unk>', '1': '<s>', '2': '</s>', '424': ' dog', '425': '<new>'}
  entries = {i: {'content': name, 'lstrip': i == '2', 'special': i != '424', 'normalized': False}
             for i, name in decoder.items()}
  ours, theirs = open_both('llama2', tmp_path, added_tokens_decoder=entries, additional_special_tokens=['<x>'])
  assert ours.special_ids.keys() >= {'<new>', '<x>'} and ours.vocab_size == len(theirs)
  for text in ('a cat sees a dog', 'the </s> end', 'x <new> y'):
    ids = theirs(text).input_ids
    assert [*ours.begin, *ours.encode(text)] == ids or '<' in text
  assert chat_templates.render(HELLO, 'model', ours)[0].tolist() == applied(theirs, HELLO)
