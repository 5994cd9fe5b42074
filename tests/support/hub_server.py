"""A loopback Hugging Face hub: the parts of its HTTP API that downloading and committing use."""

import base64
import hashlib
import json
import re
import urllib.parse

from loopback_server import LoopbackServer, QuietHandler


class HubServer(LoopbackServer):
    """Repositories as {name: {path: bytes}}, each with one commit, the hash of what is in it.

    `requests` holds (method, path, Authorization or None) of everything asked. `token`: what private repositories
    and writing need. Files larger than `large` go by LFS. `refuse`: (status, body) by the beginning of a path.
    `cuts`: how many answers with a file end in its middle, by its name; `ranges`: what was asked for of files.
    """

    def __init__(self, token="hf_right"):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.created: list[dict] = []
        self.commits: list[dict] = []
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.refuse: dict[str, tuple[int, dict]] = {}
        self.cuts: dict[str, int] = {}
        self.ranges: list[tuple[str, str | None]] = []
        self.token, self.large = token, 1000
        outer = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                outer.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = handle_one

        super().__init__(Handler)

    def add_folder(self, repo, folder):
        self.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def commit_of(self, repo):
        files = {path: hashlib.sha1(content).hexdigest() for path, content in self.repos[repo].items()}
        return hashlib.sha1(json.dumps(files, sort_keys=True).encode()).hexdigest()

    # -- answers ----------------------------------------------------------------------------------

    def answer(self, handler):
        path = handler.path.partition("?")[0]
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        authorization = handler.headers.get("Authorization")
        self.requests.append((handler.command, path, authorization))
        for start, (status, document) in self.refuse.items():
            if path.startswith(start):
                return self.send(handler, status, document)
        may = authorization == f"Bearer {self.token}"
        reads = handler.command in ("GET", "HEAD") or "/paths-info/" in path
        if not reads and not may and not path.startswith("/upload/"):
            return self.send(handler, 401, {"error": "Invalid username or password."})
        for pattern, method in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match is None:
                continue
            repo = match.groupdict().get("repo")
            if repo is not None and (repo not in self.repos or (repo in self.private and not may)):
                return self.send(handler, 404, {"error": "Repository not found"}, "RepoNotFound")
            return method(self, handler, body, **match.groupdict())
        return self.send(handler, 404, {"error": f"no route for {path}"})

    def info(self, handler, body, repo, revision="main"):
        if revision not in ("main", self.commit_of(repo)):
            return self.send(handler, 404, {"error": "Invalid rev id"}, "RevisionNotFound")
        siblings = [{"rfilename": path} for path in self.repos[repo]]
        self.send(handler, 200, {"id": repo, "sha": self.commit_of(repo), "siblings": siblings, "tags": []})

    def resolve(self, handler, body, repo, revision, path):
        content = self.repos[repo].get(path)
        if content is None:
            return self.send(handler, 404, {"error": "Entry not found"}, "EntryNotFound")
        headers = {"X-Repo-Commit": self.commit_of(repo), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if handler.command == "HEAD":
            return self.send_bytes(handler, 200, content, headers)
        asked = handler.headers.get("Range")
        self.ranges.append((path, asked))
        first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        whole = content[first:]
        cut = self.cuts.get(path, 0) > 0
        self.cuts[path] = self.cuts.get(path, 0) - 1
        self.send_bytes(handler, 206 if first else 200, whole, headers, len(whole) // 2 if cut else None)

    def paths_info(self, handler, body, repo, revision):
        found = []
        for path in urllib.parse.parse_qs(body.decode()).get("paths", []):
            content = self.repos[repo].get(path)
            if content is None:
                continue
            entry = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if len(content) > self.large:
                digest = hashlib.sha256(content).hexdigest()
                entry |= {
                    "oid": "of the pointer",
                    "lfs": {"oid": digest, "size": len(content), "pointerSize": 134},
                }
            found.append(entry)
        self.send(handler, 200, found)

    def create(self, handler, body):
        asked = json.loads(body)
        self.created.append(asked)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        there = name in self.repos
        self.repos.setdefault(name, {})
        self.send(handler, 409 if there else 200, {"url": f"{self.url}/{name}", "name": name})

    def validate(self, handler, body):
        self.send(handler, 200, {"errors": [], "warnings": []})

    def preupload(self, handler, body, repo, revision):
        files = []
        for asked in json.loads(body)["files"]:
            there = self.repos[repo].get(asked["path"])
            entry = {"path": asked["path"], "shouldIgnore": False}
            entry["uploadMode"] = "lfs" if asked["size"] > self.large else "regular"
            if there is not None and asked["size"] <= self.large:
                entry["oid"] = hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
            elif there is not None:
                entry["oid"] = hashlib.sha256(there).hexdigest()
            files.append(entry)
        self.send(handler, 200, {"files": files})

    def batch(self, handler, body, repo):
        objects = []
        for asked in json.loads(body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{self.url}/upload/{asked['oid']}", "header": {}}}
            objects.append(entry)
        self.send(handler, 200, {"objects": objects, "transfer": "basic"})

    def upload(self, handler, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        self.send(handler, 200, {})

    def commit(self, handler, body, repo, revision):
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.objects[value["oid"]]
            if line["key"] == "deletedFile":
                self.repos[repo].pop(value["path"], None)
        self.commits.append({"repo": repo, "lines": lines})
        oid = self.commit_of(repo)
        address = f"{self.url}/{repo}/commit/{oid}"
        self.send(handler, 200, {"success": True, "commitOid": oid, "commitUrl": address})

    def whoami(self, handler, body):
        self.send(handler, 200, {"name": "me", "type": "user", "orgs": []})

    _REPO = r"(?P<repo>[^/]+/[^/]+)"
    ROUTES = (
        (rf"/api/models/{_REPO}", info),
        (rf"/api/models/{_REPO}/revision/(?P<revision>.+)", info),
        (rf"/api/models/{_REPO}/paths-info/(?P<revision>.+)", paths_info),
        (rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", preupload),
        (rf"/api/models/{_REPO}/commit/(?P<revision>.+)", commit),
        ("/api/repos/create", create),
        ("/api/validate-yaml", validate),
        ("/api/whoami-v2", whoami),
        (rf"/{_REPO}\.git/info/lfs/objects/batch", batch),
        (r"/upload/(?P<oid>[0-9a-f]{64})", upload),
        (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    )

    def send(self, handler, status, document, code=None):
        headers = {"Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {})
        self.send_bytes(handler, status, json.dumps(document).encode(), headers)

    def send_bytes(self, handler, status, content, headers, sent=None):
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content[:sent])
            handler.close_connection = sent is not None
