"""The table between Tandem's errors and gRPC statuses; the same class comes out at the other side.

The status code is for proxies and dashboards; the class travels as its stable code in the trailing metadata.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from services import errors

CODE_KEY = "tandem-code"
PARAM_KEY = "tandem-param"
RETRY_AFTER_KEY = "tandem-retry-after-s"

_STATUS: dict[type[errors.TandemError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.AuthenticationFailed: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.IncompatiblePeer: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PeerError: grpc.StatusCode.UNAVAILABLE,
    errors.IntegrityError: grpc.StatusCode.DATA_LOSS,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_WITHOUT_CODE: dict[grpc.StatusCode, type[errors.TandemError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.PeerGone,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.PeerStalled,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: errors.AuthenticationFailed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.PayloadTooLarge,
    grpc.StatusCode.UNIMPLEMENTED: errors.IncompatiblePeer,
}

_NO_CONNECTION = "failed to connect to all addresses"
_HANDSHAKE_SIGNS = ("handshake failed", "Verification Check failed", "Socket closed")
"""What gRPC says when we refuse a certificate; when the peer refuses ours, or expects one, it only hangs up."""


def status_of(error: errors.TandemError) -> grpc.StatusCode:
    """Return the gRPC status of an error's nearest listed class."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), grpc.StatusCode.INTERNAL)


def trailing_metadata(error: errors.TandemError) -> tuple[tuple[str, str], ...]:
    """Return what lets the other side raise the same class."""
    pairs = [(CODE_KEY, error.code)]
    if error.param is not None:
        pairs.append((PARAM_KEY, error.param))
    if error.retry_after_s is not None:
        pairs.append((RETRY_AFTER_KEY, str(error.retry_after_s)))
    return tuple(pairs)


def shortened(text: str, max_length: int) -> str:
    """Return ``text`` with at most ``max_length`` characters."""
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.TandemError:
    """Return the error that the peer raised, or what a bare status means."""
    trailing = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
    kind = _by_code().get(trailing.get(CODE_KEY, "")) or _without_code(error)
    retry_after = trailing.get(RETRY_AFTER_KEY)
    return kind(
        error.details() or error.code().name,
        param=trailing.get(PARAM_KEY),
        retry_after_s=float(retry_after) if retry_after else None,
    )


def _without_code(error: grpc.aio.AioRpcError) -> type[errors.TandemError]:
    details = error.details() or ""
    if _NO_CONNECTION in details and any(sign in details for sign in _HANDSHAKE_SIGNS):
        return errors.HandshakeFailed
    return _WITHOUT_CODE.get(error.code(), errors.InternalError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise the peer's own error instead of gRPC's, and ``PeerGone`` when the channel was closed under the call."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise errors.PeerGone("The connection to the peer was closed here.") from error  # nobody cancelled this task


def _by_code() -> dict[str, type[errors.TandemError]]:
    return {kind.code: kind for kind in _tree(errors.TandemError)}


def _tree(root: type[errors.TandemError]) -> Iterator[type[errors.TandemError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)
