"""Reads and checks the certificates and private keys in PEM files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.composition.tls.files import CredentialFiles, Credentials, PemFile
from server.config import ConfigurationError

MIN_RSA_BITS = 2048
EXPIRY_WARNING = timedelta(days=14)
_CURVES = (ec.SECP256R1, ec.SECP384R1)  # every common TLS library supports these
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def read_credentials(files: CredentialFiles, now: datetime) -> Credentials:
    """Read and check the files. Raises ConfigurationError with a line per fault."""
    faults: list[str] = []
    credentials = Credentials()
    try:
        if files.certificate and files.key:
            credentials = _read_pair(files.certificate, files.key, now)
    except ConfigurationError as error:
        faults.append(str(error))
    try:
        if files.authorities:
            authorities = _read_authorities(files.authorities, now)
            credentials = replace(credentials, authorities=authorities)
    except ConfigurationError as error:
        faults.append(str(error))
    if faults:
        raise ConfigurationError("\n".join(faults))
    return credentials


def _read_pair(certificate: PemFile, key: PemFile, now: datetime) -> Credentials:
    certificate_pem, key_pem = certificate.read(), key.read()
    chain = _parse_certificates(certificate, certificate_pem)
    private_key = _parse_key(key, key_pem)
    fits = [_fits(each, private_key) for each in chain]
    if not any(fits):
        raise key.fault(
            f"does not match the certificate in {certificate.setting}: set "
            f"{key.setting} to the key for which the certificate was issued"
        )
    if not fits[0]:
        raise certificate.fault(
            f"must begin with the certificate that matches the key in {key.setting}, "
            "followed by the certificates of the authorities that issued it"
        )
    _check_validity(certificate, chain[0], now)
    start, end = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    # Certificates that live for days or hours are renewed later than others.
    renew_by = end - min(EXPIRY_WARNING, (end - start) / 3)
    return Credentials(certificate_pem, key_pem, None, end, renew_by)


def _read_authorities(file: PemFile, now: datetime) -> bytes:
    pem = file.read()
    authorities = _parse_certificates(file, pem)
    if not all(map(_is_authority, authorities)):
        raise file.fault(
            "must contain only certificates of certificate authorities, not "
            "certificates of servers or clients"
        )
    # While an authority is replaced, the previous one may expire.
    if not any(
        certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
        for certificate in authorities
    ):
        _check_validity(file, authorities[-1], now)
    return pem


def _fits(certificate: x509.Certificate, key: PrivateKey) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):  # of another kind than any valid key
        return False


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        )
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.value.ca


def _parse_certificates(file: PemFile, pem: bytes) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise file.fault(
            "has no valid PEM certificate (-----BEGIN CERTIFICATE-----); convert other "
            "formats with `openssl x509 -outform pem`"
        ) from error


def _parse_key(file: PemFile, pem: bytes) -> PrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise file.fault(
            "is encrypted: decrypt it with `openssl pkey` and restrict the permissions "
            "of the file instead"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise file.fault(
            "has no valid PEM private key (-----BEGIN PRIVATE KEY-----); convert other "
            "formats with `openssl pkey -outform pem`"
        ) from error
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
        return key
    raise file.fault(
        f"must be an RSA key of at least {MIN_RSA_BITS} bits or an EC key of the curve "
        "P-256 or P-384"
    )


def _check_validity(
    file: PemFile, certificate: x509.Certificate, now: datetime
) -> None:
    end, start = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if end <= now:
        raise file.fault(f"expired at {end:%Y-%m-%d %H:%M} UTC: renew the certificate")
    if start > now:
        raise file.fault(
            f"is not valid before {start:%Y-%m-%d %H:%M} UTC: check the clock of this "
            "machine, or set a certificate that is valid now"
        )
