"""What a port speaks: TLS, with client certificates where wanted, from files that may be replaced while it serves."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.rpc import logs

_Fingerprint = tuple[tuple[int, int, int], ...]


class UnusableCertificate(Exception):
    """The files cannot be used; the text says why and holds nothing of the key."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are.

    Attributes:
        certificate: The server's certificate, followed by its chain.
        key: Its private key, not encrypted.
        client_ca: Authorities of which every client must show a certificate; None lets clients in without one.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class ServerCertificates:
    """Gives every new connection the newest usable certificate.

    grpc asks before each handshake, in a thread of its own; what is asked then is three `stat` calls. A certificate
    and its key cannot be replaced at one moment, so files that do not fit together are left alone until they do:
    connections go on with the ones before.

    Args:
        files: Where they are.

    Raises:
        UnusableCertificate: They cannot be used from the start.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._log = logs.get("tls")
        try:
            self._seen = self._fingerprint()
        except OSError as error:
            raise _unreadable(error) from None
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        # grpc takes None for "no change", which its types do not say.
        newer: Any = self._newer
        return grpc.dynamic_ssl_server_credentials(
            self._first, newer, require_client_authentication=self._files.client_ca is not None
        )

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """What has replaced the certificate since the last question, if anything usable has."""
        with self._lock:
            try:
                found = self._fingerprint()
                if found == self._seen:
                    return None
                self._seen = found
                fresh = self._read()
            except OSError as error:
                self._log.warning("certificate_not_reloaded", reason=str(_unreadable(error)))
            except UnusableCertificate as error:
                self._log.warning("certificate_not_reloaded", reason=str(error))
            else:
                self._log.info("certificate_reloaded")
                return fresh
        return None

    def _fingerprint(self) -> _Fingerprint:
        files = (self._files.certificate, self._files.key, self._files.client_ca)
        stats = [file.stat() for file in files if file is not None]
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            certificate = self._files.certificate.read_bytes()
            key = self._files.key.read_bytes()
            client_ca = self._files.client_ca.read_bytes() if self._files.client_ca else None
        except OSError as error:
            raise _unreadable(error) from None
        _check_pair(self._files, certificate, key)
        if client_ca is not None and self._files.client_ca is not None:
            _leaf(self._files.client_ca, client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def names_of(certificate: Path) -> list[str]:
    """Names and addresses that a certificate is for.

    Raises:
        UnusableCertificate: The file holds none.
    """
    try:
        leaf = _leaf(certificate, certificate.read_bytes())
    except OSError as error:
        raise _unreadable(error) from None
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _leaf(file: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise UnusableCertificate(f"{file} holds no PEM certificate") from None


def _check_pair(files: TlsFiles, certificate: bytes, key: bytes) -> None:
    """grpc itself would fail every handshake instead."""
    leaf = _leaf(files.certificate, certificate)
    try:
        private = load_pem_private_key(key, password=None)
    except (TypeError, ValueError):
        raise UnusableCertificate(f"{files.key} holds no PEM private key, or an encrypted one") from None
    if private.public_key() != leaf.public_key():
        raise UnusableCertificate(f"{files.key} is not the key of {files.certificate}")


def _unreadable(error: OSError) -> UnusableCertificate:
    return UnusableCertificate(f"cannot read {error.filename}: {error.strerror}")
