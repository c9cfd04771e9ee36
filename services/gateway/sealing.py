"""Seals texts that clients keep for us: gateways of this cluster open them again, for the same project only.

    key of a project  =  HKDF-SHA256(cluster secret; purpose, project)
    sealed text       =  Fernet(key; text): AES-128-CBC, then HMAC-SHA256, with the time and a random IV

Nothing is stored, so that any gateway opens what another one sealed, now or after a restart; another cluster secret
makes all sealed texts unreadable.
"""

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.errors import InvalidRequest

_KEY_BYTES = 32
_QUOTED = 4
"""Characters that an error quotes of either end of a sealed text."""


class Sealer:
    """Seals texts for one purpose; what is sealed for another purpose is not opened."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._secret = secret
        self._purpose = purpose

    def seal(self, project: str, text: str) -> str:
        """Return ``text`` as something that only the same project can bring back, in printable ASCII."""
        return self._fernet(project).encrypt(text.encode()).decode()

    def opened(self, project: str, sealed: str) -> str:
        """Return the text that was sealed for ``project``.

        Raises:
            InvalidRequest: it was changed, or sealed for another project or by another cluster.
        """
        try:
            return self._fernet(project).decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise InvalidRequest(
                f"The encrypted content {_quoted(sealed)} could not be verified. It can be read as it was given out, "
                "in the same project and cluster only; leave the item out, or compact the conversation again.",
                param="input",
                code="invalid_encrypted_content",
            ) from error

    def _fernet(self, project: str) -> Fernet:
        info = f"tandem {self._purpose}\0{project}".encode()
        key = HKDF(SHA256(), _KEY_BYTES, salt=None, info=info).derive(self._secret)
        return Fernet(base64.urlsafe_b64encode(key))


def _quoted(sealed: str) -> str:
    return sealed if len(sealed) <= 2 * _QUOTED else f"{sealed[:_QUOTED]}...{sealed[-_QUOTED:]}"
