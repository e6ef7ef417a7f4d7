#!/usr/bin/env python3
"""Makes a chain of certificates like AMD's, with keys that everybody may know, for tests.

    python3 make.py        # writes beside itself; needs the package `cryptography`

What it makes is valid from 2024 to 2034, but the files whose names say otherwise.
"""
import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

HERE = Path(__file__).resolve().parent
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
DER = serialization.Encoding.DER
CHIP = bytes(range(64))


def at(year):
    return datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc)


def name(common):
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Larvatus test, not AMD"),
                      x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(file, subject, key, issuer, issuer_key, serial=5, begin=2024, end=2034, extensions=()):
    builder = (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
               .public_key(key.public_key()).serial_number(serial)
               .not_valid_before(at(begin)).not_valid_after(at(end)))
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(ObjectIdentifier(oid), value), critical=False)
    made = builder.sign(issuer_key, hashes.SHA384(), rsa_padding=PSS)
    (HERE / file).write_bytes(made.public_bytes(DER))


def versions(bootloader=3, tee=0, snp=8, microcode=115, chip=CHIP):
    base = "1.3.6.1.4.1.3704.1."
    number = lambda n: bytes([2, 1, n]) if n < 128 else bytes([2, 2, 0, n])
    return [(base + "1", b"\x02\x01\x00"), (base + "2", b"\x16\x08Milan-B0"),
            (base + "3.1", number(bootloader)), (base + "3.2", number(tee)), (base + "3.3", number(snp)),
            (base + "3.8", number(microcode)), (base + "4", chip)]


def crl(file, issuer, key, revoked=(), begin=2024, end=2034):
    builder = (x509.CertificateRevocationListBuilder().issuer_name(name(issuer))
               .last_update(at(begin)).next_update(at(end)))
    for serial in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at(2024)).build())
    (HERE / file).write_bytes(builder.sign(key, hashes.SHA384(), rsa_padding=PSS).public_bytes(DER))


def main():
    ark, ask, other = (rsa.generate_private_key(65537, 2048) for _ in range(3))
    vcek, vcek_other = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    certificate("ark.der", "ARK-Test", ark, "ARK-Test", ark, 1)
    certificate("ask.der", "SEV-Test", ask, "ARK-Test", ark, 2)
    certificate("vcek.der", "SEV-VCEK", vcek, "SEV-Test", ask, 5, extensions=versions())
    certificate("vcek_new.der", "SEV-VCEK", vcek, "SEV-Test", ask, 5, extensions=versions(microcode=209))
    certificate("vcek_expired.der", "SEV-VCEK", vcek, "SEV-Test", ask, 5, end=2025, extensions=versions())
    certificate("vcek_no_versions.der", "SEV-VCEK", vcek, "SEV-Test", ask, 5,
                extensions=[versions()[-1]])
    certificate("vcek_no_chip.der", "SEV-VCEK", vcek, "SEV-Test", ask, 5, extensions=versions()[:-1])
    certificate("vcek_forged.der", "SEV-VCEK", vcek, "SEV-Test", other, 5, extensions=versions())
    certificate("vcek_other_key.der", "SEV-VCEK", vcek_other, "SEV-Test", ask, 5, extensions=versions())
    (HERE / "vcek.pk8").write_bytes(vcek.private_bytes(
        DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    crl("crl.der", "ARK-Test", ark)
    crl("crl_revoked.der", "ARK-Test", ark, revoked=[2])
    crl("crl_expired.der", "ARK-Test", ark, end=2025)
    crl("crl_forged.der", "ARK-Test", other)
    crl("crl_of_another.der", "ARK-Other", other, revoked=[2])


if __name__ == "__main__":
    main()
