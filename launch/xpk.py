"""Trains a sweep on GKE, by XPK or as plain JobSets: TPU slices or GPU machines.

Command:  python launch/xpk.py --config=experiments/quickstart.py \\
            --workdir=gs://bucket/runs/quickstart --cluster=pool --workers=2 \\
            --topology=v5e:4x4 --image=us-docker.pkg.dev/you/bigdl:1

A worker is one workload: all slices, or machines with GPUs, of a topology. XPK
(github.com/AI-Hypercomputer/xpk) queues it with Kueue; a worker that is preempted
saves within `grace` seconds and its JobSet is started again. Exit code 2 (bad
input) ends it: starting again would not help. `--manifest` writes the JobSets itself
(jobset.x-k8s.io/v1alpha2) for clusters without XPK. The image: launch/Dockerfile.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import Any

import accelerators
import base

JOBSET = 'jobset.yaml'
PORT = 6002  # Of the coordinator, where XPK does not say.
# XPK sets these in every container with GPUs; JAX does not look for them.
_XPK_GPU = (
  '--coordinator=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT'
  ' --processes=$NNODES --process=$NODE_RANK'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(base.Run):
  """Submits one workload a worker.

  Both this machine and the workers must see the workdir: a bucket, or storage
  mounted at the same path. What is left over of the flags sets fields of the
  experiment.
  """

  topology: str  # Of one worker, as `bigdl compile` names it: v5e:4x4*2.
  image: str  # Docker image with bigdl in it.
  cluster: str = ''  # XPK's cluster; not for --manifest.
  project: str = ''  # '' is gcloud's own.
  zone: str = ''  # '' is gcloud's own.
  storage: tuple[str, ...] = ()  # Names that `xpk storage` gave to mounts.
  env: tuple[str, ...] = ()  # Environment of the workers: NAME=value …
  priority: str = 'medium'  # Of Kueue: very-low to very-high.
  restarts: int = 100  # Most times that a worker is started again.
  grace: int = 300  # Seconds to save in, from notice to kill.
  options: tuple[str, ...] = ()  # More of XPK's: --spot …
  manifest: bool = False  # JobSets and `kubectl apply` in the place of XPK.
  namespace: str = 'default'  # For --manifest.
  queue: str = ''  # Kueue's local queue, for --manifest.
  spot: bool = False  # Only spot machines, for --manifest.

  def __post_init__(self):
    super().__post_init__()
    where = accelerators.parse(self.topology)
    (accelerators.gke if self.manifest else accelerators.xpk)(where)
    if not self.manifest and not self.cluster:
      raise ValueError('cluster= must name an XPK cluster, unless --manifest')
    for field in ('restarts', 'grace'):
      if getattr(self, field) < 1:
        raise ValueError(f'{field}={getattr(self, field)} must be 1 or more')
    for text in self.env:
      if not text.partition('=')[0].isidentifier() or '=' not in text:
        raise ValueError(f'env={text!r} must be NAME=value')


def command(run: Run, worker: int = 0) -> list[str]:
  """Returns the command that submits a worker; all of them, for JobSets."""
  if run.manifest:
    return ['kubectl', 'apply', '-f', f'{run.folder}/{JOBSET}']
  where = accelerators.parse(run.topology)
  gpu = where.chip.platform == 'gpu'
  size = ['--num-nodes', where.hosts] if gpu else ['--num-slices', where.slices]
  given = {
    'project': run.project,
    'zone': run.zone,
    'docker-image': run.image,
    'priority': run.priority,
    'max-restarts': run.restarts,
    'termination-grace-period-seconds': run.grace,
    # Beside those above 127. A host whose neighbour is lost may end with 1; where
    # it was a cell that failed, the next start finds nothing left and ends well.
    'restart-on-exit-codes': 1,
  }
  return [
    *('xpk', 'workload', 'create'),
    f'--workload={run.worker(worker)}',
    f'--cluster={run.cluster}',
    f'--{"device" if gpu else "tpu"}-type={accelerators.xpk(where)}',
    f'{size[0]}={size[1]}',
    *(f'--{key}={value}' for key, value in given.items() if value),
    *(f'--storage={name}' for name in run.storage),
    *(f'--env={text}' for text in run.env),
    f'--command={_shell(run, gpu and where.hosts > 1)}',
    *run.options,
  ]


def commands(run: Run) -> list[list[str]]:
  """Returns what is run, in order."""
  if run.manifest:
    return [command(run)]
  return [command(run, worker) for worker in range(run.workers)]


def files(run: Run) -> dict[str, str]:
  """Returns the manifests of the JobSets, where they are asked for."""
  if not run.manifest:
    return {}
  sets = [jobset(run, worker) for worker in range(run.workers)]
  return {JOBSET: base.to_yaml(*sets)}


def jobset(run: Run, worker: int) -> dict[str, Any]:
  """Returns a worker as a JobSet: a job a slice, a pod a machine."""
  where = accelerators.parse(run.topology)
  gpu = where.chip.platform == 'gpu'
  pods, _ = accelerators.gke_machines(where)
  name = run.worker(worker)
  # One slice a pool of nodes: GKE joins its machines by their links.
  whole = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
  metadata: dict[str, Any] = {'name': name, 'namespace': run.namespace}
  if run.queue:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': run.queue}
  if not gpu:
    metadata['annotations'] = {whole: 'cloud.google.com/gke-nodepool'}
  hopeless = {
    'action': 'FailJob',
    'onExitCodes': {
      'containerName': 'worker',
      'operator': 'In',
      'values': [2],
    },
  }
  job = {
    'parallelism': pods,
    'completions': pods,
    'completionMode': 'Indexed',
    # The set starts again as a whole: one lost process stops all others.
    'backoffLimit': 0,
    'podFailurePolicy': {'rules': [hopeless]},
    'template': {'spec': _pod(run, name)},
  }
  ends = {
    'name': 'hopeless',
    'action': 'FailJobSet',
    'onJobFailureReasons': ['PodFailurePolicy'],
  }
  replicated = {
    'name': 'slice',
    'replicas': 1 if gpu else where.slices,
    'template': {'spec': job},
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'failurePolicy': {'maxRestarts': run.restarts, 'rules': [ends]},
      'replicatedJobs': [replicated],
    },
  }


def _pod(run: Run, name: str) -> dict[str, Any]:
  where = accelerators.parse(run.topology)
  gpu = where.chip.platform == 'gpu'
  pods, chips = accelerators.gke_machines(where)
  labels = accelerators.gke(where)
  if run.spot:
    labels['cloud.google.com/gke-spot'] = 'true'
  rank = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  env: list[dict[str, Any]] = [
    {'name': key, 'value': value}
    for key, _, value in (text.partition('=') for text in run.env)
  ]
  more = [] if gpu else ['--distributed']
  if gpu and pods > 1:
    env.append({'name': 'RANK', 'valueFrom': {'fieldRef': {'fieldPath': rank}}})
    # The first pod of the set, by the name that its headless service gives it.
    more = [
      '--distributed',
      f'--coordinator={name}-slice-0-0.{name}:{PORT}',
      f'--processes={pods}',
      '--process=$(RANK)',
    ]
  kind = 'nvidia.com/gpu' if gpu else 'google.com/tpu'
  container: dict[str, Any] = {
    'name': 'worker',
    'image': run.image,
    'command': base.work(run, *more, python='python3'),
    'resources': {'limits': {kind: chips}},
  }
  if env:
    container['env'] = env
  pod: dict[str, Any] = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': run.grace,
    'nodeSelector': labels,
    'tolerations': [{'key': kind, 'operator': 'Exists'}],
    'containers': [container],
  }
  if not gpu:
    # Slices speak to each other by the machines' own network.
    pod |= {'hostNetwork': True, 'dnsPolicy': 'ClusterFirstWithHostNet'}
  return pod


def _shell(run: Run, several_gpu_machines: bool) -> str:
  """Returns a worker as XPK takes it: one line, without double quotes.

  XPK wraps it in a shell and tells that of a preemption, hence `exec`.
  """
  where = accelerators.parse(run.topology)
  join = several_gpu_machines or where.chip.platform == 'tpu'
  words = base.work(run, *(['--distributed'] if join else []), python='python3')
  line = f'exec {shlex.join(words)}'
  return f'{line} {_XPK_GPU}' if several_gpu_machines else line


def tiny() -> Run:
  """Returns the smallest run: one worker on the smallest slice of v6e."""
  return Run(
    workdir='gs://bucket/sweep',
    topology='v6e:1x1',
    image='image:1',
    cluster='pool',
    python='python3',
  )


ENGINE = base.Engine(
  file='launch/xpk.py',
  kind=Run,
  devices=lambda run: accelerators.parse(run.topology).devices,
  files=files,
  commands=commands,
  needs=lambda run: {
    'kubectl': 'it comes with the Google Cloud SDK'
    if run.manifest
    else 'it comes with the Google Cloud SDK, and XPK calls it',
    **({} if run.manifest else {'xpk': 'pip install xpk'}),
  },
)

if __name__ == '__main__':
  sys.exit(base.main(ENGINE))
