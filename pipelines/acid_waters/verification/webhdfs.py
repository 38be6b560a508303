"""HDFS by HTTP."""

import json
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from tqdm import tqdm


class WebHdfs:
    """HDFS by HTTP, never through the proxy that http_proxy names: it is a server of our own."""

    def __init__(self, web_url: str, hdfs_url: str) -> None:
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.base = f"{web_url.rstrip('/')}/webhdfs/v1"
        self.root = urlsplit(hdfs_url).path.rstrip("/")

    def ask(self, path: str, operation: str) -> bytes:
        """Return the answer to an operation on a path below the root."""
        url = f"{self.base}{quote(f'{self.root}/{path}')}?op={operation}"
        with self.opener.open(url, timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def files(self, folder: str) -> list[str]:
        """Return the data files of a folder, none when it is not there."""
        try:
            statuses = json.loads(self.ask(folder, "LISTSTATUS"))["FileStatuses"]["FileStatus"]
        except HTTPError as exc:
            if exc.code != HTTPStatus.NOT_FOUND:
                raise
            return []
        names = [status["pathSuffix"] for status in statuses if status["type"] == "FILE"]
        return [f"{folder}/{name}" for name in names if not name.startswith(("_", "."))]

    def download(self, folders: Sequence[str], to: Path) -> list[str]:
        """Copy the data files of folders, with a bar on a terminal; return their local names."""
        copies = []
        for folder in tqdm(folders, "HDFS", leave=False, disable=None):
            for name in self.files(folder):
                copies.append(to / f"{len(list(to.iterdir()))}-{Path(name).name}")
                copies[-1].write_bytes(self.ask(name, "OPEN"))
        return [str(copy) for copy in copies]
