"""The command line of `launch.train`: what it understands, and the one line and exit code 2 it answers otherwise."""
import copy
import pathlib
import re
import subprocess
import sys

import pytest

from launch.errors import BAD_INPUT, Refused
from launch.experiment_file import call_get_config, load_run
from launch.field_help import settings_of
from launch.flags import parse_train
from launch.overrides import set_field
from llm_jax.config.errors import ConfigError
from llm_jax.config.optimizers import AdamW, Muon
from llm_jax.config.schedules import WSD, Cosine
from llm_jax.config.schema import from_json, plain
from llm_jax.config.stage_init import Scratch
from llm_jax.config.tokenizers import Bytes

EXPERIMENTS = pathlib.Path(__file__).parent.parent.parent / 'experiments'
QUICKSTART = f'--config={EXPERIMENTS}/quickstart.py'
ONE_STAGE = f'--config={EXPERIMENTS}/family.py:llama'


def parse(*arguments, workdir='runs/x'):
  return parse_train(['launch.train', *arguments, *([f'--workdir={workdir}'] if workdir else [])], 'usage')


def refused(capsys, *arguments, **more) -> str:
  """The one line that a refused command line prints."""
  with pytest.raises(SystemExit) as caught:
    parse(*arguments, **more)
  out, err = capsys.readouterr()
  assert caught.value.code == BAD_INPUT == 2 and out == '' and err.count('\n') == 1 and 'Traceback' not in err
  return err.removeprefix('error: ').strip()


def test_a_command_line():
  args = parse(QUICKSTART, '--stage=pretrain', '--coordinator=localhost:1234', '--num_processes=2', '--process_id=1')
  assert args.run.stages[0].name == 'pretrain' and args.stage == 'pretrain' and args.workdir == pathlib.Path('runs/x')
  assert (args.coordinator, args.num_processes, args.process_id) == ('localhost:1234', 2, 1)
  assert parse(QUICKSTART).coordinator is None and parse(QUICKSTART).overrides == ()


def test_every_field_can_be_set():
  args = parse(ONE_STAGE, '--config.seed=3', '--config.stages[0].learning_rate.peak=1', '--config.dtype', 'float32',
               '--config.stages[0].ema=0.99', '--config.stages[0].clip_norm=None',
               '--config.stages[0].evals[1].prompts[1]=a b',
               '--config.model.tied_head=false', '--config.mesh.fsdp=2', '--config.stages[0].init.kind=Scratch')
  run, stage = args.run, args.run.stages[0]
  assert (run.seed, run.dtype, run.model.tied_head, run.mesh.fsdp) == (3, 'float32', False, 2)
  assert (stage.learning_rate.peak, stage.ema, stage.clip_norm) == (1.0, 0.99, None)
  assert stage.evals[1].prompts[1] == 'a b' and stage.init == Scratch()
  assert args.overrides[0] == 'seed=3' and args.overrides[2] == 'dtype=float32'


def test_strings_stay_strings():
  for text in ('7', 'none', 'true', '1e3', "'7'", 'a.b=c'):
    name = parse(ONE_STAGE, f'--config.stages[0].name={text}', '--config.stages[0].name=' + text).run.stages[0].name
    assert name == text.strip("'")


def test_kinds_can_be_changed():
  run = parse(ONE_STAGE, '--config.stages[0].learning_rate.kind=WSD', '--config.stages[0].learning_rate.final=0.5',
              '--config.stages[0].optimizer.kind=Muon', '--config.tokenizer={"kind": "Bytes"}').run
  before = parse(ONE_STAGE).run.stages[0]
  assert before.learning_rate == Cosine(before.learning_rate.peak, before.learning_rate.warmup)
  assert run.stages[0].learning_rate == WSD(before.learning_rate.peak, before.learning_rate.warmup, final=0.5)
  assert run.stages[0].optimizer == Muon() and before.optimizer == AdamW(b2=0.95) and run.tokenizer == Bytes()
  again = parse(ONE_STAGE, '--config.stages[0].optimizer.kind=Muon', '--config.stages[0].optimizer.kind=AdamW',
                '--config.stages[0].optimizer.kind=Muon', '--config.stages[0].optimizer.matrix_scale=2').run
  assert again.stages[0].optimizer == Muon(matrix_scale=2.0)


