import pytest

from services.errors import ConfigurationError
from services.transfer.inproc import InProcessFabric
from services.transfer.memory import KVMemory, allocate
from services.transfer.open import TransportOptions, open_transport
from services.transfer.tcp import TcpOptions

OPTIONS = TransportOptions(tcp=TcpOptions(secret=b"x"), fabric=InProcessFabric())


@pytest.mark.parametrize("name", ["nixl", "tcp", "inproc"])
def test_each_transport_says_its_name(name: str) -> None:
    transport = open_transport(name, agent="a", fingerprint="f", memory=allocate(2, 4096), options=OPTIONS)
    assert (transport.endpoint().transport, transport.endpoint().agent) == (name, "a")
    transport.close()


@pytest.mark.parametrize("name", ["pigeon", "tcp", "inproc"])
def test_an_unknown_name_or_missing_options_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        open_transport(name, agent="a", fingerprint="f", memory=allocate(2, 4096))


def test_allocated_memory_is_zeroed_page_aligned_and_cut_into_blocks() -> None:
    memory = allocate(3, 4096)
    assert memory.address % 4096 == 0
    memory.block(1)[:] = b"\1" * 4096
    assert bytes(memory.view) == bytes(4096) + b"\1" * 4096 + bytes(4096)


@pytest.mark.parametrize(("num_blocks", "view"), [(0, bytearray(0)), (2, bytearray(10)), (1, bytes(4096))])
def test_memory_that_does_not_fit_its_view_is_refused(num_blocks: int, view: bytes | bytearray) -> None:
    with pytest.raises(ConfigurationError):
        KVMemory(0, num_blocks, 4096, memoryview(view))
