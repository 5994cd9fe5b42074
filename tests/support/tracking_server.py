"""An MLflow server in a thread that behaves as badly as a test says: it hangs, drips, dies, talks nonsense."""

import http.server
import json
import threading
import time
import urllib.parse
import uuid

from loopback_server import QuietHandler


class BadServer:
    """Holds runs and what was logged to them, and answers as `mode` says.

    at: the part of an address that the mode is for; "" is all of them.
    mode: `good`; `hang` answers after five seconds; `late` does what is asked at once, and answers after five;
    `drip` answers a byte a second; `cut` closes the connection; bytes are what it answers, with status 200.
    """

    def __init__(self, mode="good", port=0):
        self.mode, self.at, self.runs, self.records = mode, "", {}, []
        self.tags = []  # values that were set after a run's creation
        self.ended = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.port = self._server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def logged(self, run_id=None):
        """{(step, key): value} of a run, once each however often it came."""
        return {(s, k): v for run, s, k, v in self.records if run_id in (None, run)}

    def answer(self, path, body):
        call = path.removeprefix("/api/2.0/mlflow/")
        if call == "experiments/get-by-name":
            return {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}}
        if call == "runs/search":
            wanted = body["filter"].split("'")[1]
            return {"runs": [r for r in self.runs.values() if wanted in r["data"]["tags"][0].values()]}
        if call == "runs/create":
            run_id = uuid.uuid4().hex
            tags = sorted(body["tags"], key=lambda tag: tag["key"] != "zoo.offline_id")
            info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "1", "lifecycle_stage": "active",
                    "status": "RUNNING", "artifact_uri": f"mlflow-artifacts:/1/{run_id}"}  # fmt: skip
            self.runs[run_id] = {"info": info, "data": {"tags": tags}}
            return {"run": self.runs[run_id]}
        if body.get("run_id") not in (None, *self.runs):
            return None
        if call == "runs/get":
            return {"run": self.runs[body["run_id"]]}
        if call == "runs/log-batch":
            self.records += [(body["run_id"], int(m.get("step", 0)), m["key"], m["value"])
                             for m in body.get("metrics", [])]  # fmt: skip
            self.tags += [tag["value"] for tag in body.get("tags", [])]
        if call == "runs/update":
            self.runs[body["run_id"]]["info"]["status"] = body["status"]
            return {"run_info": self.runs[body["run_id"]]["info"]}
        return {}


def _handler(owner):
    class Handler(QuietHandler):
        def _serve(self):
            parts = urllib.parse.urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            mode = owner.mode if owner.at in parts.path else "good"
            if mode == "hang":
                owner.ended.wait(5)
            if owner.ended.is_set() or mode == "cut":
                self.connection.close()
                return
            try:
                body = json.loads(raw)
            except ValueError:
                body = {k: v[0] for k, v in urllib.parse.parse_qs(parts.query).items()}
            answer = mode if isinstance(mode, bytes) else owner.answer(parts.path, body)
            if mode == "late":
                owner.ended.wait(5)
            code = 200
            if answer is None:
                code, answer = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}
            text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            head = (
                f"HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            )
            self._send(head.encode() + text, mode == "drip")

        def _send(self, text, slowly):
            if not slowly:
                self.wfile.write(text)
                return
            for byte in text:
                if owner.ended.is_set():
                    return
                self.wfile.write(bytes([byte]))
                time.sleep(1)

        do_GET = do_POST = do_PUT = do_PATCH = _serve

    return Handler
