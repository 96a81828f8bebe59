"""Collectives of compiled programs, against counts by hand."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.compiling import groups as groups_of
from bigdl.compiling import hlo, traffic
from bigdl.parallel.layout import AXES, Layout

HERE = pathlib.Path(__file__).parent
LAYERS, WIDTH = 3, 1024  # Of make_texts.py.
N = 256  # Floats that each device holds of what is sent.


@functools.cache
def mesh():
  return Layout(data=2, fsdp=4).mesh()


def placed(**sizes):
  """Chips of a slice in a row, as many as the axes say."""
  slices = sizes.pop('slices', 1)
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  size = int(np.prod(shape))
  return traffic.Placement(
    AXES,
    shape,
    tuple(i * slices // size for i in range(size)),
    tuple(range(size)),
    tuple((i % 4, i // 4 % 2, 0) for i in range(size)),
  )


def compiled(function, spec, out):
  """Compiles what each device does with N floats, for 8 CPU devices."""
  mapped = jax.shard_map(
    function, mesh=mesh(), in_specs=spec, out_specs=out, check_vma=False
  )
  x = jax.ShapeDtypeStruct((8 * N,), jnp.float32)
  text = jax.jit(mapped).lower(x).compile().as_text()
  return traffic.collectives(hlo.parse(text), traffic.Placement.of(mesh()))


BOTH = jax.P(('data', 'fsdp'))
# What each device sends of its N floats of 4 bytes, in a ring.
CASES = {
  'all-reduce': (
    lambda x: jax.lax.psum(x, 'fsdp'),
    2 * N * 4 * 3 / 4,
    'fsdp',
  ),
  'all-gather': (
    lambda x: jax.lax.all_gather(x, 'data', tiled=True),
    2 * N * 4 / 2,
    'data',
  ),
  'reduce-scatter': (
    lambda x: jax.lax.psum_scatter(x, 'fsdp', tiled=True),
    N * 4 * 3 / 4,
    'fsdp',
  ),
  'all-to-all': (
    lambda x: jax.lax.all_to_all(
      x.reshape(4, -1), 'fsdp', 0, 0, tiled=True
    ).ravel(),
    N * 4 * 3 / 4,
    'fsdp',
  ),
  'collective-permute': (
    lambda x: jax.lax.ppermute(x, 'fsdp', [(i, (i + 1) % 4) for i in range(4)]),
    N * 4,
    'fsdp',
  ),
}


@pytest.mark.parametrize('kind', CASES)
def test_a_collective_is_known_by_kind_axis_and_bytes(kind):
  function, wire, axis = CASES[kind]
  (found,) = compiled(function, BOTH, BOTH)
  assert found.kind == kind
  assert found.axes == (axis,)
  assert found.wire_bytes == wire
  assert found.executions == 1
  assert found.group == mesh().shape[axis]


def test_a_collective_in_a_loop_counts_each_round():
  def rounds(x):
    def body(x, _):
      return jnp.sin(jax.lax.psum(x, ('data', 'fsdp'))), None

    return jax.lax.scan(body, x, length=5)[0]

  (found,) = compiled(rounds, BOTH, BOTH)
  assert (found.executions, found.axes) == (5, ('data', 'fsdp'))
  wire = 2 * N * 4 * 7 // 8
  assert traffic.totals([found]) == {'data+fsdp:network': 5 * wire} or (
    # The devices of one process are one host.
    traffic.totals([found]) == {'data+fsdp:nvlink': 5 * wire}
  )
  assert traffic.counts([found]) == {'all-reduce:data+fsdp': 5}


def test_fsdp_on_tpu_gathers_each_weight_in_each_pass():
  module = hlo.parse((HERE / 'tpu.txt').read_text())
  found = traffic.collectives(module, placed(data=2, fsdp=4))
  gathered = [
    c for c in found if c.kind == 'all-gather' and c.result_bytes >= 2**20
  ]
  # Forward, and at least once more backward.
  weight = WIDTH * WIDTH * 2
  total = sum(c.executions * c.result_bytes for c in gathered)
  assert total % weight == 0
  assert 2 * LAYERS <= total // weight <= 3 * LAYERS
  assert {c.axes for c in gathered} == {('fsdp',)}
  assert {c.link for c in found} == {'ici'}
  kinds = {c.kind for c in found}
  assert 'reduce-scatter' in kinds


def test_gradients_go_over_the_network_between_slices():
  module = hlo.parse((HERE / 'two_slices.txt').read_text())
  where = placed(data=2, fsdp=8, slices=2)
  totals = traffic.totals(traffic.collectives(module, where))
  # Each device holds an eighth of the gradients, and sends that to the other
  # slice: an all-reduce of two sends what it has.
  least = LAYERS * WIDTH * WIDTH * 2 // 8
  assert least <= totals['data:dcn'] < 1.1 * least
  assert all(key.endswith((':ici', ':dcn')) for key in totals)
  assert [k for k in totals if k.endswith(':dcn')] == ['data:dcn']


def test_pieces_of_an_asynchronous_collective_are_one():
  text = """HloModule m, is_scheduled=true, num_partitions=4

