"""Certificates and node keys, by the library `cryptography`."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkd.errors import FedkdError
from fedkd.files import write

CA_DAYS, SERVER_DAYS = 3650, 365
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    """A key of Flower's curve for nodes; certificates take the same."""
    return ec.generate_private_key(ec.SECP384R1())


def write_pem(path: Path, key: Key) -> None:
    """A private key as PEM."""
    write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def read_pem(path: Path) -> Key:
    """Raises: FedkdError where it is missing or no key."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise FedkdError(f"no key can be read there: {error}", value=str(path)) from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def write_node_key(folder: Path) -> str:
    """A node's new key pair in `key` and `key.pub`. Returns: the public one, a line of OpenSSH."""
    key = new_key()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write(folder / "key", private, 0o600)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + "\n"
    (folder / "key.pub").write_text(line)
    return line


def read_node_key(path: Path) -> Key:
    """Raises: FedkdError where it is missing, or no key of an elliptic curve."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise FedkdError(f"no node key can be read there: {error}", value=str(path)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FedkdError("a node key must be ECDSA", value=str(path), fix="fedkd deploy init")
    return key


def certify_ca(name: str, key: Key) -> x509.Certificate:
    """A certificate authority of its own for one deployment, trusted by nobody else."""
    subject = _named(f"{name} CA")
    made = _about(subject, subject, key, CA_DAYS).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return made.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def certify_server(
    hosts: Sequence[str], key: Key, ca: x509.Certificate, ca_key: Key, days: int = SERVER_DAYS
) -> x509.Certificate:
    """The server's certificate, for these names and addresses and so many days."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    made = (
        _about(_named(hosts[0]), ca.subject, key, days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return made.add_extension(identifier, critical=False).sign(ca_key, hashes.SHA256())


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """A certificate as PEM."""
    path.write_bytes(certificate.public_bytes(Encoding.PEM))


def read_certificate(path: Path) -> x509.Certificate:
    """Raises: FedkdError where it is missing or no certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FedkdError(f"no certificate can be read there: {error}", value=str(path)) from None


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _about(subject: x509.Name, issuer: x509.Name, key: Key, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    # An hour in the past, for clients whose clock is a little behind; of a certificate that is
    # made expired, as tests do, the beginning lies before the end all the same.
    begins = now + timedelta(days=min(days, 0), hours=-1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
