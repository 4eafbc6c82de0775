"""A certificate authority that shares no code with ours: a root, an issuer under it, and the
`Certify` method over both. Certificates have the DNS name alone, as Linkerd's have."""

import datetime
import pathlib

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import identity_pb2 as identity

TOKEN = b"open sesame"
LIFETIME = datetime.timedelta(hours=1)


def named(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(subject, key, issuer, days=1):
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + days * LIFETIME)
    )


def authority(subject, key, issuer, below):
    built = certificate(subject, key, issuer, days=24)
    return built.add_extension(x509.BasicConstraints(True, below), critical=True)


class Authority:
    def __init__(self, folder):
        """Writes the root to `folder/roots.pem`, and the token that it wants to `folder/token`."""
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = authority("py-root", root_key.public_key(), "py-root", 1)
        root = root.sign(root_key, hashes.SHA256())
        self.key = ec.generate_private_key(ec.SECP256R1())
        issuer = authority("py-issuer", self.key.public_key(), "py-root", 0)
        self.issuer = issuer.sign(root_key, hashes.SHA256())
        folder = pathlib.Path(folder)
        pem = root.public_bytes(serialization.Encoding.PEM)
        (folder / "roots.pem").write_bytes(pem)
        (folder / "token").write_bytes(TOKEN)

    def certify(self, request, context):
        if request.token != TOKEN:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "that is not the token")
        asked = x509.load_der_x509_csr(request.certificate_signing_request)
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        wanted = [x509.DNSName(request.identity)]
        if not asked.is_signature_valid or list(names) != wanted:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{names} is not just {wanted}")
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = (
            certificate("workload", asked.public_key(), "py-issuer")
            .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        der = serialization.Encoding.DER
        answer = identity.CertifyResponse(
            leaf_certificate=leaf.public_bytes(der),
            intermediate_certificates=[self.issuer.public_bytes(der)],
        )
        answer.valid_until.FromDatetime(leaf.not_valid_after_utc)
        return answer
