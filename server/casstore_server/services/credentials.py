"""What the server does with credentials.

Decided here and only here: that a credential for object storage is tried before it is kept, and that nothing but names,
types and profiles ever leaves.
"""

from __future__ import annotations

from casstore.errors import AccessError, CasstoreError
from casstore.transfer.raw import check_credential
from casstore.wire.credentials import (
    Credential,
    CredentialBody,
    CredentialList,
    CredentialSummary,
    check_name,
)
from casstore_server.services.context import Caller, Services

__all__ = ["delete", "list_all", "put"]


def list_all(services: Services, caller: Caller) -> CredentialList:
    """The caller's credentials, without their secrets."""
    own = services.credentials.vault.names(caller.user)
    return CredentialList(credentials=[_summary(name, found) for name, found in own.items()])


def put(services: Services, caller: Caller, name: str, body: CredentialBody, *, validate: bool) -> list[str]:
    """Keep a credential; returns the names of those that it takes the place of.

    ``validate``: one for object storage that does not work is refused.
    """
    check_name(name)
    credential = Credential.of_body(body)
    storage = credential.storage()
    if storage is not None and not storage.access_key and caller.user != services.settings.user:
        # With an address of the user's own, the machine would log in there as itself.
        raise AccessError(
            "A credential without keys stands for the identity of the server, which is for its owner alone",
            hint="Give access_key_id and access_key.",
        )
    untried = services.config.last_good().workflow.credential_config.disable_data_validation
    if credential.profile in untried:
        validate = False
    if validate and storage is not None and body.data_credential is not None:
        try:
            check_credential(body.data_credential.endpoint, storage)
        except CasstoreError as error:
            raise type(error)(
                f"the credential was not kept, for it does not work: {error.message}", hint=error.hint
            ) from None
    return services.credentials.keep(caller.user, name, credential)


def delete(services: Services, caller: Caller, name: str) -> CredentialList:
    """Forget a credential; the reply says which it was."""
    found = services.credentials.vault.remove(caller.user, check_name(name))
    return CredentialList(credentials=[_summary(name, found)])


def _summary(name: str, found: Credential) -> CredentialSummary:
    return CredentialSummary(cred_name=name, cred_type=found.type, profile=found.profile)
