"""launch/xpk.py: commands that XPK takes, JobSets that Kubernetes takes."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
from typing import Any

import accelerators
import jsonschema
import pytest
import xpk
import yaml

from bigdl.parallel import chips, topology

PACKAGE = 'xpk>=1.16,<2'
# The file config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of
# github.com/kubernetes-sigs/jobset, for the test against the published schema.
CRD = 'BIGDL_JOBSET_CRD'


def some(**changes: Any) -> xpk.Run:
  return dataclasses.replace(xpk.tiny(), **changes)


RUNS = {
  'slice': some(topology='v5e:4x4'),
  'slices': some(topology='v4:2x2x4*2', env=('LEVEL=1',)),
  'gpus': some(topology='h100:1x4x8'),
  'machine': some(topology='h100:1x1x8'),
}


def test_a_worker_on_tpu_slices_is_a_workload():
  run = some(
    topology='v5e:4x4*2',
    workers=2,
    project='lab',
    zone='us-west4-a',
    storage=('shared',),
    env=('LEVEL=1',),
    options=('--spot',),
  )
  first, second = xpk.commands(run)
  assert first == [
    *('xpk', 'workload', 'create', '--workload=sweep-0', '--cluster=pool'),
    *('--tpu-type=v5litepod-4x4', '--num-slices=2', '--project=lab'),
    *('--zone=us-west4-a', '--docker-image=image:1', '--priority=medium'),
    *('--max-restarts=100', '--termination-grace-period-seconds=300'),
    *('--restart-on-exit-codes=1', '--storage=shared', '--env=LEVEL=1'),
    '--command=exec python3 -m bigdl work --workdir=gs://bucket/sweep'
    ' --distributed',
    '--spot',
  ]
  assert second == [w.replace('sweep-0', 'sweep-1') for w in first]
  assert xpk.files(run) == {}


def test_a_worker_on_gpu_machines_is_told_where_its_processes_meet():
  words = xpk.command(RUNS['gpus'])
  assert '--device-type=h100-80gb-8' in words and '--num-nodes=4' in words
  (line,) = [w for w in words if w.startswith('--command=')]
  assert line.endswith(
    ' --distributed --coordinator=$JAX_COORDINATOR_ADDRESS:'
    '$JAX_COORDINATOR_PORT --processes=$NNODES --process=$NODE_RANK'
  )
  # XPK puts the line between double quotes.
  assert '"' not in line
  assert '--distributed' not in str(xpk.command(RUNS['machine']))


# What our JobSets use of v1alpha2, closed: a name that is misspelt is refused
# here, which Kubernetes' own schema, open in places, would drop.
_TEXT: dict[str, Any] = {'type': 'string'}
_COUNT: dict[str, Any] = {'type': 'integer', 'minimum': 0}
_TEXTS: dict[str, Any] = {'type': 'object', 'additionalProperties': _TEXT}


def _object(required: str, **properties: Any) -> dict[str, Any]:
  return {
    'type': 'object',
    'properties': properties,
    'required': required.split(),
    'additionalProperties': False,
  }


def _list(items: dict[str, Any]) -> dict[str, Any]:
  return {'type': 'array', 'items': items, 'minItems': 1}


_NAME = {
  'type': 'string',
  'maxLength': 63,
  'pattern': '^[a-z]([-a-z0-9]*[a-z0-9])?$',
}
_SOURCE = _object('fieldRef', fieldRef=_object('fieldPath', fieldPath=_TEXT))
_CONTAINER = _object(
  'name image command resources',
  name=_NAME,
  image=_TEXT,
  command=_list(_TEXT),
  env=_list(_object('name', name=_TEXT, value=_TEXT, valueFrom=_SOURCE)),
  resources=_object(
    'limits', limits={'type': 'object', 'additionalProperties': _COUNT}
  ),
)
_POD = _object(
  'restartPolicy containers nodeSelector terminationGracePeriodSeconds',
  restartPolicy={'enum': ['Never', 'OnFailure']},
  containers=_list(_CONTAINER),
  nodeSelector=_TEXTS,
  terminationGracePeriodSeconds=_COUNT,
  tolerations=_list(
    _object('', key=_TEXT, operator={'enum': ['Exists', 'Equal']})
  ),
  hostNetwork={'type': 'boolean'},
  dnsPolicy={'enum': ['ClusterFirst', 'ClusterFirstWithHostNet']},
)
_CODES = _object(
  'operator values',
  containerName=_NAME,
  operator={'enum': ['In', 'NotIn']},
  values=_list({'type': 'integer', 'minimum': 1, 'maximum': 255}),
)
_ACTION = {'enum': ['FailJob', 'FailIndex', 'Ignore', 'Count']}
_JOB = _object(
  'parallelism completions backoffLimit template',
  parallelism={'type': 'integer', 'minimum': 1},
  completions={'type': 'integer', 'minimum': 1},
  completionMode={'enum': ['Indexed', 'NonIndexed']},
  backoffLimit=_COUNT,
  podFailurePolicy=_object(
    'rules', rules=_list(_object('action', action=_ACTION, onExitCodes=_CODES))
  ),
  template=_object('spec', spec=_POD),
)
_RULE = _object(
  'action name',
  action={
    'enum': ['FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts']
  },
  name={
    'type': 'string',
    'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$',
  },
  onJobFailureReasons=_list(_TEXT),
)
SCHEMA = _object(
  'apiVersion kind metadata spec',
  apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
  kind={'const': 'JobSet'},
  metadata=_object(
    'name', name=_NAME, namespace=_NAME, labels=_TEXTS, annotations=_TEXTS
  ),
  spec=_object(
    'replicatedJobs',
    failurePolicy=_object('', maxRestarts=_COUNT, rules=_list(_RULE)),
    replicatedJobs=_list(
      _object(
        'name template',
        name=_NAME,
        replicas={'type': 'integer', 'minimum': 1},
        template=_object('spec', spec=_JOB),
      )
    ),
  ),
)


@pytest.mark.parametrize('name', RUNS)
def test_a_jobset_has_the_form_that_kubernetes_takes(name):
  run = dataclasses.replace(
    RUNS[name], manifest=True, workers=2, queue='lab', spot=True
  )
  made = list(yaml.safe_load_all(xpk.files(run)[xpk.JOBSET]))
  assert [one['metadata']['name'] for one in made] == ['sweep-0', 'sweep-1']
  for one in made:
    jsonschema.validate(one, SCHEMA)
  assert xpk.commands(run) == [
    ['kubectl', 'apply', '-f', 'runs/launched/sweep/jobset.yaml']
  ]


def test_a_misspelt_field_of_a_jobset_is_refused():
  made = xpk.jobset(some(manifest=True), 0)
  wrong = copy.deepcopy(made)
  job = wrong['spec']['replicatedJobs'][0]['template']['spec']
  job['paralelism'] = job.pop('parallelism')
  with pytest.raises(jsonschema.ValidationError, match='paralelism'):
    jsonschema.validate(wrong, SCHEMA)


def test_a_jobset_has_a_job_a_slice_and_a_pod_a_machine():
  made = xpk.jobset(dataclasses.replace(RUNS['slices'], manifest=True), 0)
  (job,) = made['spec']['replicatedJobs']
  assert job['replicas'] == 2
  spec = job['template']['spec']
  assert spec['parallelism'] == spec['completions'] == 4
  pod = spec['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v4-podslice',
    'cloud.google.com/gke-tpu-topology': '2x2x4',
  }
  (container,) = pod['containers']
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert container['env'] == [{'name': 'LEVEL', 'value': '1'}]
  assert container['command'][-1] == '--distributed'


def test_pods_with_gpus_meet_at_the_first_of_them():
  made = xpk.jobset(dataclasses.replace(RUNS['gpus'], manifest=True), 1)
  (job,) = made['spec']['replicatedJobs']
  assert (job['replicas'], job['template']['spec']['parallelism']) == (1, 4)
  (container,) = job['template']['spec']['template']['spec']['containers']
  # <jobset>-<replicated job>-<job index>-<pod index>.<jobset>
  assert container['command'][-4:] == [
    '--distributed',
    '--coordinator=sweep-1-slice-0-0.sweep-1:6002',
    '--processes=4',
    '--process=$(RANK)',
  ]
  assert container['env'][0]['name'] == 'RANK'


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'topology': 'v5e:3x3'}, 'no such slice of v5e is sold; near are v5e:'),
    ({'topology': 'v3:4x4'}, 'XPK has no such slice'),
    ({'topology': 'h100:1x4x4'}, 'XPK has hosts of 8'),
    ({'topology': 'v2:4x4', 'manifest': True}, 'expected one of v4'),
    ({'cluster': ''}, 'cluster= must name an XPK cluster'),
    ({'env': ('A',)}, "env='A' must be NAME=value"),
    ({'restarts': 0}, 'restarts=0 must be 1 or more'),
  ],
)
def test_what_kubernetes_could_not_do_is_refused_first(flags, message):
  with pytest.raises(ValueError, match=message):
    some(**flags)


@pytest.mark.scheduled
@pytest.mark.parametrize('name', RUNS)
def test_xpk_itself_takes_the_command_and_makes_the_same_jobset(
  name, installed, tmp_path
):
  run = dataclasses.replace(RUNS[name], project='lab', zone='us-west4-a')
  words = xpk.command(run)
  file = tmp_path / 'manifest.yaml'
  done = subprocess.run(
    [installed(PACKAGE) / words[0], *words[1:], '--dry-run']
    + [f'--output-manifest-file={file}'],
    env={**os.environ, 'HOME': str(tmp_path)},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  theirs = yaml.safe_load(file.read_text())
  ours = xpk.jobset(run, 0)
  assert theirs['metadata']['name'] == ours['metadata']['name']
  policy = theirs['spec']['failurePolicy']
  assert policy['maxRestarts'] == run.restarts
  (their_job,) = theirs['spec']['replicatedJobs']
  (our_job,) = ours['spec']['replicatedJobs']
  assert their_job['replicas'] == our_job['replicas']
  their_spec, our_spec = (
    job['template']['spec'] for job in (their_job, our_job)
  )
  for field in ('parallelism', 'completions', 'backoffLimit'):
    assert their_spec[field] == our_spec[field]
  (rule,) = their_spec['podFailurePolicy']['rules']
  # All but these end it: saved and left, killed, lost its neighbours, not 2.
  assert rule['onExitCodes']['operator'] == 'NotIn'
  assert {1, 137, 143} <= set(rule['onExitCodes']['values'])
  assert 2 not in rule['onExitCodes']['values']
  their_pod, our_pod = (
    spec['template']['spec'] for spec in (their_spec, our_spec)
  )
  assert their_pod['terminationGracePeriodSeconds'] == run.grace
  script = their_pod['containers'][0]['command'][-1]
  own = words[[w.startswith('--command=') for w in words].index(True)]
  assert f'({own.removeprefix("--command=")}) & PID=$!' in script
  if '$' not in own:
    assert shlex.join(our_pod['containers'][0]['command']) in script
    limits = their_pod['containers'][0]['resources']['limits']
    assert limits == our_pod['containers'][0]['resources']['limits']
  if accelerators.parse(run.topology).chip.platform == 'tpu':
    assert their_pod['nodeSelector'] == our_pod['nodeSelector']


@pytest.mark.scheduled
def test_xpk_knows_every_slice_that_we_say_it_has(installed):
  code = """
