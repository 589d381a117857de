"""An OpenAI-compatible server in this process that answers as a function of the prompt says; real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def scripted_server(answer: Callable[[str, int], str]) -> Iterator[tuple[str, list[str]]]:
    """Serve while the block runs.

    Args:
        answer: text of the answer to (the last user message, number of the request).

    Yields:
        (url for a plan or a command, all prompts so far).
    """
    prompts: list[str] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            with lock:
                prompts.append(prompt)
                number = len(prompts)
            choice = {
                "message": {"role": "assistant", "content": answer(prompt, number)},
                "finish_reason": "stop",
            }
            usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 100}
            reply = json.dumps({"choices": [choice | {"index": 0}], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", prompts
    finally:
        server.shutdown()
        server.server_close()
