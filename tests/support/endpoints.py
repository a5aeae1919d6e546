"""A server that speaks OpenAI's protocol as far as it is told to, for the real client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-0123456789abcdef"
Body = dict[str, Any]
Answer = tuple[int, dict[str, str], Any]


class Endpoint:
    """A server that answers as it is told, then well, and remembers what it was asked."""

    def __init__(self, usual: Callable[[Body], Answer]) -> None:
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Answer] = []
        self.usual = usual
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.asked.append({"path": self.path, **body})
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, answer = (
                    endpoint.answers.pop(0) if endpoint.answers else endpoint.usual(body)
                )
                said = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def says(self, status: int, message: str = "no", **more: Any) -> None:
        """The next answer is an error."""
        headers = more.pop("headers", {})
        self.answers.append(
            (status, headers, {"error": {"message": message, "type": "t", "code": None, **more}})
        )

    def close(self) -> None:
        """End it: nobody answers any more."""
        self.server.shutdown()
        self.server.server_close()


def completion(content: str | None, *, refusal: str | None = None, reason: str = "stop") -> dict[str, Any]:
    """An answer as chat models give it."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "finish_reason": reason, "message": message, "logprobs": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage,
    }  # fmt: skip


def quoted(body: Body) -> Any:
    """The document of a prompt: what stands apart from the instructions."""
    return json.loads(body["messages"][1]["content"])
