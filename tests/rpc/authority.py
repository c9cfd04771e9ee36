"""Authorities and certificates, made here."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.rpc.tls import SERVER_NAME, Tls

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Files:
    """One service's three files, as a mounted Secret of cert-manager has them."""

    folder: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.folder / "ca.crt", self.folder / "tls.crt", self.folder / "tls.key"

    @property
    def options(self) -> list[str]:
        names = ("--tls-ca-file", "--tls-cert-file", "--tls-key-file")
        return [word for name, path in zip(names, self.paths, strict=True) for word in (name, str(path))]

    def load(self) -> Tls:
        return Tls(*self.paths)


@dataclass
class Authority:
    """Signs certificates of services."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    certificate: x509.Certificate = field(init=False)

    @classmethod
    def at(cls, folder: Path, name: str = "the cluster") -> Self:
        authority = cls(folder, name)
        authority.certificate = _sign(authority, name, authority.key.public_key(), is_authority=True)
        return authority

    def issue(self, service: str, server_name: str = SERVER_NAME) -> Files:
        """Write the files of a service, over those that it has."""
        files = Files(self.folder / service)
        files.folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        authority, certificate, private = files.paths
        authority.write_bytes(_pem(self.certificate))
        certificate.write_bytes(_pem(_sign(self, server_name, key.public_key())))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


def _sign(
    authority: Authority, name: str, key: ec.EllipticCurvePublicKey, *, is_authority: bool = False
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, authority.name)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if not is_authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
