"""The error tree of Tandem: raise where it is known, translate at the edge.

    TandemError
    ├── RequestError                 the caller can mend it
    │   ├── InvalidRequest           a malformed or out-of-range value
    │   │   ├── ContextLengthExceeded
    │   │   └── ObjectRefused        an API object's state does not allow it
    │   ├── AuthenticationFailed     no or an unknown API key, no or a wrong cluster secret
    │   ├── PermissionDenied
    │   │   └── QuotaExceeded        the caller's project has no room for more
    │   ├── NotFound
    │   │   ├── ModelNotFound
    │   │   └── ObjectNotFound       no such API object in the caller's project
    │   ├── Conflict                 another request changed the same object
    │   │   ├── LeaseLost            another gateway holds the object
    │   │   └── JobEnded             nothing is left to do for the object
    │   ├── PayloadTooLarge
    │   └── RequestTimeout           the request did not arrive in time
    ├── Overloaded                   a bounded queue or pool is full; try again later
    │   └── PoolExhausted            no KV blocks for this request now
    ├── Unavailable                  nobody can serve this now
    │   ├── NoDecodeWorker
    │   ├── NoPrefillWorker
    │   ├── NoEmbeddingWorker
    │   ├── StateUnavailable         Redis cannot be reached
    │   └── Draining
    ├── PeerError                    the other side of a connection failed us
    │   ├── PeerGone                 reset, refused, exited
    │   │   └── HandshakeFailed      TLS on one side only, or a certificate refused
    │   ├── PeerStalled              no progress within its deadline
    │   └── IncompatiblePeer         another model, layout, numerics class or protocol version
    ├── IntegrityError               what arrived is not what was announced
    │   ├── StaleEpoch
    │   ├── TokenDigestMismatch
    │   └── PayloadDigestMismatch
    ├── Cancelled                    the caller went away or asked for it
    ├── DeadlineExceeded             the request's own deadline passed
    ├── ModelRefused                 the model cannot run here; the text says why
    ├── ConfigurationError           a setting is missing, unknown or contradictory
    └── InternalError                a defect of ours
        └── TokenDivergence          two computations of one token differ

Every class has a stable ``code``; two tables map classes to gRPC statuses (``services.rpc.errors``)
and to HTTP statuses (``services.gateway.web.errors``). Standard library only.
"""


class TandemError(Exception):
    """Base of everything Tandem raises on purpose."""

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class RequestError(TandemError):
    """The caller's fault."""

    code = "invalid_request"


class InvalidRequest(RequestError):
    """A malformed or out-of-range value; ``param`` names it, and ``code`` may say more closely what is wrong."""

    code = "invalid_value"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        if code is not None:
            self.code = code


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus requested output do not fit into the model's context."""

    code = "context_length_exceeded"


class ObjectRefused(InvalidRequest):
    """The state of an API object does not allow what was asked."""

    code = "object_refused"


class AuthenticationFailed(RequestError):
    """No or an unknown credential."""

    code = "invalid_api_key"


class PermissionDenied(RequestError):
    """A known caller asked for something that is not theirs."""

    code = "permission_denied"


class QuotaExceeded(PermissionDenied):
    """The caller's project keeps as much as it may."""

    code = "quota_exceeded"


class NotFound(RequestError):
    """The named object does not exist for this caller."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No worker serves the named model."""

    code = "model_not_found"


class ObjectNotFound(NotFound):
    """The caller's project has no such API object."""

    code = "object_not_found"


class Conflict(RequestError):
    """Another request changed the same object, or took the same id."""

    code = "conflict"


class LeaseLost(Conflict):
    """Another gateway took the object meanwhile; nothing may be written to it here any more."""

    code = "lease_lost"


class JobEnded(Conflict):
    """Nothing is left to do: the run, the response or the indexing has come to an end."""

    code = "job_ended"


class PayloadTooLarge(RequestError):
    """The body exceeds the configured limit."""

    code = "payload_too_large"


class RequestTimeout(RequestError):
    """The request did not arrive as a whole within the time it has for that."""

    code = "request_timeout"


class Overloaded(TandemError):
    """A bounded queue or pool is full; ``retry_after_s`` says when to come back."""

    code = "rate_limit_exceeded"


class PoolExhausted(Overloaded):
    """The KV pool has no blocks for this request now."""

    code = "pool_exhausted"


class Unavailable(TandemError):
    """Nobody can serve this request now."""

    code = "unavailable"


class NoDecodeWorker(Unavailable):
    """No decode worker is alive for the model."""

    code = "no_decode_worker"


class NoPrefillWorker(Unavailable):
    """No prefill worker is alive and the caller insists on one."""

    code = "no_prefill_worker"


class NoEmbeddingWorker(Unavailable):
    """No embedding worker is alive, or none for the model."""

    code = "no_embedding_worker"


class StateUnavailable(Unavailable):
    """Redis cannot be reached."""

    code = "state_unavailable"


class Draining(Unavailable):
    """This process takes no new work because it is leaving."""

    code = "draining"


class PeerError(TandemError):
    """The other side of a connection failed us."""

    code = "peer_error"


class PeerGone(PeerError):
    """The connection was reset or refused, or the process exited."""

    code = "peer_gone"


class HandshakeFailed(PeerGone):
    """The peer took the connection, and it ended before a call: TLS on one side only, or a certificate refused."""

    code = "handshake_failed"


class PeerStalled(PeerError):
    """The peer made no progress within its deadline."""

    code = "peer_stalled"


class IncompatiblePeer(PeerError):
    """The peer has another model, layout, numerics class or protocol version."""

    code = "incompatible_peer"


class IntegrityError(TandemError):
    """What arrived is not what was announced."""

    code = "integrity_error"


class StaleEpoch(IntegrityError):
    """A notice names an attempt that is over."""

    code = "stale_epoch"


class TokenDigestMismatch(IntegrityError):
    """A block was computed from other token ids."""

    code = "token_digest_mismatch"


class PayloadDigestMismatch(IntegrityError):
    """A block's bytes changed on the way."""

    code = "payload_digest_mismatch"


class Cancelled(TandemError):
    """The caller went away or asked to stop."""

    code = "cancelled"


class DeadlineExceeded(TandemError):
    """The request's own deadline passed."""

    code = "deadline_exceeded"


class ModelRefused(TandemError):
    """The model cannot run here; the message says why and what would help."""

    code = "model_refused"


class ConfigurationError(TandemError):
    """A setting is missing, unknown or contradictory."""

    code = "configuration_error"


class InternalError(TandemError):
    """A defect of ours."""

    code = "internal_error"


class TokenDivergence(InternalError):
    """A token that was sent already is another one when it is computed again; nobody can say which one is right."""

    code = "token_divergence"
