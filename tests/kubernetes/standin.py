"""Stands in for an API server and a kubelet: TLS, tokens, pods, exec over a websocket, and the checkpoint API.

What checkpoints and what runs in a container is given: a real container runtime, or a few lines of a test.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
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
BROKEN_OFF = "stream terminated by RST_STREAM with error code: CANCEL"  # grpc-go, http2_client.go
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
Ran = tuple[int, str, str]


class Refused(Exception):
    """Answer with this status and these words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def status(code: int, message: str) -> Refused:
    """The API server wraps its words in a Status; kubelets do not."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return Refused(code, json.dumps(body | {"message": message}))


def pod(name: str, *containers: str, node: str = "node-1", **changes: Any) -> dict[str, Any]:
    """A pod that runs, as the API server describes it; `changes` by path, as state__app__waiting."""
    running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    names = containers or ("engine",)
    statuses = [
        {
            "name": each,
            "image": "vllm:1",
            "containerID": changes.get("container_id", f"containerd://{name}-{each}"),
            "state": changes.get("state", running),
        }
        for each in names
    ]
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "labels": changes.get("labels", {"app": "vllm"}),
            **changes.get("metadata", {}),
        },
        "spec": {"nodeName": node, "containers": [{"name": each} for each in names]},
        "status": {
            "phase": changes.get("phase", "Running"),
            "hostIP": "127.0.0.1",
            "containerStatuses": statuses,
        },
    }


class StandIn:
    """The cluster's API at `url`, and the same server as a kubelet; `asked` is what it was asked for.

    `checkpoint(pod, container, seconds)` returns the archive's path or raises Refused;
    `run(pod, container, command)` returns status, stdout and stderr, or raises Refused with why it cannot.
    """

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.forget()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def forget(self) -> None:
        """Be as at the start, for another test."""
        self.pods: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.checkpoint: Callable[[str, str, int], str] = lambda *_: (
            "/var/lib/kubelet/checkpoints/c.tar"
        )
        self.run: Callable[[str, str, Sequence[str]], Ran] = lambda *_: (127, "", "no such program")
        self.refuse: dict[str, Refused] = {}  # by the last part of a path, or what is asked
        self.page = 500

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    def add(self, *pods: dict[str, Any]) -> None:
        self.pods |= {each["metadata"]["name"]: each for each in pods}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def get(self, parts: list[str], words: dict[str, str]) -> dict[str, Any]:
        """pods, or namespaces/NS/pods, or namespaces/NS/pods/POD."""
        if parts[-1] != "pods":
            if parts[-1] not in self.pods:
                raise status(404, f'pods "{parts[-1]}" not found')
            return self.pods[parts[-1]]
        wanted = dict(each.split("=") for each in words["labelSelector"].split(","))
        node = words.get("fieldSelector", "").removeprefix("spec.nodeName=")
        fit = [
            each
            for each in self.pods.values()
            if wanted.items() <= each["metadata"]["labels"].items()
            and node in ("", each["spec"]["nodeName"])
        ]
        begin = int(words.get("continue", 0))
        more = str(begin + self.page) if begin + self.page < len(fit) else ""
        return {"metadata": {"continue": more}, "items": fit[begin : begin + self.page]}

    def post(self, parts: list[str], words: dict[str, str]) -> dict[str, Any]:
        """nodes/NODE/proxy/checkpoint/NS/POD/CONTAINER of the API server, the end of it of a kubelet."""
        checkpoint, _, name, container = parts[-4:]
        if checkpoint != "checkpoint" or name not in self.pods:
            raise Refused(
                404, "404 page not found" if checkpoint != "checkpoint" else "pod does not exist"
            )
        return {"items": [self.checkpoint(name, container, int(words["timeout"]))]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                if self.headers.get("Upgrade") == "websocket":
                    self._answer(self._exec)
                else:
                    self._answer(lambda: standin.get(*self._asked()))

            def do_POST(self) -> None:
                self._answer(lambda: standin.post(*self._asked()))

            def _asked(self) -> tuple[list[str], dict[str, str]]:
                url = urlsplit(self.path)
                words = {name: values[-1] for name, values in parse_qs(url.query).items()}
                return url.path.strip("/").split("/"), words

            def _answer(self, make: Callable[[], dict[str, Any] | None]) -> None:
                parts = urlsplit(self.path).path.strip("/").split("/")
                standin.asked.append(f"{self.command} {'/'.join(parts)}")
                try:
                    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        raise status(401, "Unauthorized")
                    for part in parts:
                        if part in standin.refuse:
                            raise standin.refuse[part]
                    answer = make()
                except Refused as refused:
                    self._send(refused.status, refused.text)
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
                """The command's output on channel 1 and 2, how it ended on channel 3."""
                words = parse_qs(urlsplit(self.path).query)
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
                    code, out, err = standin.run(parts[-2], words["container"][0], words["command"])
                    end = ended(code)
                except Refused as refused:
                    out = err = ""
                    end = {"status": "Failure", "reason": "InternalError", "message": refused.text}
                frames = wsproto.Connection(wsproto.ConnectionType.SERVER)
                for channel, text in ((1, out), (2, err), (3, json.dumps(end))):
                    message = BytesMessage(data=bytes([channel]) + text.encode())
                    self.wfile.write(frames.send(message))
                self.wfile.write(frames.send(CloseConnection(code=1000)))
                self.close_connection = True

            def log_message(self, *_words: object) -> None:
                """Nobody reads it."""

        return Handler


def ended(code: int) -> dict[str, Any]:
    """How exec says that a command ended."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    cause = {"reason": "ExitCode", "message": str(code)}
    words = {"message": f"command terminated with exit code {code}", "reason": "NonZeroExitCode"}
    return {"metadata": {}, "status": "Failure", "details": {"causes": [cause]}, **words}


def kubeconfig(path: Path, url: str, ca: Path, *, token: str = TOKEN) -> Path:
    """A kubeconfig for the cluster at `url`, whose certificate `ca` has signed."""
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
def standing_in(directory: Path) -> Iterator[tuple[StandIn, Path, Path]]:
    """A stand-in, its kubeconfig, and the certificate that signs its own."""
    authority = trustme.CA()
    ca = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    standin = StandIn(authority.issue_cert("127.0.0.1"))
    try:
        yield standin, kubeconfig(directory / "kubeconfig", standin.url, ca), ca
    finally:
        standin.close()
