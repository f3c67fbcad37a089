"""Every client of an object storage service keeps the contract, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from casstore.remote.azure import AzureClient
from casstore.remote.base import ObjectClient
from casstore.remote.gcs import GcsClient
from casstore.remote.s3 import S3Client
from casstore.testing.client_contract import ClientContract
from casstore.testing.servers.azurite import ACCOUNT, Azurite
from casstore.testing.servers.gcs import GcsServer
from casstore.testing.servers.s3 import S3Server, moto_s3


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


class TestS3(ClientContract):
    @pytest.fixture
    def client(self, s3_server: S3Server) -> Iterator[ObjectClient]:
        bucket = s3_server.bucket()
        found = S3Client(bucket, url=f"s3://{bucket}", credential=s3_server.credential)
        yield found
        found.close()

    def unfinished(self, client: ObjectClient) -> int:
        assert isinstance(client, S3Client)
        return len(client.call("list_multipart_uploads", None).get("Uploads") or [])

    @pytest.mark.skip(reason="moto looks at a condition and writes in two steps: it is no oracle for races")
    def test_one_winner(self, client: ObjectClient, swap: bool) -> None:
        """Of many threads that write on a condition, one wins."""


class TestAzure(ClientContract):
    KEYS = tuple(key for key in ClientContract.KEYS if "\\" not in key)  # Azure takes a backslash for a slash
    THREADS = 32
    LARGE = 34 << 20
    STREAM = 18 << 20

    @pytest.fixture
    def client(self, azurite: Azurite) -> Iterator[ObjectClient]:
        container = azurite.container()
        found = AzureClient(ACCOUNT, container, url=f"azure://{ACCOUNT}/{container}", credential=azurite.credential)
        yield found
        found.close()


class TestGcs(ClientContract):
    """With an HMAC key; `tests/unit/test_remote_gcs.py` has the tokens."""

    THREADS = 32
    STREAM = 18 << 20

    @pytest.fixture
    def client(self, gcs_server: GcsServer) -> Iterator[ObjectClient]:
        bucket = gcs_server.bucket()
        found = GcsClient(bucket, url=f"gs://{bucket}", credential=gcs_server.credential)
        yield found
        found.close()
        del gcs_server.buckets[bucket]

    @pytest.fixture(autouse=True)
    def _server(self, gcs_server: GcsServer) -> None:
        self.server = gcs_server

    def unfinished(self, client: ObjectClient) -> int:
        return self.server.unfinished(client.url.removeprefix("gs://"))
