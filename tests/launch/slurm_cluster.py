"""A Slurm cluster of one node, from nothing, in a folder: for tests.

Needs Debian's packages `slurm-wlm` and `munge`, and root. It has its own key,
ports, state and logs, disturbs no other cluster of the machine, and is gone with
its folder.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import time

DAEMONS = ('munged', 'slurmctld', 'slurmd')
SECONDS = 60  # Most that the daemons may take to come up.

CONF = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until its old credential is of no use: 2 minutes, else.
AuthInfo=socket={folder}/munge.socket,cred_expire=3
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# No control groups: they are the machine's, not ours.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
# The node may pretend to have more processors than the machine.
SlurmdParameters=config_overrides
MailProg=/bin/true
# A requeued job begins at once, and a killed one is soon gone.
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
MinJobAge=600
KillWait={kill_wait}
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
  """Returns which of the programs are not installed."""
  return [name for name in DAEMONS if _find(name) is None]


@contextlib.contextmanager
def started(
  folder: pathlib.Path, *, cpus: int = 4, kill_wait: int = 20
) -> Iterator[dict[str, str]]:
  """Yields the environment in which Slurm's commands speak to the cluster.

  Args:
    folder: Where all of it lives; empty.
    cpus: How many the node pretends to have.
    kill_wait: Seconds between SIGTERM and SIGKILL.
  """
  host = socket.gethostname().partition('.')[0]
  ctld, slurmd = _free_ports(2)
  text = CONF.format(
    name=f'test{os.getpid()}',
    host=host,
    ctld=ctld,
    slurmd=slurmd,
    folder=folder,
    cpus=cpus,
    kill_wait=kill_wait,
  )
  for name in ('state', 'spool'):
    (folder / name).mkdir()
  conf, key = folder / 'slurm.conf', folder / 'munge.key'
  conf.write_text(text.lstrip())
  (folder / 'cgroup.conf').write_text('CgroupAutomount=no\n')
  key.write_bytes(secrets.token_bytes(128))
  key.chmod(0o400)
  env = {**os.environ, 'SLURM_CONF': str(conf)}
  own = {
    'munged': [
      *('--foreground', '--force', f'--key-file={key}'),
      *(f'--socket={folder}/munge.socket', f'--pid-file={folder}/munged.pid'),
      *(f'--seed-file={folder}/seed', f'--log-file={folder}/munged.log'),
    ],
    'slurmctld': ['-D', '-i', '-f', str(conf)],
    'slurmd': ['-D', '-N', host, '-f', str(conf)],
  }
  running: list[subprocess.Popen] = []
  try:
    for name, args in own.items():
      with open(folder / f'{name}.out', 'w') as log:
        program = _find(name)
        assert program
        running.append(
          subprocess.Popen([program, *args], env=env, stdout=log, stderr=log)
        )
      if name == 'munged':
        _await(lambda: (folder / 'munge.socket').exists(), 'munged', folder)
    _await(lambda: _idle(env), 'the node', folder)
    yield env
  finally:
    _end(running, env)


def _find(name: str) -> str | None:
  paths = f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin:/usr/local/sbin'
  return shutil.which(name, path=paths)


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    found = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in found:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in found]


def _idle(env: dict[str, str]) -> bool:
  done = subprocess.run(
    ['sinfo', '--noheader', '--format=%T'],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.stdout.strip() == 'idle'


def _await(ready, what: str, folder: pathlib.Path) -> None:
  deadline = time.monotonic() + SECONDS
  while not ready():
    if time.monotonic() > deadline:
      logs = '\n'.join(p.read_text()[-1500:] for p in folder.glob('*.out'))
      raise TimeoutError(f'{what} is not up after {SECONDS} s:\n{logs}')
    time.sleep(0.2)


def _end(running: list[subprocess.Popen], env: dict[str, str]) -> None:
  """Cancels what runs and stops the daemons, each of which is our child."""
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    subprocess.run(
      ['scancel', '--signal=KILL', '--full', '--user=root'],
      env=env,
      timeout=20,
      capture_output=True,
      check=False,
    )
    time.sleep(1)
  for process in reversed(running):
    process.send_signal(signal.SIGTERM)
    try:
      process.wait(20)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
