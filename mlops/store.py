import io
import os
import re
import tarfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, LocalStore, ObjectStore, S3Store

from mlops.errors import UserError, VerificationError

# Short: a poll that hangs is worse than one that fails and is repeated.
_CLIENT = {"timeout": timedelta(seconds=5), "connect_timeout": timedelta(seconds=2)}
# It may be about the object: it is archived, or encrypted with a key that is not ours, or its disk is broken. Not: who are
# you, wait, too often.
_OF_ONE = re.compile(r"status code: (4(?!01|04|08|29)|5(?!03))\d\d|LocalFileSystem")
_RETRY = {"max_retries": 2, "retry_timeout": timedelta(seconds=8)}


class Store:
    """The bucket: a folder (a path or file://…), an S3 API (s3://bucket/prefix, endpoint and keys from AWS_*) or Azure's
    (az://container/prefix, account and keys from AZURE_*): those of which put-if-absent is proven, see `make prove writers`."""

    _store: ObjectStore

    def __init__(self, url: str):
        self.url = url
        scheme, _, path = url.partition("://")
        bucket, _, prefix = path.partition("/")
        if scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
            config = {"endpoint": endpoint} if endpoint else {}
            options = _CLIENT | {"allow_http": endpoint.startswith("http://")}
            self._store = S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=_RETRY, **config)
        elif scheme == "az":
            self._store = AzureStore(bucket, prefix=prefix or None, client_options=_CLIENT, retry_config=_RETRY)
        elif "://" in url and not url.startswith("file://"):
            raise UserError("bucket", url, "write a folder, file://…, s3://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]")
        else:
            self._store = LocalStore(Path(url.removeprefix("file://")).absolute(), mkdir=True)

    def get(self, key: str, limit: int | None = None) -> bytes | None:
        """None if it is absent. Raises VerificationError if it is there and cannot be read, or, before its bytes are read, if
        there are more than `limit`; obstore's exceptions if the bucket cannot be reached."""
        found = None
        try:
            found = self._store.get(key)
            if limit is not None and found.meta["size"] > limit:
                name, size = key.rsplit("/", 1)[-1], found.meta["size"]
                raise VerificationError("size", name, size, f"bytes: at most {limit} are allowed")
            return bytes(found.bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (BaseError, OSError) as error:
            of_one = found or _OF_ONE.search(str(error))  # its bytes broke off, or did not begin
            if not of_one or not self._answers(f"{key}.absent"):
                raise
            why = str(error).partition("Debug source")[0].strip()[-200:]
            raise VerificationError("unreadable", key, why, "is there and cannot be read") from None

    def _answers(self, absent: str) -> bool:
        """Whether it is allowed to say that there is no such object: then its other answers are about the object asked for."""
        try:
            self._store.get(absent).bytes()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (BaseError, OSError):
            return False
        return True

    def put(self, key: str, data: bytes | Path) -> None:
        self._store.put(key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write `key` if it is absent: the compare-and-set that everything else relies on. False if it exists."""
        try:
            self._store.put(key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def keys(self, prefix: str, after: str | None = None) -> list[str]:
        """Keys below the folder `prefix`, sorted; with `after` only those beyond it, without listing the others."""
        return sorted(item["path"] for batch in self._store.list(prefix or None, offset=after) for item in batch)

    def delete(self, key: str) -> None:
        """Does nothing if it is absent."""
        with suppress(FileNotFoundError):
            self._store.delete(key)

    def pack(self, target: BinaryIO, *prefixes: str) -> None:
        """Every object, or those below `prefixes`, as a tar stream, one in memory at a time."""
        with tarfile.open(fileobj=target, mode="w|") as archive:
            for key in (key for prefix in prefixes or ("",) for key in self.keys(prefix)):
                if (data := self.get(key)) is not None:  # else it was compacted meanwhile
                    entry = tarfile.TarInfo(key)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))

    def unpack(self, source: BinaryIO) -> None:
        """A release that is there stays: on AWS the bucket's policy lets nobody write it again."""
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for entry in archive:
                content = archive.extractfile(entry)
                assert content is not None
                (self.put_new if "/releases/" in entry.name else self.put)(entry.name, content.read())
