"""The keys that this server's id tokens are signed with, and from which secrets for other signatures are derived.

Decided here and only here: ECDSA on P-256 (``ES256``), of which anybody may have the public half; that the private half
is in the database, sealed, so that all servers of it sign and accept alike; that a new one is made every 90 days and
the old one is kept until nothing that it signed is good any more; and that all of it is read again every minute, and
at once when a token names a key that is not known.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from casstore_server.db.signing import SigningKeys, StoredKey
from casstore_server.secrets import SecretBox

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = ["ALGORITHM", "ROTATE_SECONDS", "Key", "Keys"]

ALGORITHM: Final = "ES256"
ROTATE_SECONDS: Final = 90 * 24 * 3600.0
KEEP_SECONDS: Final = 24 * 3600.0
"""How long a retired key is accepted: longer than any token is good."""
_FRESH: Final = 60.0
_LOOK_EVERY: Final = 1.0
_CONTEXT: Final = "signing_key"


class Key(NamedTuple):
    """One key, open."""

    kid: str
    private: EllipticCurvePrivateKey

    def derive(self, purpose: str) -> bytes:
        """32 secret bytes that are good for one purpose (HKDF-SHA-256, RFC 5869), and tell nothing of the key or of
        those for others. They are the same on every server that has the key.
        """
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415  # only where it is needed
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415  # as above

        secret = self.private.private_numbers().private_value.to_bytes(32, "big")
        return HKDF(SHA256(), 32, None, purpose.encode()).derive(secret)


class Keys:
    """Safe to use from any thread."""

    def __init__(self, stored: SigningKeys, box: SecretBox, *, clock: Callable[[], float] = time.time) -> None:
        self._stored = stored
        self._box = box
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._looked_at = float("-inf")
        self._open: dict[str, Key] = {}
        self._signing: str | None = None

    def signing(self) -> Key:
        """The key to sign with; made, if there is none or it is old."""
        with self._lock:
            self._refresh(make=True)
            if self._signing is None:
                raise AssertionError
            return self._open[self._signing]

    def find(self, kid: str) -> Key | None:
        """The key of this id, if what it signed is to be accepted."""
        with self._lock:
            self._refresh(make=False)
            if kid not in self._open and abs(self._clock() - self._looked_at) > _LOOK_EVERY:
                self._looked_at = self._clock()
                self._refresh(make=False, now=True)
            return self._open.get(kid)

    def public(self) -> dict[str, Any]:
        """The public halves, as a JSON Web Key Set."""
        import json  # noqa: PLC0415  # as jwt has it

        from jwt.algorithms import ECAlgorithm  # noqa: PLC0415  # only where there are id tokens

        self.signing()
        with self._lock:
            found = list(self._open.values())
        return {
            "keys": [
                {"kid": key.kid, "use": "sig", "alg": ALGORITHM}
                | json.loads(ECAlgorithm.to_jwk(key.private.public_key()))
                for key in found
            ]
        }

    def rotate(self) -> str:
        """Retire the key that signs, and make another; gives its id."""
        with self._lock:
            self._make(force=True)
            self._refresh(make=False, now=True)
            return self._signing or ""

    def _refresh(self, *, make: bool, now: bool = False) -> None:
        moment = self._clock()
        fresh = 0 <= moment - self._read_at < _FRESH and not now
        if fresh and not (make and self._signing is None):
            return
        rows = self._stored.all()
        if make and self._due(rows, moment):
            rows = self._make(force=False)
        kept = [row for row in rows if row.retired is None or moment - row.retired < KEEP_SECONDS]
        self._open = {row.kid: self._open.get(row.kid) or self._unsealed(row) for row in kept}
        active = [row for row in kept if row.retired is None]
        self._signing = max(active, key=lambda row: row.created).kid if active else None
        self._read_at = moment

    def _due(self, rows: Sequence[StoredKey], moment: float) -> bool:
        return not any(row.retired is None and moment - row.created < ROTATE_SECONDS for row in rows)

    def _make(self, *, force: bool) -> list[StoredKey]:
        """Add a key, unless another server was first; who looks again afterwards sees one key that signs."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415  # only where it is needed
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  # as above

        private = ec.generate_private_key(ec.SECP256R1())
        kid = secrets.token_hex(8)
        raw = private.private_bytes(form.Encoding.DER, form.PrivateFormat.PKCS8, form.NoEncryption())
        moment = self._clock()
        return self._stored.add(
            kid,
            moment,
            lambda: self._box.seal(raw, _CONTEXT, kid),
            due=lambda now: force or self._due(now, moment),
            forget_before=moment - KEEP_SECONDS,
        )

    def _unsealed(self, row: StoredKey) -> Key:
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  # only where it is needed
        from cryptography.hazmat.primitives.serialization import load_der_private_key  # noqa: PLC0415  # as above

        key = load_der_private_key(self._box.open(row.sealed, _CONTEXT, row.kid), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"signing key {row.kid} is of another kind")
        return Key(row.kid, key)
