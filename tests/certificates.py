"""Certificates for tests of TLS: an authority and what it signs, each as a PEM file beside its key."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files and as objects."""

    certificate: Path
    key: Path
    x509: x509.Certificate
    private: ec.EllipticCurvePrivateKey

    def put_in_place_of(self, other: Pair) -> None:
        """Replaces another pair's files, the certificate first, as `mv` does."""
        self.certificate.replace(other.certificate)
        self.key.replace(other.key)


def issue(folder: Path, name: str, signer: Pair | None = None, *names: str) -> Pair:
    """Makes a certificate for DNS names and addresses; without a signer, an authority's own.

    Args:
        folder: Where the files go.
        name: Common name, and what the files are called.
        signer: The authority.
        names: What the certificate is for.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.x509.subject if signer else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
    signed = builder.sign(signer.private if signer else private, hashes.SHA256())
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Pair(certificate, key, signed, private)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