import json
from xpk.core import system_characteristics as known
table = known.UserFacingNameToSystemCharacteristics
print(json.dumps({
  name: [s.topology, s.vms_per_slice, s.chips_per_vm, s.gke_accelerator]
  for name, s in table.items()
}))
"""
  python = installed(PACKAGE) / 'python'
  done = subprocess.run(
    [python, '-c', code], capture_output=True, text=True, check=True
  )
  table = json.loads(done.stdout)
  seen = 0
  for chip in chips.CHIPS.values():
    if chip.platform == 'gpu' or chip.name not in accelerators.GKE:
      continue
    for shape in topology.shapes(chip):
      where = topology.Topology(chip, shape)
      if chip.name == 'v5e' and where.chips < 8:
        continue
      size, machines, each, label = table[accelerators.xpk(where)]
      assert size == 'x'.join(map(str, shape))
      assert (machines, each) == accelerators.gke_machines(where)
      assert label == accelerators.GKE[chip.name]
      seen += 1
  assert seen > 200


@pytest.mark.scheduled
@pytest.mark.skipif(CRD not in os.environ, reason=f'{CRD} names no file')
@pytest.mark.parametrize('name', RUNS)
def test_a_jobset_is_one_by_the_published_schema(name):
  text = pathlib.Path(os.environ[CRD]).read_text()
  versions = yaml.safe_load(text)['spec']['versions']
  (found,) = [v for v in versions if v['name'] == 'v1alpha2']
  schema = found['schema']['openAPIV3Schema']
  _close(schema)
  # Kubernetes' own, of which the file says nothing.
  del schema['properties']['metadata']['additionalProperties']
  run = dataclasses.replace(RUNS[name], manifest=True, spot=True, queue='lab')
  made = xpk.jobset(run, 0)
  jsonschema.validate(made, schema)
  made['spec']['replicatedJobs'][0]['template']['spec']['paralelism'] = 1
  with pytest.raises(jsonschema.ValidationError, match='paralelism'):
    jsonschema.validate(made, schema)


def _close(schema: Any) -> None:
  """Refuses names that a schema does not list, as `kubectl apply` does."""
  if isinstance(schema, dict):
    if schema.get('type') == 'object' and (
      'properties' in schema or 'additionalProperties' not in schema
    ):
      schema['additionalProperties'] = False
    for value in list(schema.values()):
      _close(value)
  elif isinstance(schema, list):
    for value in schema:
      _close(value)