%start (p: f32[256]) -> (f32[1024], u32[]) {
  %p = f32[256]{0} parameter(0)
  %g = f32[1024]{0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  %u = u32[] constant(0)
  ROOT %t = (f32[1024]{0}, u32[]) tuple(%g, %u)
}

%done (q: f32[256]) -> f32[1024] {
  %q = f32[256]{0} parameter(0)
  ROOT %h = f32[1024]{0} all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (x: f32[256], y: f32[8]) -> f32[1024] {
  %x = f32[256]{0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %a = (f32[1024]{0}, u32[]) fusion(%x), kind=kCustom, calls=%start
  %b = f32[8]{0} sine(%y)
  ROOT %c = f32[1024]{0} fusion(%x), kind=kCustom, calls=%done
}
"""
  module = hlo.parse(text)
  where = placed(fsdp=4)
  (found,) = traffic.collectives(module, where)
  assert (found.executions, found.wire_bytes) == (1, 3 * 1024)
  (one,) = traffic.scheduled(module, module.computations['main'], where)
  assert (one.start, one.end) == (2, 4)


STARTED = """HloModule m, is_scheduled=true, num_partitions=4

%add (l: f32[], r: f32[]) -> f32[] {{
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %s = f32[] add(%l, %r)
}}

ENTRY %main (x: f32[1024]) -> f32[1024] {{
  %x = f32[1024]{{0}} parameter(0)
  %a = {shape} {kind}-start(%x), channel_id=1, {groups}
  %b = f32[1024]{{0}} sine(%x)
  %c = {result} {kind}-done(%a)
  ROOT %d = f32[1024]{{0}} copy(%b)
}}
"""
GROUPS = 'replica_groups={{0,1,2,3}}'
PAIRS = 'source_target_pairs={{0,1},{1,2},{2,3}}'


@pytest.mark.parametrize(
  ('kind', 'shape', 'result', 'groups', 'wire'),
  [
    ('all-reduce', 'f32[1024]', 'f32[1024]', GROUPS, 2 * 3 * 1024),
    (
      'all-gather',
      '(f32[1024], f32[4096])',
      'f32[4096]',
      GROUPS,
      3 * 4096,
    ),
    (
      'reduce-scatter',
      '(f32[1024], f32[256])',
      'f32[256]',
      GROUPS,
      3 * 1024,
    ),
    # Of four devices three send.
    (
      'collective-permute',
      '(f32[1024], f32[1024], u32[], u32[])',
      'f32[1024]',
      PAIRS,
      3 * 1024,
    ),
  ],
)
def test_a_started_collective_ends_where_it_is_awaited(
  kind, shape, result, groups, wire
):
  text = STARTED.format(kind=kind, shape=shape, result=result, groups=groups)
  module = hlo.parse(text)
  (one,) = traffic.scheduled(
    module, module.computations['main'], placed(fsdp=4)
  )
  assert one.collective.wire_bytes == wire
  assert (one.start, one.end) == (1, 3)


@pytest.mark.parametrize(
  ('text', 'groups'),
  [
    ('replica_groups={{0,1},{2,3}}', [[0, 1], [2, 3]]),
    ('replica_groups={}', [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ('replica_groups=[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
    (
      'replica_groups=[4,2]<=[2,4]T(1,0)',
      [[0, 4], [1, 5], [2, 6], [3, 7]],
    ),
    (
      "replica_groups=mesh['a'=2,'b'=4] {'b'}",
      [[0, 1, 2, 3], [4, 5, 6, 7]],
    ),
    (
      "replica_groups=mesh['a'=2,'b'=4] {'a'}",
      [[0, 4], [1, 5], [2, 6], [3, 7]],
    ),
    (
      "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}",
      [[0, 1, 4, 5], [2, 3, 6, 7]],
    ),
    # The outer, then the inner half of an axis of four.
    (
      "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}",
      [[0, 2], [1, 3], [4, 6], [5, 7]],
    ),
    (
      "replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}",
      [[0, 1], [2, 3], [4, 5], [6, 7]],
    ),
  ],
)
def test_groups_are_read_in_every_form(text, groups):
  found = groups_of.replica_groups(f', {text}, use_global_device_ids=true', 8)
  assert sorted(map(sorted, found)) == groups


def test_a_placement_comes_back_from_json():
  where = traffic.Placement.of(mesh())
  again = traffic.Placement.from_json(json.loads(json.dumps(where.to_json())))
  assert again == where
