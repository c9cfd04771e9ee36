"""A child dies with the process that started it, however that ends."""

import os
import select
import signal
import subprocess
import sys

import pytest

PARENT = """
import os, signal, subprocess, sys, time
from services.parent_death import die_with_parent, dying_with_parent
child = {start}
print(child.pid, flush=True)
time.sleep(600)
"""


STARTS = [
    'subprocess.Popen(["sleep", "600"], preexec_fn=die_with_parent(signal.SIGTERM))',
    'subprocess.Popen(dying_with_parent(["/bin/sleep", "600"], signal.SIGTERM))',
]


@pytest.mark.parametrize("start", STARTS)
def test_a_child_dies_with_a_parent_that_is_killed(start: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT.format(start=start)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        ended, _, _ = select.select([child], [], [], 60)
        os.close(child)

    assert ended == [child]
