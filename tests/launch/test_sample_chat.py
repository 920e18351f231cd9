"""launch.sample on what is typed or piped in: conversations, line by line, with text and chat models."""
import io

import pytest

from launch import sampler
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.data import Data, Weighted
from llm_jax.config.experiment import Bytes, Constant, Conversations
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.base import make_tokenizer
from llm_jax.tracking.run_config import write_config
from tests.checkpoints.checkpoint_states import make_metadata
from tests.launch.sample_runs import MODEL, answer_to, call, decode, params, text_of, write_run


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def chat_workdir(tmp_path_factory):
  """A run whose one stage learnt from conversations, in the plain template."""
  folder = tmp_path_factory.mktemp('chat')
  data = Data((Weighted(Conversations('chats.jsonl', 'plain')),))
  run = Run(MODEL, (Stage('sft', data, 5, 32, 8, Constant(1e-3)),))
  write_config(folder, run)
  tokenizer = make_tokenizer(Bytes(), None)
  tokenizer.save(folder / 'tokenizer')
  with CheckpointStore(folder / 'checkpoints' / 'sft', keep=1) as store:
    store.save(5, {'params': params(5)}, make_metadata(tokenizer=tokenizer.fingerprint), wait=True)
  return folder


class Terminal(io.StringIO):
  isatty = lambda self: True


def chat(workdir, monkeypatch, capsys, typed, *flags, stdin=io.StringIO):
  monkeypatch.setattr('sys.stdin', stdin(typed))
  assert call(workdir, '--temperature=0', '--max_new_tokens=4', *flags) == 0
  return capsys.readouterr()


def test_chat_reads_the_conversation_again(workdir, capsys, monkeypatch):
  first = answer_to(params(5), [256, *b'p'], 4)
  second = answer_to(params(5), [256, *b'p', *first, *b'\nq'], 4)
  out, _ = chat(workdir, monkeypatch, capsys, 'p\nq\n')
  assert out == f'{decode(first)}\n{decode(second)}\n'
  more = answer_to(params(5), [256, *b'p', *first], 4)
  out, _ = chat(workdir, monkeypatch, capsys, 'p\n/reset\np\n\n/quit\np')  # an empty line: go on
  assert out == f'{decode(first)}\n{decode(first)}\n{decode(more)}\n' and first != more


def test_chat_with_a_person(workdir, capsys, monkeypatch):
  out, err = chat(workdir, monkeypatch, capsys, 'p\n', stdin=Terminal)
  assert out == f'> {text_of(params(5), "p", 4)}\n> \n' and 'Ctrl-D' in err


def test_a_chat_model_answers_as_its_template_has_it(chat_workdir, capsys, monkeypatch):
  asked = [256, *b'User: p\n\nAssistant:']
  first = answer_to(params(5), asked, 3)
  flags = '--prompt=p', '--temperature=0', '--max_new_tokens=3'
  assert call(chat_workdir, *flags) == 0 and capsys.readouterr().out == f'{decode(first)}\n'
  assert call(chat_workdir, *flags, '--raw') == 0 and capsys.readouterr().out == f'p{text_of(params(5), "p", 3)}\n'
  said = decode(first).strip().encode()
  assert said  # it is written out again, between the template's own marks
  again = answer_to(params(5), [*asked, *b' ', *said, 256, *b'User: q\n\nAssistant:'], 3)
  out, err = chat(chat_workdir, monkeypatch, capsys, 'p\n\nq\n', '--max_new_tokens=3')
  assert out == f'{decode(first)}\n{decode(again)}\n' and 'content' in err  # an empty line is no message


def test_a_template_and_a_system_message_by_flag(workdir, chat_workdir, capsys, monkeypatch):
  """A model that learnt from no conversations, as one that was imported, and the other: the same ids."""
  opening = [256, *b'System: be brief\n\n']
  first = answer_to(params(5), [*opening, *b'User: p\n\nAssistant:'], 3)
  system = '--system=be brief', '--max_new_tokens=3'
  for folder, flags in ((workdir, ('--template=plain', *system)), (chat_workdir, system)):
    out, _ = chat(folder, monkeypatch, capsys, 'p\n/reset\np\n', *flags)
    assert out == f'{decode(first)}\n' * 2
    assert call(folder, '--prompt=p', '--temperature=0', *flags) == 0
    assert capsys.readouterr().out == f'{decode(first)}\n'


@pytest.mark.parametrize('flags,words', [
    (['--template=plain', '--raw'], '--raw'), (['--system= '], '--system'),
    (['--system=a'], 'name the --template'), (['--template=llama3'], 'lacks its special tokens')])
def test_wrong_templates(workdir, capsys, flags, words, monkeypatch):
  monkeypatch.setattr(
    'llm_jax.checkpoints.checkpoint.SavedCheckpoint.read', lambda *_: pytest.fail('parameters were read')
  )
  with pytest.raises(SystemExit) as caught:
    call(workdir, '--prompt=a', *flags)
  assert caught.value.code == 2 and words in capsys.readouterr().err


def test_interrupt_stops_the_answer_only(workdir, capsys, monkeypatch):
  stream = sampler.stream

  def interrupted(*args, **kwargs):
    """One token and then Ctrl-C, the first time."""
    monkeypatch.setattr(sampler, 'stream', stream)
    yield [next(stream(*args, **kwargs))[0][:1]]
    raise KeyboardInterrupt

  monkeypatch.setattr(sampler, 'stream', interrupted)
  first = answer_to(params(5), [256, *b'p'], 4)[:1]
  second = answer_to(params(5), [256, *b'p', *first, *b'\nq'], 4)
  out, _ = chat(workdir, monkeypatch, capsys, 'p\nq\n')
  assert out == f'{decode(first)}\n{decode(second)}\n'


def test_chat_survives_a_line_it_cannot_encode(workdir, capsys, monkeypatch):
  encode = sampler.load_tokenizer(workdir / 'tokenizer').encode

  def refuse(self, text):
    if text == 'bad':
      raise ValueError('not\nthis')
    return encode(text)

  monkeypatch.setattr('llm_jax.data.tokenizers.byte_level.ByteTokenizer.encode', refuse)
  out, err = chat(workdir, monkeypatch, capsys, 'bad\np\n')
  assert out == f'{text_of(params(5), "p", 4)}\n' and 'error: not this\n' in err


@pytest.mark.parametrize('flags,words', [(['--num_samples=2'], '--num_samples'), (['--log_probs'], '--log_probs')])
def test_a_chat_has_one_answer(workdir, capsys, flags, words):
  with pytest.raises(SystemExit) as caught:
    call(workdir, *flags)
  assert caught.value.code == 2 and words in capsys.readouterr().err


def test_a_chat_model_is_told_something(chat_workdir, capsys, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('\n'))
  with pytest.raises(SystemExit) as caught:
    call(chat_workdir, '--prompt=-')
  assert caught.value.code == 2 and "error: --prompt = '-': empty" in capsys.readouterr().err


def test_prompt_from_a_pipe(workdir, capsys, monkeypatch):
  out, _ = chat(workdir, monkeypatch, capsys, 'x\ny', '--prompt=-')
  assert out == f'x\ny{text_of(params(5), chr(120) + chr(10) + chr(121), 4)}\n'
