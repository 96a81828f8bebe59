"""Estimated times, against programs whose time can be worked out by hand."""

import dataclasses
import pathlib

import pytest

from bigdl.compiling import hlo, operations, roofline, traffic
from bigdl.parallel import topology
from bigdl.parallel.layout import AXES

HERE = pathlib.Path(__file__).parent
V5E = topology.parse('v5e:16x16')
RATES = roofline.REACHED['v5e']


def along(count, shape=(16, 16)):
  """The first chips of a slice, along its last dimension first, as `fsdp`."""
  return traffic.Placement(
    AXES,
    (1, 1, count, 1, 1),
    (0,) * count,
    tuple(i // 8 for i in range(count)),
    tuple((i // shape[1], i % shape[1], 0) for i in range(count)),
  )


def estimated(text, where=None, machine=V5E, flops=1.0):
  return roofline.estimate(
    hlo.parse(text), where or along(16), machine, model_flops=flops
  )


PRODUCT = """HloModule m, is_scheduled=true

ENTRY %main (a: bf16[{M},{K}], b: bf16[{K},{N}]) -> bf16[{M},{N}] {{
  %a = bf16[{M},{K}]{{1,0}} parameter(0)
  %b = bf16[{K},{N}]{{1,0}} parameter(1)
  ROOT %c = bf16[{M},{N}]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
"""


def test_a_large_product_takes_its_flops():
  found = estimated(PRODUCT.format(M=8192, K=8192, N=8192))
  assert found.seconds == pytest.approx(
    2 * 8192**3 / (RATES.products * V5E.chip.flops)
  )


def test_a_thin_product_takes_its_bytes():
  found = estimated(PRODUCT.format(M=8, K=8192, N=8192))
  bytes_ = 2 * (8192 * 8192 + 2 * 8 * 8192)
  bandwidth = RATES.memory * V5E.chip.memory_bandwidth
  assert found.seconds == pytest.approx(bytes_ / bandwidth)


def test_what_is_padded_to_a_tile_takes_as_long_as_the_tile():
  short = estimated(PRODUCT.format(M=4096, K=64, N=4096)).parts['products']
  tile = estimated(PRODUCT.format(M=4096, K=128, N=4096)).parts['products']
  assert short == pytest.approx(tile)


GATHER = """HloModule m, is_scheduled=true, num_partitions={count}

ENTRY %main (x: bf16[{size}], a: bf16[{edge},8192], b: bf16[8192,8192]) -> bf16[{edge},8192] {{
  %x = bf16[{size}]{{0}} parameter(0)
  %a = bf16[{edge},8192]{{1,0}} parameter(1)
  %b = bf16[8192,8192]{{1,0}} parameter(2)
  %s = (bf16[{size}]{{0}}, bf16[{result}]{{0}}) all-gather-start(%x), channel_id=1, replica_groups=[1,{count}]<=[{count}], dimensions={{0}}
  {first}
  {second}
  ROOT %r = bf16[{edge},8192]{{1,0}} copy(%c)
}}
"""
DOT = (
  '%c = bf16[{edge},8192]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}},'
  ' rhs_contracting_dims={{0}}'
)
DONE = '%g = bf16[{result}]{{0}} all-gather-done(%s)'


def gather(edge, *, beside, count=16, size=2**20):
  sizes = {'edge': edge, 'count': count, 'size': size, 'result': count * size}
  order = (DOT, DONE) if beside else (DONE, DOT)
  first, second = (line.format(**sizes) for line in order)
  return GATHER.format(first=first, second=second, **sizes)


def test_a_collective_is_hidden_by_what_runs_beside_it():
  alone = estimated(gather(8192, beside=False))
  hidden = estimated(gather(8192, beside=True))
  wait = alone.parts['waiting:ici']
  assert wait > 0
  assert hidden.parts['waiting:ici'] == 0
  assert alone.seconds - hidden.seconds == pytest.approx(wait)


def test_what_is_not_hidden_of_a_collective_is_waited_for():
  alone = estimated(gather(128, beside=False))
  partly = estimated(gather(128, beside=True))
  product = partly.parts['products']
  assert 0 < partly.parts['waiting:ici'] < alone.parts['waiting:ici']
  assert alone.parts['waiting:ici'] - partly.parts['waiting:ici'] >= product


def test_a_ring_sends_both_ways_and_a_line_one_way():
  wire = 15 * 2**21  # Of 16 shards of 2 MiB.
  link = V5E.chip.link_bandwidth
  ring = estimated(gather(128, beside=False)).parts['waiting:ici']
  assert ring == pytest.approx(wire / (2 * link), rel=0.05)
  half = estimated(gather(128, beside=False, count=8), along(8)).parts[
    'waiting:ici'
  ]
  assert half == pytest.approx(7 * 2**21 / link, rel=0.05)


def test_a_group_in_two_dimensions_sends_along_both():
  # The whole slice: rings along rows and columns.
  wire = 255 * 2**14
  found = estimated(
    gather(128, beside=False, count=256, size=2**13), along(256)
  ).parts['waiting:ici']
  assert found > wire / (4 * V5E.chip.link_bandwidth)
  assert found < wire / (4 * V5E.chip.link_bandwidth) + 256e-6


def test_a_ring_over_hosts_leaves_each_once_over_all_its_cards():
  machine, sent = topology.parse('h100:1x64x8'), 10**9

  def seconds(members):
    where = traffic.Placement(
      AXES,
      (1, 1, 512, 1, 1),
      (0,) * 512,
      tuple(i // 8 for i in range(512)),
      ((),) * 512,
    )
    group = len(members)
    each = traffic.Collective(
      *('all-gather', sent, sent, 1, group, ('fsdp',), 'network', members, 'x')
    )
    return roofline.seconds(each, where, machine) - roofline.NETWORK_SECONDS

  chip = machine.chip
  # One device of each host, and all of them.
  alone = seconds(tuple(range(0, 512, 8)))
  assert alone == pytest.approx(sent / chip.dcn_bandwidth)
  assert seconds(tuple(range(512))) == pytest.approx(
    max(sent / (8 * chip.dcn_bandwidth), sent / chip.ici_bandwidth)
  )


def test_a_loop_takes_its_rounds():
  module = hlo.parse((HERE / 'tpu.txt').read_text())
  text = (HERE / 'tpu.txt').read_text()
  assert 'estimated_cycles' in text
  where = dataclasses.replace(along(8, (2, 4)), shape=(1, 2, 4, 1, 1))
  small = topology.parse('v5e:2x4')
  found = roofline.estimate(module, where, small, model_flops=1.0)
  # The cycles that the compiler gives, and what collectives add to them.
  cycles = operations.cycles(module) / RATES.clock
  assert found.parts['busy'] >= cycles
  assert found.parts['busy'] < 1.5 * cycles
  assert found.seconds == pytest.approx(
    found.parts['busy'] + found.parts['waiting:ici']
  )


def test_mfu_is_the_models_flops_over_what_all_devices_could():
  text = PRODUCT.format(M=8192, K=8192, N=8192)
  flops = 2.0 * 8192**3 * V5E.devices
  found = estimated(text, flops=flops)
  assert found.mfu == pytest.approx(RATES.products)
  assert found.convention == 'matmul_full'


def test_assumptions_name_what_the_numbers_rest_on():
  text = ' '.join(estimated(PRODUCT.format(M=8, K=8, N=8)).assumptions)
  for part in ('197 TFLOP/s', '810 GB/s', '88% of peak', 'matmul_full', '45'):
    assert part in text
  full = roofline.assumptions(
    hlo.parse((HERE / 'tpu.txt').read_text()), V5E, 'matmul_full'
  )
  assert any('estimated cycles' in sentence for sentence in full)


@pytest.mark.parametrize('name', roofline.REACHED)
def test_no_chip_reaches_more_than_its_peak(name):
  rates = roofline.REACHED[name]
  assert 0.5 < rates.products <= 1
  assert 0.5 < rates.memory <= 1
  # Its cycles and tiles make its peak: whole multiplying units a core.
  chip = topology.CHIPS[name]
  units = chip.flops / (2 * rates.clock * rates.tile**2)
  assert units == pytest.approx(round(units), rel=0.03)
