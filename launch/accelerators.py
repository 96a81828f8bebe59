"""What the clouds call the topologies of `bigdl compile --topology=NAME`.

Sources: Cloud TPU's page on each generation (accelerator types) and on TPU
software versions (runtimes); GKE's page on TPU topologies and XPK's table
(AI-Hypercomputer/xpk, src/xpk/core/system_characteristics.py) for node labels and
device types; SkyPilot's page on TPUs. Cloud TPU's own interface, and so SkyPilot,
does not have TPU7x, which is lent through GKE alone.
"""

from __future__ import annotations

import math

from bigdl.parallel import topology
from bigdl.parallel.topology import Topology

# The images of TPU VMs that JAX is installed on.
RUNTIMES = {
  'v2': 'tpu-ubuntu2204-base',
  'v3': 'tpu-ubuntu2204-base',
  'v4': 'tpu-ubuntu2204-base',
  'v5e': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
}
# GKE's label of a node, cloud.google.com/gke-tpu-accelerator or gke-accelerator.
GKE = {
  'v4': 'tpu-v4-podslice',
  'v5e': 'tpu-v5-lite-podslice',
  'v5p': 'tpu-v5p-slice',
  'v6e': 'tpu-v6e-slice',
  'tpu7x': 'tpu7x',
  'h100': 'nvidia-h100-80gb',
  'h200': 'nvidia-h200-141gb',
  'b200': 'nvidia-b200',
}
_XPK_GPU = {'h100': 'h100-80gb-8', 'h200': 'h200-141gb-8', 'b200': 'b200-8'}
_SKY_GPU = {'a100': 'A100-80GB', 'h100': 'H100', 'h200': 'H200', 'b200': 'B200'}


def parse(name: str) -> Topology:
  """Returns the topology of that name; ValueError shows the nearest."""
  return topology.parse(name)


def cloud(where: Topology) -> str:
  """Returns the accelerator type of Cloud TPU, such as v5litepod-16.

  The number is of cores up to v4 and of v5p (two a chip), of chips of v5e and v6e.

  Raises:
    ValueError: It is not to be had there.
  """
  chip = where.chip
  if chip.name not in RUNTIMES:
    how = 'launch/xpk.py' if chip.platform == 'tpu' else 'another launcher'
    raise ValueError(
      f'topology={where.name}: Cloud TPU lends {", ".join(RUNTIMES)}, not'
      f' {chip.name}: use {how}'
    )
  number = math.prod(where.shape) * (2 if chip.counts_cores else 1)
  return f'{"v5litepod" if chip.name == "v5e" else chip.name}-{number}'


def is_default(where: Topology) -> bool:
  """Returns whether Cloud TPU gives this shape for that number of chips.

  It gives the one most like a cube.
  """
  size = math.prod(where.shape)
  alike = [s for s in topology.shapes(where.chip) if math.prod(s) == size]
  return where.shape == min(alike, key=sum)


def xpk(where: Topology) -> str:
  """Returns XPK's type of device: v5litepod-4x4, v4-8x8x8, h100-80gb-8.

  Raises:
    ValueError: XPK has none.
  """
  name = where.chip.name
  if where.chip.platform == 'gpu':
    if name not in _XPK_GPU or where.chips_per_host != 8:
      raise ValueError(
        f'topology={where.name}: XPK has hosts of 8 {", ".join(_XPK_GPU)}, such'
        ' as h100:1x4x8'
      )
    return _XPK_GPU[name]
  if name not in GKE or (name == 'v5e' and where.chips < 8):
    raise ValueError(
      f'topology={where.name}: XPK has no such slice; it has v4, v5e from 2x4,'
      ' v5p, v6e and tpu7x'
    )
  prefix = 'v5litepod' if name == 'v5e' else name
  return f'{prefix}-{_shape(where)}'


def gke(where: Topology) -> dict[str, str]:
  """Returns the labels of the GKE nodes that make up a slice, or have the GPUs.

  Raises:
    ValueError: GKE has no such nodes.
  """
  name = where.chip.name
  if name not in GKE:
    raise ValueError(
      f'topology={where.name}: expected one of {", ".join(GKE)} on GKE'
    )
  if where.chip.platform == 'gpu':
    return {'cloud.google.com/gke-accelerator': GKE[name]}
  return {
    'cloud.google.com/gke-tpu-accelerator': GKE[name],
    'cloud.google.com/gke-tpu-topology': _shape(where),
  }


def gke_machines(where: Topology) -> tuple[int, int]:
  """Returns the machines of a slice on GKE, and the chips of each.

  Machines have four chips, unlike Cloud TPU's own of v5e, which may have eight.
  """
  own = math.prod(where.shape)
  each = where.chips_per_host if where.chip.platform == 'gpu' else min(4, own)
  return own // each, each


def sky(where: Topology) -> tuple[str, int]:
  """Returns SkyPilot's accelerators and number of nodes: H100:8, 4.

  Raises:
    ValueError: SkyPilot cannot ask for it.
  """
  if where.chip.platform == 'gpu':
    return f'{_SKY_GPU[where.chip.name]}:{where.chips_per_host}', where.hosts
  kind = cloud(where)
  if where.slices > 1:
    raise ValueError(
      f'topology={where.name}: SkyPilot has one slice a job: use launch/xpk.py'
    )
  if not is_default(where):
    raise ValueError(
      f'topology={where.name}: SkyPilot asks for {kind}, which has another'
      ' shape: use launch/xpk.py or launch/tpu_vm.py'
    )
  return f'tpu-{kind}:1', 1


def _shape(where: Topology) -> str:
  return 'x'.join(map(str, where.shape))
