"""A registry of container images on loopback, filled by the tests; containerd pulls from it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Serves what was added, by the pulling half of the OCI distribution interface."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[str, bytes]] = {}  # digest, or NAME:TAG -> media type, content
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def add(
        self,
        name: str,
        layer: bytes,
        *,
        annotations: dict[str, str] | None = None,
        **config: object,
    ) -> str:
        """Add an image of one layer, a tar; `config` as in an OCI image. Returns what to pull."""
        packed = gzip.compress(layer, 1, mtime=0)
        settings = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
        parts = [self._keep(CONFIG, json.dumps(settings).encode()), self._keep(LAYER, packed)]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": parts[0],
            "layers": parts[1:],
            "annotations": annotations or {},
        }
        body = json.dumps(manifest).encode()
        self._keep(MANIFEST, body)
        self._blobs[f"{name}:latest"] = (MANIFEST, body)
        return f"{self.address}/{name}:latest"

    def add_layout(self, name: str, layout: Path) -> str:
        """Add the one image of an OCI image layout, as a push would. Returns what to pull."""
        (described,) = json.loads((layout / "index.json").read_text())["manifests"]
        body = (layout / "blobs" / described["digest"].replace(":", "/")).read_bytes()
        manifest = json.loads(body)
        for part in (described, manifest["config"], *manifest["layers"]):
            content = (layout / "blobs" / part["digest"].replace(":", "/")).read_bytes()
            assert self._keep(part["mediaType"], content)["digest"] == part["digest"]
        self._blobs[f"{name}:latest"] = (MANIFEST, body)
        return f"{self.address}/{name}:latest"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _keep(self, media_type: str, body: bytes) -> dict[str, object]:
        self._blobs[digest(body)] = (media_type, body)
        return {"mediaType": media_type, "digest": digest(body), "size": len(body)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        blobs = self._blobs

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                words = self.path.removeprefix("/v2/").split("/")
                by_tag = f"{'/'.join(words[:-2])}:{words[-1]}"
                found = (
                    ("text/plain", b"")
                    if words == [""]
                    else blobs.get(words[-1]) or blobs.get(by_tag)
                )
                media_type, body = found or ("text/plain", b"")
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Content-Digest", digest(body))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_words: object) -> None:
                """Nobody reads it."""

        return Handler


def layer(files: dict[str, Path | str | None]) -> bytes:
    """A tar of name -> program to copy, target of a link, or None for a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, what in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(what, Path):
                body = what.read_bytes()
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
                continue
            entry.type = tarfile.DIRTYPE if what is None else tarfile.SYMTYPE
            entry.linkname = what or ""
            tar.addfile(entry)
    return out.getvalue()
