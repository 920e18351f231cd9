"""What starts runs on clusters, against programs that stand for the cluster's own and note how they are called."""
import os
import pathlib
import shutil
import stat
import subprocess

import pytest
import yaml

from launch import gke

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ('--config=a b.py', '--workdir=/shared/runs/mine')


def put(folder, name, script):
  """A program for PATH."""
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{script}')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(folder, *command, **variables):
  """Runs a script with the programs of `folder` before all others; returns how it ended, and their calls."""
  calls = folder / 'calls'
  environment = {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', 'CALLS': str(calls), **variables}
  done = subprocess.run(['bash', *command], env=environment, cwd=folder, text=True, capture_output=True, timeout=60)
  return done, calls.read_text().splitlines() if calls.exists() else []


# ---------------------------------------------------------------------------------------------- Slurm
@pytest.fixture
def slurm(tmp_path):
  shutil.copy(ROOT / 'launch' / 'slurm.sbatch', tmp_path)
  put(tmp_path, 'srun', 'printf "srun %s\\n" "$*" >>"$CALLS"; exit "$CODE"')
  put(tmp_path, 'scontrol', 'printf "scontrol %s\\n" "$*" >>"$CALLS"')
  put(tmp_path, 'sbatch', 'printf "sbatch %s\\n" "$*" >>"$CALLS"')
  return tmp_path


@pytest.mark.parametrize('code, requeued', ((0, False), (75, True), (70, True), (2, False), (1, False)))
def test_a_job_that_can_go_on_is_queued_again(code, requeued, slurm):
  done, calls = run(slurm, 'slurm.sbatch', *TRAIN, CODE=str(code), SLURM_JOB_ID='17', PYTHON='python3')
  assert calls[0] == f'srun --label --unbuffered python3 -m launch.train {" ".join(TRAIN)}'
  assert calls[1:] == (['scontrol requeue 17'] if requeued else [])
  assert done.returncode == (0 if requeued else code)


def test_slurm_is_asked_whether_it_could_run(slurm):
  done, calls = run(slurm, 'slurm.sbatch', *TRAIN, DRY_RUN='1', PYTHON='python3')
  assert done.returncode == 0 and done.stdout.startswith('srun --label') and 'a\\ b.py' in done.stdout
  assert calls == [f'sbatch --test-only slurm.sbatch {" ".join(TRAIN)}']
  assert run(slurm, 'slurm.sbatch')[0].returncode == 2


# ---------------------------------------------------------------------------------------------- TPU VMs
GCLOUD = r"""
printf '%s\n' "${*//$'\n'/ }" >>"$CALLS"
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
  *describe*) next states ;;
  *'cat ~/llm_jax.exit'*) next codes ;;
esac
"""


@pytest.fixture
def tpu(tmp_path):
  """States are those that the slice is found in, codes those that the run ends with, one after the other."""
  put(tmp_path, 'gcloud', GCLOUD)

  def launch(states, codes, *flags, **variables):
    (tmp_path / 'states').write_text(''.join(f'{state}\n' for state in states))
    (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
    return run(tmp_path, str(ROOT / 'launch' / 'tpu_pod.sh'), *flags, REPOSITORY='git@host:llm', PAUSE_SECONDS='0',
               **variables)

  return launch


POD = ('mine', 'us-east5-a', 'v5litepod-64', *TRAIN)


def count(calls, word):
  return sum(word in call for call in calls)


def test_a_slice_is_asked_for_and_the_run_ends(tpu):
  done, calls = tpu(['', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'], [0], *POD, SPOT='1')
  assert done.returncode == 0 and 'ended with code 0' in done.stderr
  [asked] = [call for call in calls if 'queued-resources create' in call]
  assert '--node-id=mine --zone=us-east5-a --accelerator-type=v5litepod-64' in asked and asked.endswith('--spot')
  [trained] = [call for call in calls if 'launch.train' in call]
  assert '--worker=all' in trained and r'--config=a\ b.py --workdir=/shared/runs/mine --coordinator=auto' in trained
  assert '--output-directory=mine-logs' in trained


def test_a_slice_that_is_taken_away_is_asked_for_again(tpu):
  """First found active, then suspended after a stop on request."""
  done, calls = tpu(['ACTIVE', 'SUSPENDED', 'SUSPENDED', '', 'ACTIVE'], [75, 0], *POD)
  assert done.returncode == 0 and 'ended with code 75 on mine, which is SUSPENDED: once more' in done.stderr
  assert count(calls, 'queued-resources delete') == 1 and count(calls, 'queued-resources create') == 1
  assert count(calls, 'launch.train') == 2


def test_wrong_input_is_not_started_again(tpu):
  done, calls = tpu(['ACTIVE'], [2], *POD)
  assert done.returncode == 2 and count(calls, 'launch.train') == 1


def test_a_dry_run_calls_nothing(tpu):
  done, calls = tpu([], [], *POD, DRY_RUN='1')
  assert done.returncode == 0 and calls == []
  assert [line.split()[3] for line in done.stdout.splitlines()] == ['queued-resources', 'tpu-vm', 'tpu-vm']


@pytest.mark.parametrize('flags', (('mine',), ('Mine', *POD[1:]), ('--config=a', '--workdir=b', 'c', 'd')))
def test_wrong_flags_of_a_pod_are_one_line(flags, tpu):
  done, calls = tpu([], [], *flags)
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and calls == []


# ---------------------------------------------------------------------------------------------- GKE
JOB = ('--name=mine', '--accelerator=tpu-v5-lite-podslice', '--topology=4x8', '--slices=2', '--image=host/llm:1',
       '--claim=disk', '--dry_run')


def test_a_jobset_is_rendered(capsys):
  assert gke.main([*JOB, '--', *TRAIN]) == 0
  found = yaml.safe_load(capsys.readouterr().out)
  assert (found['kind'], found['metadata']['name']) == ('JobSet', 'mine')
  [slices] = found['spec']['replicatedJobs']
  job = slices['template']['spec']
  pod = job['template']['spec']
  assert (slices['replicas'], job['parallelism'], job['completions'], job['backoffLimit']) == (2, 8, 8, 0)
  assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [70, 75]
  assert pod['restartPolicy'] == 'Never'
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x8'
  [container] = pod['containers']
  assert container['command'] == ['python', '-m', 'launch.train', *TRAIN]
  assert container['resources']['limits'] == {'google.com/tpu': 4}


@pytest.mark.parametrize('flags, message', (
  (('--topology=4by8',), "--topology = '4by8': write it as"),
  (('--topology=1x3',), 'has 3 chips: use a multiple of the 4'),
  (('--name=Mine',), "--name = 'Mine'"),
  (('--slices=0',), '--slices = 0'),
  (('--mount=/other',), "--workdir = '/shared/runs/mine': put it on the volume"),
))
def test_wrong_flags_of_gke_are_one_line(flags, message, capsys):
  with pytest.raises(SystemExit) as ended:
    gke.main([*JOB, *flags, '--', *TRAIN])
  assert ended.value.code == 2 and message in capsys.readouterr().err


def test_flags_of_the_run_are_checked(capsys):
  for train, message in ((TRAIN[:1], '--workdir = None: give it behind --'),
                         ((*TRAIN, '--coordinator=auto'), "--coordinator = 'auto': leave it out")):
    with pytest.raises(SystemExit):
      gke.main([*JOB, '--', *train])
    assert message in capsys.readouterr().err
