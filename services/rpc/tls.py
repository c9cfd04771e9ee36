"""Mutual TLS between all services: who has no certificate of the cluster's authority is not even listened to.

Workers come and go under changing addresses, so a peer is known by one fixed name in every certificate and not by
where it was found. The files are read anew for each new connection, so that rotated certificates need no restart.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
from pydantic import model_validator

from services.config import Settings
from services.errors import ConfigurationError
from services.telemetry.logs import get_logger

SERVER_NAME = "tandem.internal"
"""A DNS name that the certificate of every service carries."""
TLS_CHANNEL_OPTIONS = (("grpc.ssl_target_name_override", SERVER_NAME),)
_log = get_logger(__name__)


class TlsSettings(Settings):
    """Settings of whoever speaks gRPC; all three files or none."""

    tls_ca_file: Path | None = None
    """PEM file with the authority that signs the certificates of all services: turns mutual TLS on for gRPC."""
    tls_cert_file: Path | None = None
    """PEM file with this process's certificate, which carries the name `tandem.internal`."""
    tls_key_file: Path | None = None
    """PEM file with the private key of that certificate."""

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        if any(files) and not all(files):
            raise ValueError("tls_ca_file, tls_cert_file and tls_key_file belong together: give all of them or none")
        return self


@dataclass(frozen=True)
class Pems:
    """What the files hold at one moment."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return what a server shows, and whom it believes."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.authority)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what a client shows, and whom it believes."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


class Tls:
    """The certificates of this process as they are now."""

    def __init__(self, ca_file: Path, cert_file: Path, key_file: Path) -> None:
        """Read the files.

        Raises:
            ConfigurationError: a file cannot be read, or they do not fit together.
        """
        self._files = (ca_file, cert_file, key_file)
        self._stamps = self._look()
        self._pems = self._read()

    def current(self) -> Pems:
        """Return what the files hold now; while they cannot be read or used, what they held before (any thread)."""
        stamps = self._look()
        if stamps != self._stamps:
            try:
                self._pems = self._read()
            except ConfigurationError as error:
                _log.warning("tls.not_reloaded", reason=error.message)
            else:
                _log.event("tls.reloaded")
            self._stamps = stamps
        return self._pems

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that demand a certificate of the authority and look at the files for each connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._pems.server_configuration(), lambda: self.current().server_configuration(), True
        )

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what changes with the content of the files."""
        return tuple(_stamp(file) for file in self._files)

    def _read(self) -> Pems:
        ca_file, cert_file, key_file = self._files
        try:
            pems = Pems(*(file.read_bytes() for file in self._files))
            context = ssl.create_default_context(cafile=ca_file)
            context.load_cert_chain(cert_file, key_file)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{ca_file}, {cert_file} and {key_file} are no authority, certificate and key: {error.reason}.",
                param="tls_cert_file",
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"The TLS file {error.filename or cert_file} cannot be read: {error.strerror}.", param="tls_cert_file"
            ) from error
        return pems


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def tls_of(settings: TlsSettings) -> Tls | None:
    """Return the certificates that the settings name, or None without any.

    Raises:
        ConfigurationError: they cannot be used.
    """
    ca_file, cert_file, key_file = settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file
    if ca_file is None or cert_file is None or key_file is None:
        return None
    return Tls(ca_file, cert_file, key_file)
