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
    """Serves the images that were added, by the pull half of the OCI distribution specification."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[str, bytes]] = {}  # digest or NAME:TAG: media type, content
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
        """Add an image of one layer, a tar; `config` as in an OCI image. Returns the reference to pull."""
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
        """Add the one image of an OCI image layout, as a push would. Returns the reference to pull."""
        (descriptor,) = json.loads((layout / "index.json").read_text())["manifests"]
        body = (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        manifest = json.loads(body)
        for part in (descriptor, manifest["config"], *manifest["layers"]):
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
                parts = self.path.removeprefix("/v2/").split("/")
                tag = f"{'/'.join(parts[:-2])}:{parts[-1]}"
                blob = (
                    ("text/plain", b"") if parts == [""] else blobs.get(parts[-1]) or blobs.get(tag)
                )
                media_type, body = blob or ("text/plain", b"")
                self.send_response(200 if blob else 404)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Content-Digest", digest(body))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_arguments: object) -> None:
                """Write no log."""

        return Handler


def layer(files: dict[str, Path | str | None]) -> bytes:
    """Return a tar of files by name: a program to copy, the target of a link, or None for a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, source in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(source, Path):
                body = source.read_bytes()
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
                continue
            entry.type = tarfile.DIRTYPE if source is None else tarfile.SYMTYPE
            entry.linkname = source or ""
            tar.addfile(entry)
    return out.getvalue()