@pytest.mark.parametrize('argument, line', [
  ('--config.stages[0].stepz=3', "config.stages[0].stepz = 3: no such field in Stage; did you mean 'steps'?"),
  ('--config.stagez[0].steps=3', "config.stagez: no such field; did you mean 'stages'?"),
  ('--config.stages[6].steps=3', 'config.stages[6]: config.stages has 6 entries, counted from 0'),
  ('--config.stages.steps=3', 'config.stages.steps: config.stages is a tuple: use config.stages[0] and so on'),
  ('--config.seed.x=3', 'config.seed.x: config.seed = 0 has no parts'),
  ('--config.seed[0]=3', 'config.seed[0]: config.seed = 0 has no parts'),
  ('--config.stages[a]=3', '--config.stages[a]: not a field: write it like --config.stages[0].learning_rate.peak'),
  ('--config.stages[0].steps=ten', "config.stages[0].steps = 'ten': give an integer, not str"),
  ('--config.stages[0].learning_rate.peak=nan', 'config.stages[0].learning_rate.peak = nan: give a finite number'),
  ('--config.stages[0].learning_rate.kind=Cosin', "config.stages[0].learning_rate.kind = 'Cosin': no such kind; did "
                                                  "you mean 'Cosine'?"),
  ('--config.model.vocab_size=99', "config.model.vocab_size = 99: smaller than the tokenizer's: use 4096 or more"),
  ('--config.mesh.fsdp=-1', "config.mesh.fsdp = -1: only one axis may be -1, found ['data', 'fsdp']"),
  ('--stage=pretrian', "--stage=pretrian: no such stage; did you mean 'pretrain'?"),
  ('--wrkdir=x', "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
  ('--num_processes=two', "flag --num_processes=two: invalid literal for int() with base 10: 'two'"),
  ('--num_processes=2', '--coordinator is missing: --coordinator, --num_processes and --process_id go together'),
  ('--profile=5', '--profile=5: write it as START:STOP, such as --profile=10:15'),
  ('--profile=5:5', '--profile=5:5: there is no step between them: let STOP be above START'),
  ('--profile=0:99999', '--profile=0:99999: the longest stage has 330 steps: let STOP be at most that'),
  ('--cpu_devices=0', '--cpu_devices=0: use 1 or more, such as one for each core'),
  ('resume', "'resume' is not a flag: flags look like --workdir=runs/quickstart"),
])
def test_wrong_arguments_are_one_line(capsys, argument, line):
  assert refused(capsys, QUICKSTART, argument) == line


def test_a_mesh_that_does_not_divide(capsys):
  assert refused(capsys, QUICKSTART, '--config.mesh.tensor=3').startswith('config.mesh.tensor = 3: ')
  line = refused(capsys, QUICKSTART, '--config.mesh.data=1', '--config.mesh.fsdp=32')
  assert line.startswith('config.mesh.fsdp = 32: ')


def test_wrong_cluster_flags(capsys):
  for coordinator, processes, which, words in (('nowhere', 2, 0, "--coordinator = 'nowhere': give host:port"),
                                               ('localhost:99999', 2, 1, 'with a port from 1 to 65535'),
                                               ('localhost:0', 2, 1, "--coordinator = 'localhost:0'"),
                                               (':1', 2, 1, "--coordinator = ':1'"),
                                               ('a:1', 0, 0, '--num_processes=0: use 1 or more'),
                                               ('a:1', 2, 2, '--process_id=2: use 0 to 1')):
    assert words in refused(capsys, QUICKSTART, f'--coordinator={coordinator}', f'--num_processes={processes}',
                            f'--process_id={which}')


def test_a_workdir_that_cannot_be(capsys, tmp_path):
  assert refused(capsys, QUICKSTART, workdir=None).startswith('--workdir is missing')
  file = tmp_path / 'file'
  file.write_text('')
  assert 'is a file: name a folder' in refused(capsys, QUICKSTART, workdir=file)
  assert 'is a file: name a folder' in refused(capsys, QUICKSTART, workdir=file / 'below')
  assert 'File name too long: choose another folder' in refused(capsys, QUICKSTART, workdir=tmp_path / ('a' * 300))
  assert not (tmp_path / 'new').exists() and parse(QUICKSTART, workdir=tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('text, words', [
  ('x = 1\n', 'it has no get_config(): define one that returns experiment(...)'),
  ('def get_config():\n  return 3\n', 'get_config() returned int: return experiment(...)'),
  ('def get_config():\n  return (\n', ":2: SyntaxError: '(' was never closed"),
  ('def get_config():\n  return lerning_rate\n', ":2: NameError: name 'lerning_rate' is not defined"),
  ('x = 1\0\n', 'mine.py: SyntaxError: source code string cannot contain null bytes'),
  ('import no_such_module\n', ":1: ModuleNotFoundError: No module named 'no_such_module'"),
  ('from llm_jax.config.experiment import WSD\ndef get_config():\n  return WSD(peak=float("nan"))\n',
   ':3: peak = nan: use a'),
  ('from llm_jax.config.experiment import WSD\ndef get_config():\n  return WSD(peek=1e-3)\n',
   ":3: WSD(peek=...): no such argument; did you mean 'peak'?"),
  ('from llm_jax.config.experiment import WSD\ndef get_config():\n  return WSD(peak="3e-4")\n',
   ":3: WSD.peak = '3e-4': give a number, not str"),
  ('from llm_jax.config.experiment import *\ndef get_config():\n  return Needles((64))\n',
   ':3: Needles.seq_lens = 64: give a tuple, not int, such as (64,)'),
  ('from llm_jax.config.experiment import *\ndef get_config():\n  return presets.llama(32, layers=1)\n',
   ":3: llama(layers=...): no such argument; did you mean 'num_layers'?"),
  ('def get_config():\n  return max(3)\n', ":2: TypeError: 'int' object is not iterable"),
  ('def get_config():\n  return {"seeed": 1}\n', "config.seeed = 1: no such field in Run; did you mean 'seed'?"),
])
def test_a_wrong_experiment_file(capsys, tmp_path, text, words):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  assert words in refused(capsys, f'--config={file}')


UNFIT = """
from llm_jax.config.experiment import *

def get_config():
  return experiment(model=presets.gpt2(32, 1, 2, vocab_size=257, max_length=16), tokenizer=Bytes(), stages=(
    stage('one', Text('a.txt'), steps=5, seq_len=64, batch_size=9, microbatches=4,
          learning_rate=Cosine(1e-3, warmup=7)),))
"""
MENDED = ('stages[0].seq_len', '16'), ('stages[0].microbatches', '3'), ('stages[0].learning_rate.warmup', '2')


def test_overrides_are_put_in_before_what_they_mend_is_refused(tmp_path):
  """What does not fit together in the file is checked once the command line has been read."""
  file = tmp_path / 'unfit.py'
  file.write_text(UNFIT)
  stage = load_run(str(file), MENDED).stages[0]
  assert (stage.seq_len, stage.microbatches, stage.learning_rate.warmup) == (16, 3, 2)
  assert [phase.seq_len for phase in stage.phases] == [16] and stage.evals  # derived and default values are there
  # What is left is refused as before: with the line of the file where no override has a part in it.
  for overrides, message in (
    ((), 'unfit.py:6: stage(.one.).microbatches = 4: use a divisor of batch_size=9'),
    ((('seed', '3'),), 'unfit.py:6: stage(.one.).microbatches = 4'),
    (MENDED[1:], r'^config.stages\[0\].seq_len = 64: the learned positions end at'),
    (MENDED[:2], r'^config.stages\[0\].learning_rate.warmup = 7: warm-up is longer'),
    ((*MENDED, ('stages[0].steps', 'x')), r"^config.stages\[0\].steps = 'x': give an integer")):
    with pytest.raises((Refused, ConfigError), match=message.replace('(.', r'\(.').replace('.)', r'.\)')):
      load_run(str(file), overrides)


def test_a_missing_experiment(capsys, tmp_path):
  assert refused(capsys).startswith('--config is missing: name an experiment')
  assert "did you mean '" + f'{EXPERIMENTS}/quickstart.py' in refused(capsys, f'--config={EXPERIMENTS}/quikstart.py')
  assert refused(capsys, f'--config={tmp_path}/none.py') == f'--config={tmp_path}/none.py: no such file'
  (tmp_path / 'b.py').touch()
  assert refused(capsys, f'--config={tmp_path}') == (
    f'--config={tmp_path}: a folder: name one Python file, such as {tmp_path}/b.py')


def test_an_experiment_with_an_argument(capsys, tmp_path):
  config = f'--config={EXPERIMENTS}/shakespeare_char.py'
  assert refused(capsys, config).endswith('needs its argument (path): use ' + f'{config}:PATH')
  assert refused(capsys, f'{config}:{tmp_path}/none.txt').startswith(
    f"config.stages[0].data.sources[0].source.path = '{tmp_path}/none.txt': no such file: name one by {config}:FILE")
  assert 'takes no argument' in refused(capsys, QUICKSTART + ':x')
  (tmp_path / 'a.txt').write_text('x')
  assert parse(f'{config}:{tmp_path}/a.txt').config.endswith('a.txt')


def test_help_says_what_there_is(capsys):
  with pytest.raises(SystemExit) as caught:
    parse_train(['launch.train', '--help'], 'What it does.')
  assert caught.value.code == 0
  out = capsys.readouterr().out
  assert out.startswith('What it does.')
  for name in ('config', 'workdir', 'stage', 'coordinator', 'num_processes', 'process_id'):
    assert f'--{name}' in out


@pytest.mark.parametrize('wrong', ['--config=nothing.py', '--nonsense', '--workdir'])
def test_help_comes_before_what_is_wrong(wrong, capsys):
  with pytest.raises(SystemExit):
    parse_train(['launch.train', '--help', wrong], 'What it does.')
  out, error = capsys.readouterr()
  assert out.startswith('What it does.') and '--process_id' in out and wrong.strip('-').split('=')[0] in error


def test_help_of_an_experiment_lists_its_fields(capsys):
  """Every one of them can be set to what is printed."""
  with pytest.raises(SystemExit) as caught:
    parse(ONE_STAGE, '--config.seed=3', '--help', workdir=None)
  out = capsys.readouterr().out
  settings = list(settings_of(load_run(ONE_STAGE.removeprefix('--config='), [('seed', '3')])))
  fields = [setting.argument for setting in settings]
  assert caught.value.code == 0 and len(fields) > 50
  for field in ('--config.seed=3', '--config.stages[0].ema=None', '--config.stages[0].init.kind=Scratch',
                '--config.stages[0].learning_rate.kind=Cosine', '--config.mesh.data=-1'):
    assert field in fields
  lines = [line for line in out.splitlines() if line.startswith('  --config.')]
  assert all(line == f'  {field}' or line.startswith(f'  {field}  ') for line, field in zip(lines, fields, strict=True))
  assert parse(ONE_STAGE, *fields).run == parse(ONE_STAGE, '--config.seed=3').run
  assert refused(capsys, ONE_STAGE, '--steps=9') == (
    "Unknown command line flag 'steps'; a field of the experiment is set by --config.FIELD=VALUE, and --config=FILE "
    '--help lists them')


def help_of(capsys, config: str) -> str:
  with pytest.raises(SystemExit):
    parse_train(['launch.train', config, '--help'], 'usage')
  return capsys.readouterr().out


def test_help_of_a_field_is_its_line_and_its_unit(capsys):
  out = help_of(capsys, QUICKSTART)
  assert re.search(r'^  --config.seed=0  +decides parameters, order of the data and dropout$', out, re.MULTILINE)
  assert re.search(r'^  --config.stages\[0\].steps=330  +how many optimizer steps it takes \[steps\]$', out,
                   re.MULTILINE)
  assert re.search(r'^  --config.stages\[0\].optimizer.kind=Muon  +how gradients become updates: AdamW, Muon, Lion,$',
                   out, re.MULTILINE)
  assert out.count('how gradients become updates') == 6 and out.count('AdamW, Muon') == 1  # the kinds once
  described = [line for line in out[out.index('Fields of'):].splitlines() if re.search(r'\S {2,}\S', line)]
  assert max(len(line) for line in described if not re.search(r'prompts=', line)) <= 100


def test_help_takes_no_time_and_no_jax():
  code = (f"import sys, launch.train; sys.argv = ['launch.train', '{QUICKSTART}', '--help']\n"
          "try: launch.train.main(sys.argv)\nexcept SystemExit: print('jax' in sys.modules, 'numpy' in sys.modules)")
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert out.splitlines()[-1] == 'False False'


ODD = (
  '', '(', '(' * 3_000, '[' * 300 + ']' * 300, '[]', '{}', "b'x'", '1j', '{1, 2}', '...', '{[]: 1}', '{1: 2}',
  "{'kind': [1]}", "{'kind': {}}", "{'kind': None}", '[1]', '(None,)', '1' + '0' * 400, '-1' + '0' * 400, '9' * 5_000,
  '1e400', 'nan', 'inf', '-inf', '-1', '2**70', str(2**63), '5e-324', '1.7976931348623157e308', '"', '\\', "'\\d'",
  'a\x00b', '\ud800', 'x' * 10_000, '1if 1else 2', 'lambda: 1', '{None: 1}', "{'a': b'x'}")
FIELDS = (
  'seed', 'dtype', 'stages', 'stages[0]', 'stages[0].name', 'stages[0].steps', 'stages[0].batch_size', 'stages[0].ema',
  'stages[0].learning_rate', 'stages[0].learning_rate.peak', 'stages[0].learning_rate.kind', 'stages[0].optimizer',
  'stages[0].data.sources[0].weight', 'stages[0].data.sources[0].source', 'stages[0].evals', 'stages[0].evals[0]',
  'stages[0].init', 'model.d_model', 'model.pattern[0].attention', 'tokenizer', 'mesh.data', 'checkpoints.every')


@pytest.mark.parametrize('field', FIELDS)
def test_odd_literals_are_taken_or_refused_by_the_fields_name(field, recwarn):
  """Whatever Python makes of a text: never a traceback, nor a line without the field."""
  tree = plain(call_get_config(f'{EXPERIMENTS}/quickstart.py'))
  for text in ODD:
    changed = copy.deepcopy(tree)
    set_field(changed, field, text)
    try:
      from_json(changed)
    except ConfigError as error:
      part = 'config.' + field.split('.')[0].split('[')[0]
      assert str(error).startswith(part) and len(str(error)) < 2_000, (text[:40], str(error)[:200])
  assert not recwarn.list


@pytest.mark.parametrize('name', ['x' * 129, 'é' * 65, 'a/b', 'a\nb', 'a\0b', ''])
def test_a_stage_name_that_no_folder_can_have_is_refused_at_the_start(capsys, name):
  line = refused(capsys, QUICKSTART, f'--config.stages[0].name={name}')
  assert 'config.stages[0].name' in line


def test_a_path_that_is_too_long_for_checkpoints_is_refused_at_the_start(capsys, tmp_path):
  deep = '/'.join([str(tmp_path), *['x' * 200] * 20])
  assert 'its path is too long for the files of a checkpoint' in refused(capsys, QUICKSTART, workdir=deep)
  assert not list(tmp_path.iterdir())
