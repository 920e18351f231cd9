"""The training step compiled for devices that are not here: TPU slices and GPUs, by their compilers alone.

libtpu, or the CUDA plugin of jax, must be installed; no such device is needed.
"""
import contextlib
import dataclasses
import functools
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import require
from llm_jax.config.ramp import Phase
from llm_jax.config.rows import TEXT
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.plan.h100 import H100
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import batch_sharding, in_host_memory, mesh_axes, replicated, state_shardings
from llm_jax.train.build import init_params, make_trained_objective, stage_seed
from llm_jax.train.compile import with_optimizer_on_host
from llm_jax.train.compiler_options import Options, compile_with_options, options_for
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step

PLATFORMS = {'tpu': 'tpu', 'gpu': 'cuda', 'cpu': 'cpu'}  # a backend, and the platform that its programs are for
# What libtpu asks of a machine that has no TPU, and what keeps the compiler for GPU from trying kernels out.
ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4', 'TPU_WORKER_HOSTNAMES': 'localhost',
               'XLA_FLAGS': '--xla_gpu_autotune_level=0'}



def prepare() -> None:
  """Sets what the compilers read when they start. To be called before jax is used."""
  jax.config.update('jax_platforms', 'cpu')
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)


def gpus(count: int) -> Sequence[Any]:
  """H100s, eight a host."""
  from jax.experimental import topologies
  hosts, each = (count // 8, 8) if count > 8 else (1, count)
  described: dict[str, Any] = dict(topology=f'1x{hosts}x{each}', target_config=H100)
  return topologies.get_topology_desc(platform='cuda', topology_name='', **described).devices


def tpus(name: str, slices: int = 1) -> Sequence[Any]:
  """The chips of TPU slices, such as 'v5p:4x4x4'."""
  from jax.experimental import topologies
  shape = [int(size) for size in name.partition(':')[2].split('x')]
  if len(shape) == 3:
    described: dict[str, Any] = dict(wrap=(all(size % 4 == 0 for size in shape),) * 3)
  else:
    described = dict(wrap=(*(size >= 16 for size in shape), False))
    if shape == [2, 2]:
      described = dict(chips_per_host_bounds=(2, 2, 1))
  if slices > 1:
    described['num_slices'] = slices
  return topologies.get_topology_desc(platform='tpu', topology_name=name, **described).devices


@contextlib.contextmanager
def as_backend(name: str) -> Generator[None]:
  """While it lasts, what asks jax for its default backend hears this one: 'tpu', 'gpu' or 'cpu'."""
  with mock.patch('jax.default_backend', lambda: name):
    yield


@dataclasses.dataclass(frozen=True)
class FarStep:
  """A compiled step. mesh: its axes and sizes.   state: shapes of the train state, with their shardings."""
  program: Any
  mesh: Mapping[str, int]
  state: TrainState


def compile_far(run: Run, stage: Stage, phase: Phase, devices: Sequence[Any], backend: str,
                options: Options | None = None) -> FarStep:
  """The training step of a phase as the trainer makes it, compiled for `devices` of a kind that is not here.

  run: its mesh is laid over the devices.   options: of the compiler; None: those that the trainer gives it.

  Raises:
    ConfigError: the stage learns from rows that are no text, or trains adapters; the mesh does not fit.
    jax.errors.JaxRuntimeError: the compiler refuses the program, for instance because it does not fit into memory.
  """
  require(stage.data.rows is TEXT, 'stage', stage.name, 'only stages that learn from text are compiled')
  require(stage.adapters is None, 'stage', stage.name, 'stages with adapters are not compiled')
  with as_backend(backend):
    mesh = make_mesh(run.mesh, devices)
    dtype = {'auto': 'float32' if backend == 'cpu' else 'bfloat16'}.get(run.dtype, run.dtype)
    execution = Execution(dtype, remat=stage.remat, context_attention=run.context_attention, unroll=False,
                          pipeline_microbatches=run.mesh.pipeline_microbatches)
    objective = make_trained_objective(stage, Transformer(run.model_of(stage), execution))
    with jax.set_mesh(mesh):
      init = functools.partial(init_params, run, stage)
      optimizer = make_optimizer(stage.optimizer, jax.eval_shape(init))
      state = jax.eval_shape(lambda: TrainState.create(init(), optimizer, stage.ema is not None))
      shardings = state_shardings(state, state.params, mesh)
      if stage.optimizer_memory == 'host':
        shardings = dataclasses.replace(shardings, opt_state=in_host_memory(shardings.opt_state))
      placed = jax.tree.map(_placed, state, shardings)
      step = make_train_step(objective, optimizer, make_schedule(stage.learning_rate, stage.steps),
                             seed=stage_seed(run, stage), microbatches=phase.microbatches, clip_norm=stage.clip_norm,
                             ema=stage.ema, skip_spikes=stage.skip_spikes)
      if stage.optimizer_memory == 'host':
        step = with_optimizer_on_host(step, shardings.opt_state)
      jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
      traced = jitted.trace(placed, Frozen(), _batch(stage, phase, mesh))
      lowered = traced.lower(lowering_platforms=(PLATFORMS[backend],))
      program = compile_with_options(lowered, options_for(backend, mesh) if options is None else options)
  return FarStep(program, dict(mesh.shape), placed)


def _placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _batch(stage: Stage, phase: Phase, mesh: jax.sharding.Mesh) -> LanguageModelBatch:
  shape = phase.batch_size, phase.seq_len
  sharding = batch_sharding(mesh)
  ids = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)
  weights = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
  sources = None
  if len(stage.data.sources) > 1:
    rows = jax.NamedSharding(mesh, jax.P(mesh_axes('batch', 'activations', mesh.shape) or None))
    sources = jax.ShapeDtypeStruct(shape[:1], np.int32, sharding=rows)
  return LanguageModelBatch(ids, ids, weights, ids, ids, sources)
