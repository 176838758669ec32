"""A client of CRI, as the kubelet has one: `cri.PullImage(image={"image": "..."})` returns the response, a message."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from tests.kubernetes.runtime import PROTO

SERVICES = ("RuntimeService", "ImageService")


class Cri:
    """Has a method for each call of the runtime's two services, with the fields of its request as arguments."""

    def __init__(self, socket: Path) -> None:
        import grpc

        sys.path.append(str(PROTO.parent))
        try:
            self.messages, services = grpc.protos_and_services(PROTO.name)
        finally:
            sys.path.remove(str(PROTO.parent))
        self._channel = grpc.insecure_channel(
            f"unix://{socket}", options=[("grpc.enable_http_proxy", 0)]
        )
        self._stubs = [getattr(services, f"{name}Stub")(self._channel) for name in SERVICES]

    def __getattr__(self, call: str) -> Any:
        request = getattr(self.messages, f"{call}Request")
        method = next(getattr(stub, call) for stub in self._stubs if hasattr(stub, call))

        def send(seconds: float = 120.0, **fields: Any) -> Any:
            return method(request(**fields), timeout=seconds)

        return send

    def close(self) -> None:
        with contextlib.suppress(ValueError):
            self._channel.close()
