"""The gateway needs no tensors: it starts without torch, transformers and nixl."""

import subprocess
import sys

PROGRAM = """
import asyncio, sys
import services.gateway.__main__
from tests.gateway.twins import world

async def build_and_chat():
    async with world() as w:
        assert (await w.chat()).status_code == 200

asyncio.run(build_and_chat())
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "nixl")))
"""


def test_building_and_using_the_app_imports_no_tensors() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)

    assert done.stdout.strip() == "[]", done.stderr
