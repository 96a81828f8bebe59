"""Two hosts save one checkpoint, check it in shares and agree on its damage."""

import json
import os
import pathlib
import socket
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def test_damage_that_one_host_finds_sends_both_back(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  paths = [str(HERE), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]
  hosts = [
    subprocess.Popen(
      [sys.executable, HERE / 'two_savers.py', str(host), str(port), tmp_path],
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in range(2)
  ]
  answers = []
  for host in hosts:
    out, err = host.communicate(timeout=300)
    assert host.returncode == 0, err[-3000:]
    answers.append(json.loads(out.splitlines()[-1]))
  for answer in answers:
    # Nothing is wrong with what both have written until it is damaged.
    assert answer['whole'] == 2
    assert answer['again'] == 1
    assert len(answer['said']) == 1
    assert 'going back to step 1' in answer['said'][0]
  lines = [answer['said'][0] for answer in answers]
  assert sum('is not what was saved' in line for line in lines) == 1
  assert sum('on another host' in line for line in lines) == 1
  assert (tmp_path / 'checkpoints' / '2.unreadable').is_dir()
