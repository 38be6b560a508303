"""The certificates of the secure variant: an authority, the servers', the Kafka administrator's."""

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE_DAYS = 825  # Apple's clients accept no server's certificate that is valid for longer
CLOCK_SKEW = timedelta(minutes=5)  # a certificate is valid at once where a clock is slow


class Authority:
    """A certificate authority whose key stays in memory: nobody can sign with it afterwards.

    Attributes:
        pem: its own certificate, by which clients check those that it has issued.
    """

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = common_name("smart-city authority")
        self.pem = self.sign(self.name, self.key.public_key(), [], is_authority=True)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Return a new key and its certificate (PEM), for use as a server and as a client.

        Args:
            name: who holds them; for a server also its host name among the containers. The
                certificate is valid for localhost and 127.0.0.1 too.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = [x509.DNSName(host) for host in (name, "localhost")]
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        extensions = [
            x509.SubjectAlternativeName([*hosts, address]),
            x509.ExtendedKeyUsage(uses),
        ]
        certificate = self.sign(common_name(name), key.public_key(), extensions)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem, certificate

    def sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        extensions: list[x509.ExtensionType],
        is_authority: bool = False,
    ) -> bytes:
        """Return a certificate (PEM) of a public key, valid for CERTIFICATE_DAYS from now."""
        now = datetime.now(UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(key_usage(is_authority), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)  # Python 3.13 refuses certificates without it
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def common_name(name: str) -> x509.Name:
    """Return a certificate's subject that has only a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(signs_certificates: bool) -> x509.KeyUsage:
    """Return the uses of a key: to sign certificates, or else to prove its holder's identity."""
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


def certificate_files() -> dict[str, bytes]:
    """Return new certificates and keys: path below .secure/ -> content of the file (PEM).

    Each server has a folder of its own, which is mounted into its container.
    """
    authority = Authority()
    kafka = b"".join(authority.issue("kafka"))
    files = {
        "kafka/kafka.pem": kafka,  # Kafka's PEM key store: key and certificate in one file
        "kafka/client.properties": client_properties(kafka, authority.pem).encode(),
        "admin.pem": b"".join(authority.issue("admin")),
    }
    for name, folder in (("elasticsearch", "elasticsearch/certs"), ("kibana", "kibana")):
        files[f"{folder}/{name}.key"], files[f"{folder}/{name}.pem"] = authority.issue(name)
        files[f"{folder}/ca.pem"] = authority.pem
    # The last to be written: once it is there, all the others are.
    return {**files, "kafka/ca.pem": authority.pem, "ca.pem": authority.pem}


def client_properties(key_and_certificate: bytes, authority: bytes) -> str:
    """Return the configuration of Kafka's console tools for the holder of a certificate.

    It holds the certificates themselves and names no file, so it works wherever it is mounted.
    """
    key, begin, certificate = key_and_certificate.decode().partition("-----BEGIN CERTIFICATE-----")
    values = {
        "security.protocol": "SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.key": key,
        "ssl.keystore.certificate.chain": begin + certificate,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": authority.decode(),
    }
    one_line = {name: value.strip().replace("\n", "\\n") for name, value in values.items()}
    return "".join(f"{name}={value}\n" for name, value in one_line.items())
