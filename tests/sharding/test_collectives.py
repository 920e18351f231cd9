"""The reader of collectives: programs whose bytes are known, and lines as the compilers for TPU and GPU write them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llm_jax.config.run import Mesh
from llm_jax.sharding.collectives import collectives_of
from llm_jax.sharding.mesh import make_mesh

STEPS = 3
NUMBERS = 64  # float32 on each device


def exchange(kind, axis):
  """One collective along a mesh axis, of [64] on each device."""
  return {
    'all-gather': lambda x: jax.lax.all_gather(x, axis, tiled=True).reshape(-1, NUMBERS).sum(0),
    'all-reduce': lambda x: jax.lax.psum(x, axis),
    'reduce-scatter': lambda x: jnp.tile(jax.lax.psum_scatter(x, axis, tiled=True), jax.lax.axis_size(axis)),
    'all-to-all': lambda x: jax.lax.all_to_all(x, axis, 0, 0, tiled=True),
    'collective-permute': lambda x: jax.lax.ppermute(x, axis, [(0, 1), (1, 0)]),
  }[kind]


# What a device sends of 256 bytes, by the ring algorithm.
@pytest.mark.parametrize('kind, axis, sent', (
  ('all-gather', 'fsdp', 256 * 3), ('all-reduce', 'fsdp', 256 * 2 * 3 / 4), ('reduce-scatter', 'fsdp', 256 * 3 / 4),
  ('all-to-all', 'fsdp', 256 * 3 / 4), ('all-reduce', 'data', 256), ('all-gather', 'data', 256),
  ('collective-permute', 'data', 256)))
def test_bytes_in_a_loop(kind, axis, sent):
  def local(x):
    body = lambda x, _: (jnp.tanh(exchange(kind, axis)(x)), None)
    return jax.lax.scan(body, x, None, length=STEPS)[0]

  mesh = make_mesh(Mesh(2, 4))
  with jax.set_mesh(mesh):
    run = jax.jit(jax.shard_map(local, in_specs=P(('data', 'fsdp')), out_specs=P(('data', 'fsdp')), check_vma=False))
    text = run.lower(np.zeros(8 * NUMBERS, np.float32)).compile().as_text()
  (found,) = collectives_of(text, mesh.shape)
  assert (found.kind, found.axes, found.times, found.sent) == (kind, (axis,), STEPS, STEPS * sent)
  assert not found.is_async


PROGRAM = '''HloModule step

%region (a: f32[], b: f32[]) -> f32[] {{
  ROOT %add = f32[] add(%a, %b)
}}

%{name} (p: bf16[8,16]) -> bf16[8,16] {{
  {line}
}}

ENTRY %main (p: bf16[8,16]) -> bf16[8,16] {{
  ROOT %call = bf16[8,16] fusion(%p), kind=kCustom, calls=%{name}
}}
'''
MESH = {'data': 2, 'fsdp': 4, 'tensor': 2}


@pytest.mark.parametrize('name, line, want', (
  ('wrapped', '%g = (bf16[8,16], bf16[32,16]) all-gather-start(%p), replica_groups=[4,4]<=[2,4,2]T(0,2,1)',
   ('all-gather', ('fsdp',), 1024 * 3 / 4, True)),
  ('wrapped', '%g = bf16[32,16] all-gather(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}',
   ('all-gather', ('fsdp',), 1024 * 3 / 4, False)),
  ('wrapped', "%g = bf16[32,16] all-gather(%p), replica_groups=mesh['data'=2,'fsdp'=4,'tensor'=2] {'fsdp'}",
   ('all-gather', ('fsdp',), 1024 * 3 / 4, False)),
  ('wrapped', "%g = bf16[32,16] all-gather(%p), replica_groups=mesh['x'=4,'y'=4]<=[2,4,2]T(1,0,2) {'x'}",
   ('all-gather', ('fsdp',), 1024 * 3 / 4, False)),
  ('wrapped', "%g = bf16[16,16] all-gather(%p), replica_groups=mesh['data'=2,'fsdp'=4,'tensor'=2] {'fsdp':(2)2}",
   ('all-gather', ('fsdp',), 512 / 2, False)),
  ('wrapped', '%r = f32[8,16]{1,0:T(8,128)} all-reduce(%p), replica_groups=[2,8]<=[16], to_apply=%region',
   ('all-reduce', ('fsdp', 'tensor'), 512 * 2 * 7 / 8, False)),
  ('all-reduce-scatter.1', '%r = f32[8,16] all-reduce(%p), replica_groups=[8,2]<=[16], to_apply=%region',
   ('reduce-scatter', ('tensor',), 512 / 2, False)),
  ('async_collective_fusion.2', '%g = bf16[16,16] all-gather(%p), channel_id=5, replica_groups=[8,2]<=[2,8]T(1,0)',
   ('all-gather', ('data',), 512 / 2, True)),
  ('wrapped', '%c = (bf16[8,16], bf16[8,16], u32[], u32[]) collective-permute-start(%p), '
   'source_target_pairs={{0,1},{1,0}}', ('collective-permute', ('tensor',), 256, True)),
))
def test_lines_of_other_compilers(name, line, want):
  (found,) = collectives_of(PROGRAM.format(name=name, line=line), MESH)
  assert (found.kind, found.axes, found.sent, found.is_async) == want


LOOP = '''HloModule step

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = f32[4] all-reduce(%x), replica_groups=[8,2]<=[16], to_apply=%region
}

%condition (t: (s32[], f32[4])) -> pred[] {
  %limit = s32[] constant(7)
  ROOT %compare = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%start), condition=%condition, body=%body
}
'''


def test_a_loop_whose_count_is_in_its_condition():
  (found,) = collectives_of(LOOP, MESH, unknown_count=5)
  assert found.times == 7 and found.sent == 7 * 16


def test_a_loop_whose_count_only_the_running_program_knows():
  text = LOOP.replace('s32[] constant(7)', 's32[] get-tuple-element(%t), index=0')
  (found,) = collectives_of(text, MESH, unknown_count=5)
  assert found.times == 5
