"""A fake API server, and a fake kubelet: TLS, tokens, pods, exec over a websocket, and the checkpoint API.

A test says what checkpoints and what runs in a container: a real container runtime, or a few lines.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme
import wsproto
import yaml
from wsproto.events import BytesMessage, CloseConnection

TOKEN = "a-token-of-this-test"
STREAM_CANCELLED = (
    "stream terminated by RST_STREAM with error code: CANCEL"  # grpc-go, http2_client.go
)
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
ExecResult = tuple[int, str, str]  # exit status, stdout, stderr


class HttpError(Exception):
    """Answer with this status and body."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def api_error(code: int, message: str) -> HttpError:
    """Return an error with a Status as the API server sends it; kubelets send the message alone."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return HttpError(code, json.dumps(body | {"message": message}))


def pod(name: str, *containers: str, node: str = "node-1", **changes: Any) -> dict[str, Any]:
    """Return a pod that runs, as the API server describes it; `changes` replace some of its fields."""
    running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    names = containers or ("engine",)
    statuses = [
        {
            "name": container,
            "image": "vllm:1",
            "containerID": changes.get("container_id", f"containerd://{name}-{container}"),
            "state": changes.get("state", running),
        }
        for container in names
    ]
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "labels": changes.get("labels", {"app": "vllm"}),
            **changes.get("metadata", {}),
        },
        "spec": {"nodeName": node, "containers": [{"name": container} for container in names]},
        "status": {
            "phase": changes.get("phase", "Running"),
            "hostIP": "127.0.0.1",
            "containerStatuses": statuses,
        },
    }


class QuietServer(ThreadingHTTPServer):
    """Prints no error for a client that has hung up, as some tests do."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class FakeApiServer:
    """The cluster's API at `url`, and the same server as a kubelet; `requests` are those that it got.

    `checkpoint(pod, container, seconds)` returns the archive's path or raises HttpError;
    `run(pod, container, command)` returns status, stdout and stderr, or raises HttpError with why it cannot.
    """

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.reset()
        self._server = QuietServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def reset(self) -> None:
        """Be as at the start, for another test."""
        self.pods: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.checkpoint: Callable[[str, str, int], str] = lambda *_: (
            "/var/lib/kubelet/checkpoints/c.tar"
        )
        self.run: Callable[[str, str, Sequence[str]], ExecResult] = lambda *_: (
            127, "", "no such program"
        )  # fmt: skip
        self.errors: dict[str, HttpError] = {}  # by a part of the path that is asked for
        self.page_size = 500

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    def add(self, *pods: dict[str, Any]) -> None:
        self.pods |= {pod["metadata"]["name"]: pod for pod in pods}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def get(self, parts: list[str], query: dict[str, str]) -> dict[str, Any]:
        """Answer for pods, or namespaces/NS/pods, or namespaces/NS/pods/POD."""
        if parts[-1] != "pods":
            if parts[-1] not in self.pods:
                raise api_error(404, f'pods "{parts[-1]}" not found')
            return self.pods[parts[-1]]
        labels = dict(label.split("=") for label in query["labelSelector"].split(","))
        node = query.get("fieldSelector", "").removeprefix("spec.nodeName=")
        selected = [
            pod
            for pod in self.pods.values()
            if labels.items() <= pod["metadata"]["labels"].items()
            and node in ("", pod["spec"]["nodeName"])
        ]
        begin = int(query.get("continue", 0))
        more = str(begin + self.page_size) if begin + self.page_size < len(selected) else ""
        return {"metadata": {"continue": more}, "items": selected[begin : begin + self.page_size]}

    def post(self, parts: list[str], query: dict[str, str]) -> dict[str, Any]:
        """Answer for nodes/NODE/proxy/checkpoint/NS/POD/CONTAINER, or as a kubelet for what follows proxy."""
        checkpoint, _, name, container = parts[-4:]
        if checkpoint != "checkpoint":
            raise HttpError(404, "404 page not found")
        if name not in self.pods:
            raise HttpError(404, "pod does not exist")
        return {"items": [self.checkpoint(name, container, int(query["timeout"]))]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                if self.headers.get("Upgrade") == "websocket":
                    self._answer(self._exec)
                else:
                    self._answer(lambda: api.get(*self._request()))

            def do_POST(self) -> None:
                self._answer(lambda: api.post(*self._request()))

            def _request(self) -> tuple[list[str], dict[str, str]]:
                url = urlsplit(self.path)
                query = {name: values[-1] for name, values in parse_qs(url.query).items()}
                return url.path.strip("/").split("/"), query

            def _answer(self, make: Callable[[], dict[str, Any] | None]) -> None:
                parts = urlsplit(self.path).path.strip("/").split("/")
                api.requests.append(f"{self.command} {'/'.join(parts)}")
                try:
                    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        raise api_error(401, "Unauthorized")
                    for part in parts:
                        if part in api.errors:
                            raise api.errors[part]
                    answer = make()
                except HttpError as error:
                    self._send(error.status, error.text)
                else:
                    if answer is not None:
                        self._send(200, json.dumps(answer))

            def _send(self, code: int, text: str) -> None:
                body = text.encode()
                kind = "application/json" if text.startswith("{") else "text/plain"
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _exec(self) -> None:
                """Send the command's output on channels 1 and 2, and how it ended on channel 3."""
                query = parse_qs(urlsplit(self.path).query)
                parts = urlsplit(self.path).path.split("/")
                key = self.headers["Sec-WebSocket-Key"] + WEBSOCKET
                accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.send_header("Sec-WebSocket-Accept", accept)
                self.send_header("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
                self.end_headers()
                try:
                    code, out, err = api.run(parts[-2], query["container"][0], query["command"])
                    end = exec_status(code)
                except HttpError as error:
                    out = err = ""
                    end = {"status": "Failure", "reason": "InternalError", "message": error.text}
                frames = wsproto.Connection(wsproto.ConnectionType.SERVER)
                for channel, text in ((1, out), (2, err), (3, json.dumps(end))):
                    message = BytesMessage(data=bytes([channel]) + text.encode())
                    self.wfile.write(frames.send(message))
                self.wfile.write(frames.send(CloseConnection(code=1000)))
                self.close_connection = True

            def log_message(self, *_arguments: object) -> None:
                """Write no log."""

        return Handler


def exec_status(code: int) -> dict[str, Any]:
    """Return the Status by which exec says how a command ended."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    cause = {"reason": "ExitCode", "message": str(code)}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with exit code {code}",
        "details": {"causes": [cause]},
    }


def kubeconfig(path: Path, url: str, ca: Path, *, token: str = TOKEN) -> Path:
    """Write a kubeconfig for the cluster at `url`, whose certificate `ca` has signed."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def serve_api(directory: Path) -> Iterator[tuple[FakeApiServer, Path, Path]]:
    """Run a fake API server; yields it, its kubeconfig, and the CA of its certificate."""
    authority = trustme.CA()
    ca = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    api = FakeApiServer(authority.issue_cert("127.0.0.1"))
    try:
        yield api, kubeconfig(directory / "kubeconfig", api.url, ca), ca
    finally:
        api.close()
