"""Who may talk to whom when TLS is on, over real connections with real certificates."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.errors import ConfigurationError, HandshakeFailed, PeerGone
from services.gateway.settings import GatewaySettings
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.liveness import is_refused
from services.rpc.server import listen, new_server
from services.rpc.tls import Tls, tls_of
from tests.rpc.authority import Authority

SECRET = b"cluster secret"
DEADLINE_S = 30.0


class Admin(tandem_pb2_grpc.AdminServicer):
    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        certificate = context.auth_context().get("x509_pem_cert", [b""])[0]
        return pb.StatusReply(member_id=certificate.decode())


@asynccontextmanager
async def serving(tls: Tls | None) -> AsyncIterator[str]:
    server = new_server(SECRET)
    tandem_pb2_grpc.add_AdminServicer_to_server(Admin(), server)  # type: ignore[abstract]
    port = listen(server, "127.0.0.1:0", tls)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def ask(channels: Channels, address: str) -> str:
    """Return the certificate that the server saw."""
    with translated():
        reply = await channels.admin(address).Status(pb.StatusRequest(), timeout=DEADLINE_S)
    assert isinstance(reply, pb.StatusReply)
    return reply.member_id


async def ask_once(tls: Tls | None, address: str) -> str:
    channels = Channels(SECRET, tls)
    try:
        return await ask(channels, address)
    finally:
        await channels.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.at(tmp_path / "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority.at(tmp_path / "theirs")


async def test_two_certificates_of_one_authority_know_each_other(authority: Authority) -> None:
    caller = authority.issue("gateway")
    async with serving(authority.issue("worker").load()) as address:
        seen = await ask_once(caller.load(), address)
    assert seen == caller.paths[1].read_text()


async def test_without_tls_there_is_no_certificate() -> None:
    async with serving(None) as address:
        assert await ask_once(None, address) == ""


async def test_a_caller_without_tls_is_told_that_the_handshake_failed(authority: Authority) -> None:
    async with serving(authority.issue("worker").load()) as address:
        with pytest.raises(HandshakeFailed):
            await ask_once(None, address)


async def test_so_is_a_caller_with_tls_where_there_is_none(authority: Authority) -> None:
    async with serving(None) as address:
        with pytest.raises(HandshakeFailed):
            await ask_once(authority.issue("gateway").load(), address)


async def test_a_caller_of_another_authority_is_refused(authority: Authority, stranger: Authority) -> None:
    """It has the secret, and even trusts the server."""
    caller = stranger.issue("gateway")
    caller.paths[0].write_bytes(authority.issue("worker").paths[0].read_bytes())
    async with serving(authority.issue("worker").load()) as address:
        with pytest.raises(HandshakeFailed):
            await ask_once(caller.load(), address)


async def test_a_server_of_another_authority_is_refused(authority: Authority, stranger: Authority) -> None:
    async with serving(stranger.issue("worker").load()) as address:
        with pytest.raises(HandshakeFailed):
            await ask_once(authority.issue("gateway").load(), address)


async def test_a_server_with_another_name_is_refused(authority: Authority) -> None:
    async with serving(authority.issue("worker", server_name="somebody.else").load()) as address:
        with pytest.raises(HandshakeFailed):
            await ask_once(authority.issue("gateway").load(), address)


async def test_a_caller_that_trusts_but_shows_no_certificate_is_refused(authority: Authority) -> None:
    files = authority.issue("worker")
    async with serving(files.load()) as address:
        credentials = grpc.ssl_channel_credentials(files.paths[0].read_bytes())
        options = [("grpc.ssl_target_name_override", "tandem.internal")]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            with pytest.raises(HandshakeFailed), translated():
                await tandem_pb2_grpc.AdminStub(channel).Status(pb.StatusRequest(), timeout=DEADLINE_S)


async def test_the_wait_for_a_connection_ends_with_what_it_may_be(authority: Authority) -> None:
    channels = Channels(SECRET, authority.issue("decode").load())
    async with serving(None) as address:
        with pytest.raises(PeerGone, match="certificate"):
            await channels.connected(address)
    await channels.close()


async def test_a_worker_with_tls_is_not_taken_for_dead(authority: Authority) -> None:
    async with serving(authority.issue("worker").load()) as address:
        assert not await is_refused(address, DEADLINE_S)


async def test_rotated_certificates_are_used_for_new_connections(authority: Authority) -> None:
    worker, caller = authority.issue("worker"), authority.issue("gateway")
    async with serving(worker.load()) as address:
        channels = Channels(SECRET, caller.load())
        first = await ask(channels, address)
        authority.issue("gateway")
        authority.issue("worker")
        second = await ask(channels, address)
        async with asyncio.timeout(DEADLINE_S):
            while channels.num_open > 1:
                await asyncio.sleep(0)
        await channels.close()
    assert first != second == caller.paths[1].read_text()


async def test_a_new_authority_replaces_the_old_one(authority: Authority, tmp_path: Path) -> None:
    worker, caller = authority.issue("worker"), authority.issue("gateway")
    async with serving(worker.load()) as address:
        channels = Channels(SECRET, caller.load())
        await ask(channels, address)
        successor = Authority.at(authority.folder, "its successor")
        successor.issue("worker")
        with pytest.raises(HandshakeFailed):
            await ask_once(caller.load(), address)
        successor.issue("gateway")
        assert await ask(channels, address) == caller.paths[1].read_text()
        await channels.close()


def test_files_that_are_broken_meanwhile_change_nothing(authority: Authority) -> None:
    files = authority.issue("worker")
    tls = files.load()
    before = tls.current()
    files.paths[1].write_text("half a certif")
    assert tls.current() == before
    files.paths[2].unlink()
    assert tls.current() == before
    authority.issue("worker")
    assert tls.current() != before


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("content", [None, "", "nonsense"])
def test_files_that_cannot_be_used_are_named(authority: Authority, index: int, content: str | None) -> None:
    files = authority.issue("worker")
    if content is None:
        files.paths[index].unlink()
    else:
        files.paths[index].write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        files.load()
    assert str(files.paths[index]) in caught.value.message


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    files, other = authority.issue("worker"), authority.issue("gateway")
    files.paths[2].write_bytes(other.paths[2].read_bytes())
    with pytest.raises(ConfigurationError):
        files.load()


def test_settings_name_all_files_or_none(authority: Authority) -> None:
    ca_file, cert_file, key_file = authority.issue("gateway").paths
    assert tls_of(GatewaySettings()) is None
    assert tls_of(GatewaySettings(tls_ca_file=ca_file, tls_cert_file=cert_file, tls_key_file=key_file)) is not None
    with pytest.raises(ValueError, match="all of them or none"):
        GatewaySettings(tls_ca_file=ca_file)
