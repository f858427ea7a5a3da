"""
The stack's own certificates: an authority, and a certificate each for nats-server, mongod and the services' HTTP side.

The folder is `<data>/secrets/tls` (0700, files 0600): `ca.pem` is for everybody who connects, `ca.key` for nobody;
`nats.pem`, `mongod.pem` and `http.pem` hold a certificate and its key in one file, as all three take it.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.errors import Said, SetupError
from deploy.identities import write_secret

SERVERS = ("nats", "mongod", "http")
AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=397)
"""The longest that browsers take."""
RENEWED_BEFORE = timedelta(days=60)
CLOCKS_DIFFER = timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """The certificates of one stack; `Certificates.open` makes what is missing and renews what ends soon."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, names: Iterable[str] = (), *, now: datetime | None = None) -> "Certificates":
        """
        The certificates kept in `folder`, good for at least 60 days.

        They name loopback, this machine and `names`. The authority's key stays for ever: whoever trusts its certificate
        goes on to trust what is renewed.

        Args:
            names: host names or addresses that others reach this machine by.
        Raises:
            SetupError: a name is neither.
            OSError: the folder cannot be written.
        """
        at = now or datetime.now(UTC)
        alternatives = _alternatives({"localhost", "127.0.0.1", "::1", socket.gethostname(), *names})
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        certificates = cls(folder)
        key, authority = certificates._authority(at)
        for server in SERVERS:
            if not _good(certificates.file(server), authority, alternatives, at):
                write_secret(certificates.file(server), _issue(server, key, authority, alternatives, at))
        return certificates

    @property
    def ca_file(self) -> Path:
        """What clients trust."""
        return self.folder / "ca.pem"

    def file(self, server: str) -> Path:
        """Certificate and key of one of `SERVERS`."""
        return self.folder / f"{server}.pem"

    def _authority(self, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """Its key, and a certificate that outlives whatever is issued today."""
        key_file = self.folder / "ca.key"
        if not key_file.exists():
            write_secret(key_file, _pem(ec.generate_private_key(ec.SECP256R1())))
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        if self.ca_file.exists():
            authority = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
            if authority.public_key() == key.public_key() and authority.not_valid_after_utc > now + LIFE:
                return key, authority
        which = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Paidan {which.digest.hex()[:8]}")])
        authority = (
            _begun(name, name, key.public_key(), now, AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(which, critical=False)
            .sign(key, SHA256())
        )
        write_secret(self.ca_file, authority.public_bytes(Encoding.PEM).decode())
        return key, authority


def trusting(ca_file: Path | None) -> ssl.SSLContext | bool:
    """What an HTTP client verifies with: this authority alone, or, without one, those of the system."""
    return ssl.create_default_context(cafile=ca_file) if ca_file else True


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    def alternative(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            try:
                return x509.DNSName(name.encode("idna").decode())
            except UnicodeError:
                raise SetupError(
                    Said(f"{name} 不是主机名或地址", f"{name} is no host name or address"),
                    Said("请改正 --host 或 --name", "mend --host or --name"),
                ) from None

    return [alternative(name) for name in sorted(names)]


def _good(file: Path, authority: x509.Certificate, alternatives: list[x509.GeneralName], now: datetime) -> bool:
    if not file.exists():
        return False
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, InvalidSignature):
        return False
    named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(named) == alternatives and certificate.not_valid_after_utc > now + RENEWED_BEFORE


def _issue(
    server: str,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    alternatives: list[x509.GeneralName],
    now: datetime,
) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Paidan {server}")])
    # mongod calls itself, and is its own client then.
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if server == "mongod" else [])]
    certificate = (
        _begun(name, authority.subject, key.public_key(), now, LIFE)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(authority_key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode() + _pem(key)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now - CLOCKS_DIFFER + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
