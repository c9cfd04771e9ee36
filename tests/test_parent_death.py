"""A child dies with the process that started it, however that ends."""

import os
import select
import signal
import subprocess
import sys

import pytest

from services.parent_death import dying_with_parent

PARENT = """
import os, signal, subprocess, sys, time
from services.parent_death import dying_with_parent
child = subprocess.Popen(dying_with_parent(['sleep', '600'], signal.SIGTERM, cores={cores}))
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("cores", [(), tuple(os.sched_getaffinity(0))[:1]])
def test_a_child_dies_with_a_parent_that_is_killed(cores: tuple[int, ...]) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT.format(cores=cores)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        ended, _, _ = select.select([child], [], [], 60)
        os.close(child)

    assert ended == [child]


def test_a_child_whose_parent_is_gone_before_it_could_arm_itself_ends() -> None:
    command = dying_with_parent(["sleep", "600"], signal.SIGTERM)
    assert command[4] == str(os.getpid())
    command[4] = str(os.getppid())
    assert subprocess.run(command, timeout=60).returncode == 1


def test_a_command_that_does_not_exist_is_told_where_it_is_started() -> None:
    with pytest.raises(FileNotFoundError, match="nonexistent"):
        dying_with_parent(["nonexistent"], signal.SIGTERM)
