"""Run the jobs as the manifests do: an ordinary user, a read-only root, only /tmp and /dev/shm writable."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.nodes.conftest import JOB_S, REPOSITORY, build_arguments, last_json

pytestmark = pytest.mark.cluster

IN_THE_POD = r"""
set -e
mount --make-rprivate /
# bind a Python that is in root's own home to where an ordinary user may go
if [ "${1#/root/}" != "$1" ]; then
  mount --bind "$1" /mnt
  mount -t tmpfs -o mode=755 tmpfs /root
  mkdir -p "$1"
  mount --bind /mnt "$1"
fi
shift
for place in $(findmnt --noheadings --output TARGET --raw | grep -vE '^/(proc|sys|dev)'); do
  mount -o remount,ro,bind "$place" 2>/dev/null || true
done
mount -t tmpfs -o mode=1777 tmpfs "$1"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
shift
exec setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set -all "$@"
"""

WORK = """
import os, subprocess, sys, tempfile
from pathlib import Path
from steelray.demo.synthetic import make_strip

job_folder, *build = sys.argv[1:]
assert os.getuid() == 1000
try:
    Path(job_folder, 'written').touch()
except OSError:
    pass
else:
    sys.exit('the root is writable')
root = Path(tempfile.gettempdir()) / 'plant'
(root / 'nominal').mkdir(parents=True)
(root / 'archive').mkdir()
for index in range(8):
    (root / 'nominal' / f'{index}.jpg').write_bytes(make_strip(0, index, size_px=(64, 256)).jpeg())
    (root / 'archive' / f'{index}.jpg').write_bytes(make_strip(1, index, size_px=(64, 256)).jpeg())
build = [word.replace('ROOT', str(root)) for word in build]
subprocess.run([sys.executable, f'{job_folder}/build_memory_bank.py', *build], check=True, stdout=sys.stderr)
score = ['--archive.uri', f'{root}/archive', '--model_uri', f'{root}/bank', '--results_uri', f'{root}/results']
sys.exit(subprocess.run([sys.executable, f'{job_folder}/score_archive.py', *score]).returncode)
"""


def test_a_run_needs_no_more_than_the_pod_gives() -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "findmnt"))):
        pytest.skip("only root may lay out a file system like a pod's")
    namespace = ["unshare", "--mount", "--fork", "bash", "-c", IN_THE_POD, "pod"]
    temporary = tempfile.gettempdir()
    namespace += [sys.base_prefix, temporary]
    probe = subprocess.run([*namespace, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"this machine does not let root mount: {probe.stderr.strip()}")
    command = [sys.executable, "-c", WORK, str(REPOSITORY / "jobs"), *build_arguments("ROOT", "ROOT/bank")]
    done = subprocess.run(
        [*namespace, *command],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(Path(temporary) / "home"),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        },
        cwd="/",
        capture_output=True,
        text=True,
        timeout=JOB_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["counts"]["ok"] == 8  # type: ignore[index]
